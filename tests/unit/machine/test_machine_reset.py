"""A reset is a power-on without the power: memory, devices, irqchips, vCPUs; targets stay."""

from __future__ import annotations

import time
from typing import Any

import pytest

from minivmm.errors import HostError
from minivmm.spec.platform import KEYBOARD_PORT, RESET_PORT, RESET_VALUE, SERIAL_PORT
from minivmm.spec.virtio_mem import ResponseType
from minivmm.testing.fake_kvm import FakeVcpu
from minivmm.testing.mem_driver import MemDriver
from minivmm.testing.tiny_kernel import LONG_ENTRY
from minivmm.units import MIB

RESET = bytes([RESET_VALUE])
KERNEL_START = 16 * MIB + LONG_ENTRY
SCRATCH = SERIAL_PORT + 7
BLOCKS = 256 * MIB // (2 * MIB)


@pytest.mark.parametrize(("port", "value"), [(RESET_PORT, RESET), (KEYBOARD_PORT, b"\xfe")])
def test_the_guest_can_reset(rig: Any, port: int, value: bytes) -> None:
    rig.vcpus[0].script_out(port, value)

    rig.start()

    assert rig.wait_for_event("RESET") == {"guest": True, "reason": "guest-reset"}
    assert rig.machine.state == "running"
    assert rig.outcomes == []


def test_the_host_can_reset(rig4: Any) -> None:
    rig4.start()

    rig4.locked(rig4.machine.request_reset)

    data = rig4.wait_for_event("RESET")
    assert data == {"guest": False, "reason": "host-qmp-system-reset"}
    for vcpu in rig4.vcpus:
        vcpu.script_out(SERIAL_PORT, b"x")
    assert all(vcpu.wait_idle() for vcpu in rig4.vcpus)


def test_ram_is_emptied_and_the_kernel_loaded_again(rig: Any) -> None:
    memory = rig.machine.board.memory
    kernel = memory.read(KERNEL_START, 4096)
    low = memory.read(0, MIB)
    memory.write(KERNEL_START, b"overwritten")
    memory.write(40 * MIB, b"left behind")
    rig.start()

    rig.locked(rig.machine.request_reset)
    rig.wait_for_event("RESET")

    assert kernel == b"\xf4" * 4096
    assert memory.read(KERNEL_START, 4096) == kernel
    assert memory.read(40 * MIB, 11) == bytes(11)
    assert memory.read(0, MIB) == low


def test_plugged_memory_goes_and_the_target_stays(rig: Any) -> None:
    device = rig.machine.memory_devices["vmem0"]
    driver = MemDriver(device)
    with rig.loop.lock:
        assert driver.plug(0, BLOCKS) is ResponseType.ACK
        rig.machine.board.memory.write(device.window.base, b"content")
    assert rig.events[-1] == (
        "MEMORY_DEVICE_SIZE_CHANGE",
        {"id": "vmem0", "size": 256 * MIB, "qom-path": "/machine/peripheral/vmem0"},
    )
    rig.start()

    rig.locked(rig.machine.request_reset)
    rig.wait_for_event("RESET")

    assert device.plugged_size == 0
    assert device.requested_size == 256 * MIB
    assert device.region.resident_in(0, 2 * MIB) == 0
    assert rig.events[-2][0] == "MEMORY_DEVICE_SIZE_CHANGE"
    assert rig.events[-2][1]["size"] == 0


def test_devices_irqchips_and_vcpus_are_as_at_power_on(rig4: Any) -> None:
    rig4.vcpus[0].script_out(SCRATCH, b"\x5a")
    rig4.start()
    assert rig4.vcpus[0].wait_idle()

    rig4.locked(rig4.machine.request_reset)
    rig4.wait_for_event("RESET")
    scratch = rig4.vcpus[0].script_in(SCRATCH)

    assert rig4.vcpus[0].wait_idle()
    assert scratch.value == 0
    assert rig4.vm.irqchip_resets == 1
    first, again = rig4.vcpus[0].states
    assert first is not None
    assert first == again
    assert [vcpu.states for vcpu in rig4.vcpus[1:]] == [[None, None]] * 3


