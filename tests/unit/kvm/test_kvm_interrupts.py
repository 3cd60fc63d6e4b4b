"""Interrupts into real guest code: pins through the PIC, MSIs through irqfds, and other CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minivmm.errors import HostError
from minivmm.kvm import abi

pytestmark = pytest.mark.kvm

HANDLER = 0x1800
X2APIC_ON = bytes.fromhex(
    "66b91b000000 0f32 660d000c0000 0f30"  # IA32_APIC_BASE: enable, x2APIC
    "66b90f080000 66b8ff010000 6631d2 0f30"  # spurious vector register: enable
)
SERVE = bytes.fromhex("e677 fa f4")  # handler: out 77h,al; cli; hlt
WAIT = bytes.fromhex("e670 fb f4 ebfd")  # out 70h,al; sti; hlt; again


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def set_vector(guest: Any, vector: int) -> None:
    guest.poke(HANDLER, SERVE)
    guest.poke(4 * vector, HANDLER.to_bytes(4, "little"))


def next_port(cpu: Any) -> int:
    assert cpu.run() == abi.Exit.IO
    return int(cpu.io.port)


def test_pin_reaches_the_boot_cpu_through_pic_and_lint0(boot: Callable) -> None:
    # Initialise the master PIC with vector base 8, then unmask pin 4 alone.
    pic = bytes.fromhex("b011e620 b008e621 b004e621 b001e621 b0efe621")
    guest = boot(pic + WAIT)
    set_vector(guest, 8 + 4)
    assert next_port(guest.cpu) == 0x70

    guest.vm.set_irq_line(4, True)

    assert next_port(guest.cpu) == 0x77


def test_irqfd_delivers_the_routed_msi(boot: Callable, eventfd: int) -> None:
    guest = boot(X2APIC_ON + WAIT)
    set_vector(guest, 0x41)
    guest.vm.set_routes({24: (0xFEE0_0000, 0x41)})
    guest.vm.set_irqfd(eventfd, 24)
    assert next_port(guest.cpu) == 0x70

    os.eventfd_write(eventfd, 1)

    assert next_port(guest.cpu) == 0x77


def test_a_changed_route_counts_for_later_signals(boot: Callable, eventfd: int) -> None:
    guest = boot(X2APIC_ON + WAIT)
    set_vector(guest, 0x52)
    guest.vm.set_routes({24: (0xFEE0_0000, 0x41)})
    guest.vm.set_irqfd(eventfd, 24)
    assert next_port(guest.cpu) == 0x70

    guest.vm.set_routes({24: (0xFEE0_0000, 0x52)})
    os.eventfd_write(eventfd, 1)

    assert next_port(guest.cpu) == 0x77


def test_irqfd_is_taken_back(boot: Callable, eventfd: int) -> None:
    guest = boot(X2APIC_ON + WAIT)
    guest.vm.set_routes({24: (0xFEE0_0000, 0x41)})
    guest.vm.set_irqfd(eventfd, 24)

    guest.vm.set_irqfd(eventfd, 24, assign=False)
    os.eventfd_write(eventfd, 1)

    assert os.eventfd_read(eventfd) == 1  # nobody consumed it


def test_irqfd_may_come_before_its_route(boot: Callable, eventfd: int) -> None:
    guest = boot(X2APIC_ON + WAIT)
    set_vector(guest, 0x41)
    guest.vm.set_irqfd(eventfd, 24)
    assert next_port(guest.cpu) == 0x70
    os.eventfd_write(eventfd, 1)  # goes nowhere

    guest.vm.set_routes({24: (0xFEE0_0000, 0x41)})
    os.eventfd_write(eventfd, 1)

    assert next_port(guest.cpu) == 0x77


def test_no_address_or_data_of_a_guest_makes_a_route_fail(boot: Callable) -> None:
    vm = boot(WAIT).vm
    extremes = (0, 0x1234_5678_9ABC_DEF3, 0xFFFF_FFFF_FFFF_FFFF)

    for address in extremes:
        vm.set_routes({24 + n: (address, data) for n, data in enumerate((0, 0xFFFF_FFFF))})


def test_a_second_irqfd_on_the_same_eventfd_is_an_error_that_names_the_gsi(
    boot: Callable, eventfd: int
) -> None:
    vm = boot(WAIT).vm
    vm.set_irqfd(eventfd, 24)

    with pytest.raises(HostError, match=r"GSI 24.*KVM_IRQFD"):
        vm.set_irqfd(eventfd, 24)


INIT_AND_SIPI = bytes.fromhex(
    "66b930080000 6631d2 66b800450c00 0f30 66b802460c00 0f30"  # ICR: INIT; SIPI to 2000h
)


def test_other_cpus_wait_for_init_and_sipi(boot: Callable, in_thread: Callable) -> None:
    guest = boot(X2APIC_ON + INIT_AND_SIPI + WAIT)
    other = guest.add_cpu(None)
    guest.poke(0x2000, bytes.fromhex("e699 f4"))
    reasons: list[int] = []

    def loop() -> None:
        reasons.append(other.run())  # interrupted while uninitialised
        while other.run() == abi.Exit.INTR:
            pass
        reasons.append(other.io.port)

    thread = in_thread(loop)
    thread.join(0.05)
    assert thread.is_alive()
    other.kick()
    assert next_port(guest.cpu) == 0x70
    thread.join(5)

    assert reasons == [abi.Exit.INTR, 0x99]
