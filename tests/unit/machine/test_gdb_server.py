"""GDB connects to a machine: Debian's own, and packets by hand where it would not send them."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm.control.face import Context
from minivmm.control.gdb_address import Address
from minivmm.control.gdb_packets import PacketReader, frame
from minivmm.control.gdb_server import GdbServer
from minivmm.errors import HostError
from minivmm.kvm.debug import DebugFeatures
from minivmm.spec.platform import SERIAL_PORT
from minivmm.testing.fake_debug import KERNEL

CODE = KERNEL + 0x10_0000
GPA = 0x10_0000

FULL = DebugFeatures()
POOR = DebugFeatures(software=False, hardware=False)


class Target:
    """A machine that waits for GDB."""

    def __init__(self, rig: Any, wait: Callable[..., None], features: DebugFeatures) -> None:
        self.rig = rig
        self.wait = wait
        self.machine = rig.machine
        self.memory = rig.machine.board.memory
        for vcpu in rig.vcpus:
            vcpu.debug.reports_int3 = features.software
        self.server = GdbServer(Context(rig.machine), rig.machine.debugger, rig.loop, features)
        rig.machine.on_end.append(
            lambda outcome: rig.loop.call_soon(lambda: self.server.ended(outcome))
        )
        self.address = self.on_loop(self.server.start(Address(port=0)))

    def on_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.rig.loop.asyncio).result(10)

    def close(self) -> None:
        self.on_loop(self.server.close())

    def gdb(self, *lines: str) -> str:
        """What Debian's gdb prints when it is connected and told this."""
        words = [shutil.which("gdb") or "gdb", "-q", "-nx", "-batch"]
        for line in (
            "set confirm off",
            "set pagination off",
            f"target remote {self.address}",
            *lines,
        ):
            words += ["-ex", line]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr

    def until_it_runs(self) -> None:
        """Wait until GDB has let the guest run."""
        debugger = self.machine.debugger
        self.wait(lambda: debugger.attached and self.machine.state == "running")

    def connect(self) -> Wire:
        return Wire(self.address)


class Wire:
    """A connection that speaks packets."""

    def __init__(self, address: Address) -> None:
        self._socket = socket.create_connection((address.host, address.port), timeout=5)
        self._reader = PacketReader()
        self._got: list[bytes] = []

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        """The next packet; empty at the end of the connection as well."""
        while not self._got:
            data = self._socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._got += [item for item in self._reader.feed(data) if isinstance(item, bytes)]
        return self._got.pop(0)

    def ask(self, body: bytes) -> bytes:
        self.send(frame(body))
        return self.receive()

    def ended(self) -> bool:
        try:
            return not self._socket.recv(1)
        except ConnectionError:
            return True


@pytest.fixture(params=[FULL, POOR], ids=["int3", "out"])
def target(request: pytest.FixtureRequest, make_rig: Any, wait: Any) -> Iterator[Target]:
    made = Target(make_rig(cpus=2).start(), wait, request.param)
    yield made
    made.close()


@pytest.fixture
def full(make_rig: Any, wait: Any) -> Iterator[Target]:
    made = Target(make_rig(cpus=2).start(), wait, FULL)
    yield made
    made.close()


def test_gdb_breaks_steps_and_reads(target: Target) -> None:
    target.memory.write(GPA, b"\x90" * 15 + b"minivmm\0")
    target.rig.locked(target.machine.pause)
    target.rig.vcpus[1].script_execute(CODE, CODE + 1, CODE + 2)

    said = target.gdb(
        f"break *{CODE:#x}",
        "continue",
        "info threads",
        "stepi",
        'printf "at %#lx\\n", $rip',
        f"x/s {CODE + 15:#x}",
        f"set var *(char *){CODE + 15:#x} = 'M'",
        "set var $rbx = 0x1234",
        "print/x $rbx",
        "info registers rip cr3 efer",
        "monitor info status",
        "detach",
    )

    assert "Thread 2 hit Breakpoint 1" in said, said
    assert "* 2    Thread 2 (cpu1)" in said
    assert f"at {CODE + 1:#x}" in said
    assert '"minivmm"' in said
    assert "= 0x1234" in said
    assert "VM status: paused (debug)" in said
    assert target.memory.read(GPA, 23) == b"\x90" * 15 + b"Minivmm\0"
    target.wait(lambda: target.machine.state == "running")
    assert target.rig.vcpus[1].wait_idle()


def test_gdb_watches_by_hardware(full: Target) -> None:
    full.rig.locked(full.machine.pause)
    full.rig.vcpus[0].script_execute(CODE, CODE + 1)

    said = full.gdb(f"hbreak *{CODE + 1:#x}", "continue", 'printf "at %#lx\\n", $rip', "detach")

    assert "hit Breakpoint 1" in said, said
    assert f"at {CODE + 1:#x}" in said


def test_a_gdb_that_is_killed_leaves_no_breakpoints(full: Target) -> None:
    with full.connect() as wire:
        assert wire.ask(b"Z0,%x,1" % CODE) == b"OK"
        assert wire.ask(b"Z1,%x,1" % CODE) == b"OK"
        wire.send(frame(b"vCont;c"))
        full.until_it_runs()

    full.wait(lambda: not full.machine.debugger.attached)

    assert full.memory.read(GPA, 1) == bytes(1)
    assert full.machine.state == "running"
    full.rig.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert full.rig.vcpus[0].wait_idle()


