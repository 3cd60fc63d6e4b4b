"""`minivmm wait`: resized, plugged, ready, gone; and giving up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from minivmm import runtime
from minivmm.cli import main
from minivmm.errors import ExitStatus
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import MIB


class Later:
    """Does things to the machine while the test waits."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def __call__(self, act: Callable[[], object]) -> None:
        def run() -> None:
            time.sleep(0.1)
            act()

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()


@pytest.fixture
def later() -> Iterator[Later]:
    later = Later()
    yield later
    for thread in later.threads:
        thread.join(10)


def locked(machine: FakeMachine, act: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with machine.lock:
            act()

    return run


@pytest.mark.usefixtures("live")
def test_nothing_to_wait_for_returns_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["wait"]) == 0
    assert main.run(["wait", "vm1", "--requested", "--device", "vmem0"]) == 0
    assert main.run(["wait", "--plugged", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "name": "vm1",
        "status": "running",
        "memory-devices": [{"id": "vmem0", "requested-size": 0, "size": 0}],
    }


@pytest.mark.usefixtures("live")
def test_until_what_is_requested_is_plugged(machine: FakeMachine, later: Later) -> None:
    with machine.lock:
        machine.memory_devices["vmem0"].set_requested_size(64 * MIB)
    later(locked(machine, lambda: machine.plug("vmem0", 64 * MIB)))

    assert main.run(["wait"]) == 0

    assert machine.memory_devices["vmem0"].plugged_size == 64 * MIB


@pytest.mark.usefixtures("live")
def test_until_exactly_so_much_is_plugged(machine: FakeMachine, later: Later) -> None:
    with machine.lock:
        machine.memory_devices["vmem0"].set_requested_size(64 * MIB)
        machine.plug("vmem0", 2 * MIB)
    later(locked(machine, lambda: machine.plug("vmem0", 32 * MIB)))

    assert main.run(["wait", "--plugged", "32M"]) == 0

    assert machine.memory_devices["vmem0"].plugged_size == 32 * MIB


@pytest.mark.usefixtures("live")
def test_until_the_agent_is_ready(machine: FakeMachine, later: Later) -> None:
    def ready() -> None:
        machine.agent.ready = True

    later(ready)

    assert main.run(["wait", "--ready"]) == 0
    assert machine.agent.ready


def test_until_it_has_ended(
    live: MachineDir, machine: FakeMachine, later: Later, capsys: pytest.CaptureFixture[str]
) -> None:
    later(locked(machine, machine.request_quit))

    assert main.run(["wait", "vm1", "--stopped", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["status"] == "stopped"
    assert main.run(["wait", "vm1", "--stopped"]) == 0  # it has, already


@pytest.mark.usefixtures("live")
def test_a_vm_that_ends_meanwhile_is_status_3(machine: FakeMachine, later: Later) -> None:
    later(locked(machine, machine.request_quit))

    assert main.run(["wait", "--ready"]) == ExitStatus.NOT_RUNNING


@pytest.mark.usefixtures("live")
def test_giving_up_says_what_is(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    with machine.lock:
        machine.memory_devices["vmem0"].set_requested_size(64 * MIB)

    assert main.run(["wait", "--timeout", "100ms"]) == ExitStatus.WAIT_TIMEOUT
    assert capsys.readouterr().err.startswith(
        "minivmm: vmem0 has 0 of 64M after 100ms: working: the guest is plugging"
    )
    assert main.run(["wait", "--ready", "--timeout", "100ms"]) == ExitStatus.WAIT_TIMEOUT
    assert capsys.readouterr().err == "minivmm: the guest's agent is not ready after 100ms\n"
    assert main.run(["wait", "--stopped", "--timeout", "100ms"]) == ExitStatus.WAIT_TIMEOUT
    assert capsys.readouterr().err == "minivmm: vm1 still runs after 100ms\n"


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--requested", "--ready"], "not allowed with"),
        (["--plugged", "3X"], "3X"),
        (["--timeout", "x"], "duration 'x' is not understood"),
        (["--device", "nope"], "vm1 has no memory device 'nope': it has vmem0"),
    ],
)
def test_wrong_usage(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["wait", *words]) == ExitStatus.USAGE
    assert what in capsys.readouterr().err


@pytest.mark.usefixtures("runtime_root")
def test_nobody_to_wait_for_is_status_3() -> None:
    assert main.run(["wait"]) == ExitStatus.NOT_RUNNING
    assert main.run(["wait", "nope"]) == ExitStatus.NOT_RUNNING
    assert main.run(["wait", "nope", "--stopped"]) == 0


@pytest.mark.usefixtures("runtime_root")
def test_ready_waits_for_a_vm_that_is_booted_in_a_moment(
    later: Later, capsys: pytest.CaptureFixture[str]
) -> None:
    claimed: list[MachineDir] = []
    later(lambda: claimed.append(runtime.claim("vm3")))

    assert main.run(["wait", "vm3", "--ready", "--timeout", "1s"]) == ExitStatus.NOT_RUNNING
    assert "only starting" in capsys.readouterr().err  # so it was seen
    claimed[0].remove()


@pytest.mark.usefixtures("runtime_root")
def test_a_vm_that_is_only_starting_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    starting = runtime.claim("vm2")
    try:
        began = time.monotonic()
        status = main.run(["wait", "vm2", "--ready", "--timeout", "300ms"])
    finally:
        starting.remove()

    assert status == ExitStatus.NOT_RUNNING
    assert time.monotonic() - began >= 0.3
    assert "only starting" in capsys.readouterr().err
