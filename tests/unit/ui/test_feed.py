"""The feed: states in order, the past, rates, host memory, and its end."""

from __future__ import annotations

import time

import pytest

from minivmm.errors import NoSuchMachine
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.ui.feed import Feed
from minivmm.ui.rates import Rates
from minivmm.units import MIB


def next_state(feed: Feed, size: int) -> dict[str, object]:
    """The device in the first view in which `size` bytes are plugged."""
    number, deadline = 0, time.monotonic() + 10
    while time.monotonic() < deadline:
        state = feed.wait(number, 1.0)
        if state is not None:
            number = state.number
            device: dict[str, object] = state.view["memory-devices"][0]
            if device["size"] == size:
                return device
    raise AssertionError(f"{size} never came")


def test_states_follow_the_machine(feed: Feed, machine: FakeMachine) -> None:
    with machine.lock:
        machine.memory_devices["vmem0"].set_requested_size(64 * MIB)

    device = next_state(feed, 64 * MIB)

    assert device["requested-size"] == 64 * MIB
    assert feed.history()[-1].sizes["vmem0"] == (64 * MIB, 64 * MIB, 0)
    assert [line.name for line in feed.log.since(0)] == ["resize", "answer"]


def test_host_memory_comes_with_the_view(feed: Feed, machine: FakeMachine) -> None:
    with machine.lock:
        device = machine.memory_devices["vmem0"]
        device.set_requested_size(64 * MIB)
        device.region.view(0, 4096)[:] = b"x" * 4096
    deadline = time.monotonic() + 10
    while True:
        residency = next_state(feed, 64 * MIB)["residency"]
        assert isinstance(residency, dict)
        if residency["held"][0]["resident"]:
            break
        assert time.monotonic() < deadline

    assert residency["resident"] >= 4096
    assert len(residency["held"]) == 256


def test_nothing_newer_is_none(feed: Feed) -> None:
    assert feed.wait(1 << 60, 0.01) is None


def test_the_end_is_a_state_that_stays(feed: Feed, machine: FakeMachine) -> None:
    feed.wait(0, 5)
    with machine.lock:
        machine.request_quit()
    deadline = time.monotonic() + 10
    while feed.state.ended is None and time.monotonic() < deadline:
        feed.wait(feed.state.number, 0.1)

    assert feed.state.ended == "the VM has ended"
    assert feed.state.view["name"] == "vm1", "what was last seen is still there"
    feed.close()
    assert feed.state.ended == "the VM has ended"


@pytest.mark.usefixtures("runtime_root")
def test_a_vm_that_does_not_run(live: MachineDir, machine: FakeMachine) -> None:
    with machine.lock:
        machine.request_quit()
    time.sleep(0.2)

    with pytest.raises(NoSuchMachine):
        Feed(live, cells=1)


def test_rates_are_taken_over_two_seconds() -> None:
    rates = Rates()

    def at(seconds: float, requests: int, size: int) -> tuple[float, float]:
        found = rates.of("vmem0", int(seconds * 1e6), {"requests": requests, "size": size})
        return found["requests"], found["size"]

    assert at(10, 5, 0) == (0.0, 0.0)
    assert at(11, 15, 100) == (10.0, 100.0)
    assert at(12, 15, 100) == (5.0, 50.0)
    assert at(13, 15, 40) == (0.0, -30.0)
    assert at(13, 15, 40)[0] == 0.0
    assert at(14, 3, 0) == (0.0, 0.0), "counters that fall back are another machine's"