def test_ctrl_c_stops_the_guest(full: Target) -> None:
    with full.connect() as wire:
        wire.send(frame(b"vCont;c"))
        full.until_it_runs()

        wire.send(b"\x03")

        assert wire.receive() == b"T02thread:1;"
        assert full.machine.state == "debug"


def test_the_second_gdb_is_sent_away(full: Target) -> None:
    with full.connect() as wire:
        assert wire.ask(b"qC") == b"QC1"
        with full.connect() as other:
            assert other.ended()
        assert wire.ask(b"qC") == b"QC1"


def test_one_after_the_other_can_connect(full: Target) -> None:
    for _ in range(3):
        with full.connect() as wire:
            assert wire.ask(b"?").startswith(b"T05thread:1;")
            assert wire.ask(b"D") == b"OK"
        full.wait(lambda: not full.machine.debugger.attached)
        full.wait(lambda: full.server._connection is None)


def test_the_next_gdb_can_come_at_once_after_one_was_lost(target: Target) -> None:
    for _ in range(5):
        with target.connect() as wire:
            wire.send(frame(b"c"))
            target.until_it_runs()
        target.wait(lambda: target.server._connection is None)

    assert not target.machine.debugger.attached
    assert target.machine.state == "running"


def test_kill_ends_the_vm(full: Target) -> None:
    with full.connect() as wire:
        wire.send(frame(b"k"))

        assert full.rig.outcome.reason == "host asked to quit"


def test_the_end_of_the_vm_is_told(full: Target) -> None:
    with full.connect() as wire:
        wire.send(frame(b"c"))
        full.until_it_runs()

        full.rig.locked(full.machine.request_quit)

        assert wire.receive() == b"W00"


def test_a_guest_that_dies_is_told(full: Target) -> None:
    with full.connect() as wire:
        wire.send(frame(b"c"))
        full.until_it_runs()

        full.rig.vcpus[0].script_shutdown()

        assert wire.receive() == b"X06"


def test_there_is_nothing_to_debug_when_the_vm_is_over(full: Target) -> None:
    full.rig.locked(full.machine.request_quit)
    full.rig.thread.settle()

    with full.connect() as wire:
        assert wire.ended()


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (b"vMustReplyEmpty", b""),
        (b"", b""),
        (b"!", b""),
        (b"m7f0000000000,8", b"E0e"),
        (b"m%x,4" % (KERNEL + 64 * 1024 * 1024 - 2), b"0000"),
        (b"mxyz", b"E16"),
        (b"M%x,2:00" % CODE, b"E16"),
        (b"M%x,1:zz" % CODE, b"E16"),
        (b"p999", b"E16"),
        (b"G00", b"OK"),
        (b"T9", b"E16"),
        (b"Hg9", b"E16"),
        (b"Z9,0,1", b""),
        (b"Z3,0,1", b""),
        (b"Z2,1001,8", b"E01"),
        (b"Z0,0", b"E16"),
        (b"vCont;q", b"E16"),
        (b"vCont", b""),
        (b"c!", b"E16"),
        (b"qRcmd,zz", b"E16"),
        (b"qRcmd,", b"OK"),
        (b"qXfer:features:read:other.xml:0,10", b""),
        (b"m%x,%x" % (CODE, 1 << 40), b"00" * 8191),
    ],
)
def test_odd_packets(full: Target, packet: bytes, answer: bytes) -> None:
    with full.connect() as wire:
        assert wire.ask(packet) == answer
        assert wire.ask(b"qC") == b"QC1"


def test_garbage_harms_nobody(full: Target) -> None:
    with full.connect() as wire:
        for junk in (bytes(range(256)) * 40, b"$" * 50000, b"#00" * 99, b"$c#"):
            wire.send(junk)
        wire.send(b"##")
        wire.send(frame(b"qC"))
        while wire.receive() != b"QC1":
            pass


def test_a_port_in_use_is_refused_with_the_remedy(full: Target) -> None:
    other = GdbServer(Context(full.machine), full.machine.debugger, full.rig.loop, FULL)

    with pytest.raises(HostError, match=r"cannot listen for gdb on .*in use.*choose another port"):
        full.on_loop(other.start(full.address))


def test_a_unix_socket_comes_and_goes(full: Target, tmp_path: Path) -> None:
    path = tmp_path / "gdb.sock"
    other = GdbServer(Context(full.machine), full.machine.debugger, full.rig.loop, FULL)
    full.on_loop(other.start(Address(path=path)))

    assert path.stat().st_mode & 0o077 == 0

    full.on_loop(other.close())
    assert not path.exists()


def test_closing_while_gdb_is_connected(full: Target) -> None:
    with full.connect() as wire:
        wire.ask(b"qC")

        full.close()

        assert wire.ended()


@pytest.mark.parametrize("target", [POOR], indirect=True)
def test_gdb_steps_to_watch_where_the_processor_cannot(target: Target) -> None:
    target.rig.locked(target.machine.pause)
    target.rig.vcpus[0].script_execute(*range(CODE, CODE + 4))

    said = target.gdb(
        f"hbreak *{CODE:#x}",
        "stepi",
        "delete",
        "set can-use-hw-watchpoints 0",
        f"watch *(int *){CODE + 32:#x}",
        f"set var *(int *){CODE + 32:#x} = 7",
        "stepi",
        "detach",
    )

    assert "Cannot insert hardware breakpoint 1" in said, said
    assert "\nWatchpoint 2: " in said
    assert f"{CODE + 1:#x} in ?? ()" in said
