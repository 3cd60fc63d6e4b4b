"""KvmInterrupts: pins go straight to KVM; a message has one GSI, one eventfd, a movable route."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from minivmm.interrupts import KvmInterrupts
from minivmm.spec.platform import FIRST_MSI_GSI
from minivmm.testing.fake_kvm import FakeVm

ADDRESS = 0xFEE0_1000


class CountingVm(FakeVm):
    """Counts the slow call."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[dict[int, tuple[int, int]]] = []

    def set_routes(self, msi: object) -> None:
        self.tables.append(dict(msi))  # type: ignore[call-overload]
        super().set_routes(msi)  # type: ignore[arg-type]


@pytest.fixture
def vm() -> CountingVm:
    return CountingVm()


@pytest.fixture
def interrupts(vm: CountingVm) -> Iterator[KvmInterrupts]:
    controller = KvmInterrupts(vm)
    yield controller
    controller.close()


def test_a_pin_follows_its_level(vm: CountingVm, interrupts: KvmInterrupts) -> None:
    line = interrupts.line(4)

    line.set(True)
    assert vm.irq_lines == {4: True}
    line.set(False)

    assert vm.irq_lines == {4: False}


def test_the_first_route_arms_the_eventfd(vm: CountingVm, interrupts: KvmInterrupts) -> None:
    message = interrupts.msi()
    assert vm.irqfds == set()

    message.route(ADDRESS, 0x41)

    assert vm.routes == {FIRST_MSI_GSI: (ADDRESS, 0x41)}
    assert vm.irqfds == {(message.fd, FIRST_MSI_GSI)}


def test_a_moved_message_keeps_its_gsi_and_eventfd(
    vm: CountingVm, interrupts: KvmInterrupts
) -> None:
    message = interrupts.msi()
    message.route(ADDRESS, 0x41)
    armed = set(vm.irqfds)

    message.route(ADDRESS + 0x1000, 0x42)

    assert vm.routes == {message.gsi: (ADDRESS + 0x1000, 0x42)}
    assert vm.irqfds == armed


def test_the_same_route_again_costs_nothing(vm: CountingVm, interrupts: KvmInterrupts) -> None:
    message = interrupts.msi()

    message.route(ADDRESS, 0x41)
    message.route(ADDRESS, 0x41)

    assert len(vm.tables) == 1


def test_a_new_route_keeps_all_others(vm: CountingVm, interrupts: KvmInterrupts) -> None:
    first, second = interrupts.msi(), interrupts.msi()

    first.route(ADDRESS, 1)
    second.route(ADDRESS, 2)

    assert first.gsi != second.gsi
    assert vm.routes == {first.gsi: (ADDRESS, 1), second.gsi: (ADDRESS, 2)}


def test_a_signal_is_a_count_in_the_eventfd(interrupts: KvmInterrupts) -> None:
    message = interrupts.msi()
    message.route(ADDRESS, 0x41)

    message.signal()
    message.signal()

    assert os.eventfd_read(message.fd) == 2


def test_close_closes_every_eventfd_once(interrupts: KvmInterrupts) -> None:
    fds = [interrupts.msi().fd for _ in range(3)]

    interrupts.close()
    interrupts.close()

    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_muted_message_waits_in_its_eventfd(vm: CountingVm, interrupts: KvmInterrupts) -> None:
    message = interrupts.msi()
    message.route(ADDRESS, 0x41)
    message.mute()
    message.mute()

    assert vm.irqfds == set()
    assert not message.due
    message.signal()
    assert message.due

    message.route(ADDRESS, 0x41)

    assert vm.irqfds == {(message.fd, FIRST_MSI_GSI)}
    assert not message.due  # KVM looks at it, as it does whenever an irqfd is made
    assert len(vm.tables) == 1


def test_wire_is_a_resampled_irqfd_while_connected(
    vm: CountingVm, interrupts: KvmInterrupts
) -> None:
    wire = interrupts.wire(17)
    assert vm.irqfds == set()

    wire.connect(True)
    wire.connect(True)

    assert vm.irqfds == {(wire.trigger, 17)}
    assert vm.resamplers == {17: wire.served}
    wire.connect(False)
    assert vm.irqfds == set()
