"""`minivmm resize` against a machine whose guest is played by the test."""

import json
import threading
import time
from collections.abc import Callable

import pytest

from minivmm.cli import main
from minivmm.cli.follow import progress_line
from minivmm.errors import ExitStatus
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import GIB, MIB


def requested(machine: FakeMachine) -> int:
    return machine.memory_devices["vmem0"].requested_size


def soon(machine: FakeMachine, guest: Callable[[], None]) -> threading.Thread:
    """Let the guest do something in a moment."""

    def act() -> None:
        time.sleep(0.1)
        with machine.lock:
            guest()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.mark.usefixtures("live")
def test_absolute_and_relative_sizes(machine: FakeMachine) -> None:
    for words, expected in (
        (["vm1", "512M"], 512 * MIB),
        (["+256M"], 768 * MIB),
        (["vm1", "-512M"], 256 * MIB),
        (["256M"], 256 * MIB),
        (["--device", "vmem0", "0"], 0),
    ):
        assert main.run(["resize", *words]) == 0
        assert requested(machine) == expected


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["3"], "requested-size 3 is not a multiple of block-size 2M (nearest: 0, 2M)"),
        (["vm1", "3M"], "requested-size 3M is not a multiple of block-size 2M (nearest: 2M, 4M)"),
        (
            ["2G"],
            "requested-size 2G is outside the region of vmem0 (0 to 1G; requested now: 0)",
        ),
        (
            ["-2M"],
            "requested-size -2M is outside the region of vmem0 (0 to 1G; requested now: 0)",
        ),
        (["512MB"], "size '512MB' is ambiguous: write 512MiB (powers of 1024)"),
        (["--device", "x", "2M"], "vm1 has no memory device 'x': it has vmem0"),
        (["a", "b", "2M"], "resize takes [NAME] SIZE, not 'a b 2M'"),
    ],
)
def test_bad_sizes_are_usage_errors(
    words: list[str], line: str, machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["resize", *words]) == ExitStatus.USAGE
    assert capsys.readouterr().err == f"minivmm: {line}\n"
    assert requested(machine) == 0


@pytest.mark.usefixtures("runtime_root")
def test_no_machine_is_status_3() -> None:
    assert main.run(["resize", "1G"]) == ExitStatus.NOT_RUNNING
    assert main.run(["resize", "nope", "1G"]) == ExitStatus.NOT_RUNNING


@pytest.mark.usefixtures("live")
def test_json_tells_both_sizes(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["resize", "--json", "64M"]) == 0

    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "name": "vm1",
        "id": "vmem0",
        "requested-size": 64 * MIB,
        "size": 0,
    }


@pytest.mark.usefixtures("live")
def test_wait_returns_when_the_guest_is_there(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = soon(machine, lambda: machine.plug("vmem0", 64 * MIB))

    assert main.run(["resize", "--wait", "vm1", "64M"]) == 0

    guest.join()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("minivmm: vmem0 0/64M  ------------  plugging")
    assert lines[-1].startswith("minivmm: vmem0 64M/64M  ############  done")


@pytest.mark.usefixtures("live")
def test_wait_for_a_shrink(machine: FakeMachine) -> None:
    with machine.lock:
        machine.memory_devices["vmem0"].set_requested_size(64 * MIB)
        machine.plug("vmem0", 64 * MIB)
    guest = soon(machine, lambda: machine.unplug("vmem0", 0))

    assert main.run(["resize", "0", "--wait=10s", "-q"]) == 0

    guest.join()


@pytest.mark.usefixtures("live")
def test_wait_gives_up_with_status_4_and_the_diagnosis(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["resize", "64M", "--wait=200ms", "-q"]) == ExitStatus.WAIT_TIMEOUT

    assert capsys.readouterr().err == (
        "minivmm: vmem0 has 0 of 64M after 0.2 s: working: the guest is plugging (wait)\n"
    )
    assert requested(machine) == 64 * MIB


@pytest.mark.usefixtures("live")
def test_wait_notices_that_somebody_else_resizes(machine: FakeMachine) -> None:
    guest = soon(machine, lambda: machine.memory_devices["vmem0"].set_requested_size(0))

    assert main.run(["resize", "64M", "--wait", "-q"]) == ExitStatus.FAILED

    guest.join()


@pytest.mark.usefixtures("live")
def test_wait_ends_with_the_machine(machine: FakeMachine) -> None:
    guest = soon(machine, machine.request_quit)

    assert main.run(["resize", "64M", "--wait", "-q"]) == ExitStatus.NOT_RUNNING

    guest.join()


def test_a_machine_without_devices_says_how_to_get_one(
    machine: FakeMachine, live: MachineDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with machine.lock:
        machine.memory_devices.clear()

    assert main.run(["resize", "64M"]) == ExitStatus.USAGE
    assert "--mem-device" in capsys.readouterr().err


def test_progress_shows_share_and_speed() -> None:
    line = progress_line(0, 256 * MIB, 512 * MIB, 2.0)

    assert line == "256M/512M  ######------  plugging  134 MB/s"
    assert progress_line(GIB, GIB, 0, 0.0) == "1G/0  ------------  unplugging"
