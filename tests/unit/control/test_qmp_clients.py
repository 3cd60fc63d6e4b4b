"""Foreign clients drive the control socket: qemu.qmp's QMPClient and its qmp-shell."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from qemu.qmp import ExecuteError, QMPClient

from minivmm.control.client import Client
from minivmm.errors import NoSuchMachine, Refused
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import GIB, MIB

QMP_SHELL = Path(sys.executable).with_name("qmp-shell")


def shell(live: MachineDir, text: str, *options: str) -> str:
    """What qmp-shell prints for lines of input."""
    done = subprocess.run(
        [str(QMP_SHELL), *options, str(live.qmp_socket)],
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        env={"HOME": str(live.path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_qmp_client_sets_and_reads(live: MachineDir) -> None:
    async def drive() -> None:
        client = QMPClient("test")
        await client.connect(str(live.qmp_socket))
        arguments: dict[str, object] = {"path": "vmem0", "property": "requested-size"}
        await client.execute("qom-set", {**arguments, "value": GIB})
        assert await client.execute("qom-get", arguments) == GIB
        with pytest.raises(ExecuteError, match="has to be multiples"):
            await client.execute("qom-set", {**arguments, "value": 3})
        names = await client.execute("query-commands")
        assert {"name": "qom-set"} in cast(list[object], names)
        await client.disconnect()

    asyncio.run(drive())


def test_events_reach_a_second_qmp_client(live: MachineDir, machine: FakeMachine) -> None:
    async def drive() -> None:
        listener, other = QMPClient("listener"), QMPClient("other")
        await listener.connect(str(live.qmp_socket))
        await other.connect(str(live.qmp_socket))
        with listener.listener("STOP") as stops:
            await other.execute("stop")
            event = await asyncio.wait_for(stops.get(), 5)
        assert event["event"] == "STOP"
        await listener.disconnect()
        await other.disconnect()

    asyncio.run(drive())
    assert machine.state == "paused"


def test_qmp_shell_resizes(live: MachineDir, machine: FakeMachine) -> None:
    printed = shell(
        live,
        "qom-set path=vmem0 property=requested-size value=1073741824\n"
        "qom-get path=vmem0 property=requested-size\n"
        "query-memory-devices\n"
        "bogus\n",
    )

    assert machine.memory_devices["vmem0"].requested_size == GIB
    assert '"return": 1073741824' in printed
    assert '"requested-size": 1073741824' in printed
    assert "The command bogus has not been found" in printed


def test_qmp_shell_speaks_the_human_monitor(live: MachineDir, machine: FakeMachine) -> None:
    printed = shell(live, "qom-set vmem0 requested-size 512M\ninfo memory-devices\n", "-H")

    assert machine.memory_devices["vmem0"].requested_size == 512 * MIB
    assert 'Memory device [virtio-mem]: "vmem0"' in printed
    assert "requested-size: 536870912" in printed


def test_our_client_executes_and_hears_events(live: MachineDir, machine: FakeMachine) -> None:
    with Client(live.qmp_socket) as client:
        client.execute("qom-set", path="vmem0", property="requested-size", value=64 * MIB)
        with pytest.raises(Refused, match="not found") as refusal:
            client.execute("qom-get", path="nope", property="size")
        assert refusal.value.error_class == "DeviceNotFound"
        assert client.event(0.01) is None
        with machine.lock:
            machine.plug("vmem0", 64 * MIB)
        event = client.event(5)
        assert event is not None
        assert event["data"]["size"] == 64 * MIB


def test_our_client_tells_a_vm_that_ended(live: MachineDir) -> None:
    with Client(live.qmp_socket) as client:
        client.execute("quit")
        assert client.wait_closed(5)
        with pytest.raises(NoSuchMachine):
            client.execute("query-status")


def test_nothing_listening_is_no_such_machine(tmp_path: Path) -> None:
    with pytest.raises(NoSuchMachine):
        Client(tmp_path / "missing.sock")