def guard_reset(rig: Any, monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Notes which vCPUs are in the guest while the machine is being reset."""
    seen: list[set[int]] = []
    for owner, name in [(rig.vm, "reset_irqchips"), *((vcpu, "reset") for vcpu in rig.vcpus)]:
        original = getattr(owner, name)

        def watched(*args: object, original: Any = original) -> None:
            seen.append(set(rig.inside))
            original(*args)
            seen.append(set(rig.inside))

        monkeypatch.setattr(owner, name, watched)
    return seen


def test_no_vcpu_runs_during_a_reset(rig4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = guard_reset(rig4, monkeypatch)
    for vcpu in rig4.vcpus:
        for _ in range(20):
            vcpu.script_out(SERIAL_PORT, b"x")
        vcpu.script_out(RESET_PORT, RESET)
        vcpu.script_out(SERIAL_PORT, b"y")

    rig4.start()

    assert all(vcpu.wait_idle() for vcpu in rig4.vcpus)
    rig4.locked(rig4.machine.request_reset)
    rig4.wait_for_event("RESET", 2)
    assert seen
    assert set().union(*seen) == set()
    assert len(rig4.output) == 21 * 4


def test_a_reset_waits_for_the_slowest_vcpu(
    rig4: Any, monkeypatch: pytest.MonkeyPatch, wait: Any
) -> None:
    seen = guard_reset(rig4, monkeypatch)
    hurried = FakeVcpu.run

    def slow() -> int:
        rig4.inside.add(3)
        reason = hurried(rig4.vcpus[3])
        time.sleep(0.05)  # the way out of a guest can take long
        rig4.inside.discard(3)
        return reason

    monkeypatch.setattr(rig4.vcpus[3], "run", slow)
    rig4.start()
    wait(lambda: len(rig4.inside) == 4)

    rig4.locked(rig4.machine.request_reset)

    rig4.wait_for_event("RESET")
    assert set().union(*seen) == set()


def test_a_reset_amid_string_output_counts(rig: Any) -> None:
    rig.vcpus[0].script_out(RESET_PORT, RESET + b"\0")

    rig.start()

    assert rig.wait_for_event("RESET")["guest"] is True


def test_two_requests_before_the_reset_are_one(rig4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = guard_reset(rig4, monkeypatch)
    rig4.start()

    rig4.locked(rig4.machine.request_reset, rig4.machine.request_reset)
    rig4.wait_for_event("RESET")
    rig4.thread.settle()

    assert rig4.names() == ["RESET"]
    assert set().union(*seen) == set()


def test_stop_and_cont_before_the_reset_do_not_undo_it(
    rig4: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = guard_reset(rig4, monkeypatch)
    rig4.start()
    machine = rig4.machine

    rig4.locked(machine.request_reset, machine.pause, machine.resume)

    rig4.wait_for_event("RESET")
    assert rig4.names() == ["STOP", "RESUME", "RESET"]
    assert set().union(*seen) == set()
    rig4.vcpus[3].script_out(SERIAL_PORT, b"x")
    assert rig4.vcpus[3].wait_idle()


def test_reset_of_a_paused_machine_resumed_at_once(
    rig4: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = guard_reset(rig4, monkeypatch)
    rig4.start()
    rig4.locked(rig4.machine.pause)
    rig4.thread.settle()

    rig4.locked(rig4.machine.request_reset, rig4.machine.resume)

    rig4.wait_for_event("RESET")
    assert set().union(*seen) == set()
    rig4.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert rig4.vcpus[0].wait_idle()


def test_reset_before_the_start(rig4: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = guard_reset(rig4, monkeypatch)

    rig4.locked(rig4.machine.request_reset, rig4.machine.start)

    rig4.wait_for_event("RESET")
    assert set().union(*seen) == set()
    rig4.vcpus[1].script_out(SERIAL_PORT, b"x")
    assert rig4.vcpus[1].wait_idle()
    assert rig4.machine.state == "running"


def test_quit_before_the_reset_wins(rig: Any) -> None:
    rig.start()

    rig.locked(rig.machine.request_reset, rig.machine.request_quit)
    rig.thread.settle()

    assert rig.names() == ["SHUTDOWN"]
    assert rig.vm.irqchip_resets == 0


@pytest.mark.parametrize("error", [HostError("cannot reset"), OSError(12, "no memory"), KeyError()])
def test_a_reset_that_fails_ends_the_machine(
    rig: Any, error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(rig.vm, "reset_irqchips", fail)
    rig.vcpus[0].script_out(RESET_PORT, RESET)

    rig.start()

    assert rig.outcome.state == "internal-error"
    assert rig.outcome.reason.startswith("the machine cannot be reset: ")
    assert "\n" not in rig.outcome.reason


def test_ten_resets_in_a_row(rig4: Any) -> None:
    for vcpu in rig4.vcpus:
        for _ in range(10):
            vcpu.script_out(SERIAL_PORT, b"x")
    for _ in range(10):
        rig4.vcpus[1].script_out(RESET_PORT, RESET)

    rig4.start()

    rig4.wait_for_event("RESET", 10)
    assert all(vcpu.wait_idle() for vcpu in rig4.vcpus)
    assert len(rig4.output) == 40
    assert rig4.machine.state == "running"
