"""`list`, `info`, `stop`, `exec` against a fake machine."""

import json
import os

import pytest

from minivmm import runtime
from minivmm.cli import main
from minivmm.errors import ExitStatus
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import GIB, MIB


@pytest.mark.usefixtures("runtime_root")
def test_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["list"]) == 0
    assert capsys.readouterr().out == ""
    assert main.run(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "machines": []}


def test_list_shows_sizes_and_what_is_only_starting(
    live: MachineDir, machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    starting = runtime.claim("vm2")
    with machine.lock:
        machine.memory_devices["vmem0"].set_requested_size(64 * MIB)
        machine.plug("vmem0", 32 * MIB)

    assert main.run(["list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert main.run(["list", "--json"]) == 0
    machines = json.loads(capsys.readouterr().out)["machines"]

    assert printed[0].split("  ")[0] == "NAME"
    assert printed[1].split() == ["vm1", str(os.getpid()), "running", "512M", "64M", "32M"]
    assert printed[2].split() == ["vm2", str(os.getpid()), "starting", "-", "-", "-"]
    assert machines[0] == {
        "name": "vm1",
        "pid": os.getpid(),
        "status": "running",
        "base-memory": 512 * MIB,
        "requested-size": 64 * MIB,
        "size": 32 * MIB,
    }
    starting.remove()


def test_info_for_people(
    live: MachineDir, machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.agent.ready = True
    machine.agent.kernel_release = "6.12.1"

    assert main.run(["info"]) == 0

    printed = capsys.readouterr().out
    for line in (
        "status:       running",
        "agent:        ready (Linux 6.12.1)",
        "boot memory:  512M",
        "  requested:  0",
        "  plugged:    0",
        "  usable:     0",
        "  region:     1G at 0x100000000-0x13fffffff",
        "  block:      2M",
        "  node:       0",
        "  resident:   0",
        "memslots:     1",
        "  intrusions: 0",
    ):
        assert line in printed.splitlines()


@pytest.mark.usefixtures("live")
def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["info", "vm1", "--json"]) == 0

    info = json.loads(capsys.readouterr().out)
    assert info["schema"] == 1
    assert info["pid"] == os.getpid()
    assert info["memory-devices"][0]["max-size"] == GIB


def test_stop_asks_the_guest(live: MachineDir, machine: FakeMachine) -> None:
    assert main.run(["stop", "vm1"]) == 0

    assert machine.calls == ["powerdown"]


def test_stop_ends_a_guest_that_does_not_obey(
    live: MachineDir, machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.powers_down = False

    assert main.run(["stop", "--grace", "100ms", "--json"]) == 0

    assert machine.calls == ["powerdown", "quit"]
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"schema": 1, "name": "vm1", "powered-off": False}
    assert "did not power off within 0.1 s" in printed.err


def test_stop_by_force_asks_nobody(live: MachineDir, machine: FakeMachine) -> None:
    assert main.run(["stop", "--force"]) == 0

    assert machine.calls == ["quit"]


@pytest.mark.usefixtures("runtime_root")
def test_verbs_without_a_machine_are_status_3() -> None:
    for verb in ("info", "stop"):
        assert main.run([verb]) == ExitStatus.NOT_RUNNING
        assert main.run([verb, "nope"]) == ExitStatus.NOT_RUNNING


@pytest.mark.usefixtures("runtime_root")
def test_exec_refuses_what_cannot_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["exec", "vm1"]) == ExitStatus.MINIVMM_FAILED
    assert "needs a command" in capsys.readouterr().err
    assert main.run(["exec", "--env", "X", "--", "true"]) == ExitStatus.MINIVMM_FAILED
    assert "KEY=VALUE" in capsys.readouterr().err
