"""Memory slots and doorbells on a real VM."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.memory.region import Access, Region

pytestmark = pytest.mark.kvm

READ_8000 = bytes.fromhex("a10080 e680 a10080 e681")  # twice: mov ax,[8000h]; out 80h/81h,al
DOORBELL = bytes.fromhex("a30480 a30480 e680 a30480")  # twice: mov [8004h],ax; out; once more


@pytest.fixture
def more() -> Iterator[Region]:
    region = Region(0x1000)
    region.view(0, 1)[:] = b"\x5a"
    yield region
    region.close()


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_a_slot_appears_and_disappears_while_the_guest_lives(boot: Callable, more: Region) -> None:
    guest = boot(READ_8000)
    guest.vm.set_memory_region(1, 0x8000, 0x1000, more.hva)
    assert guest.cpu.run() == abi.Exit.IO
    assert bytes(guest.cpu.io_data()) == b"\x5a"

    guest.vm.set_memory_region(1, 0x8000, 0, more.hva)

    assert guest.cpu.run() == abi.Exit.MMIO
    assert guest.cpu.mmio.phys_addr == 0x8000


def test_writes_to_a_readonly_slot_exit_and_reads_do_not(boot: Callable, more: Region) -> None:
    guest = boot(bytes.fromhex("a00080 e680 a20080"))  # mov al,[8000h]; out; mov [8000h],al
    guest.vm.set_memory_region(1, 0x8000, 0x1000, more.hva, readonly=True)

    assert guest.cpu.run() == abi.Exit.IO
    assert bytes(guest.cpu.io_data()) == b"\x5a"
    assert guest.cpu.run() == abi.Exit.MMIO
    assert (guest.cpu.mmio.phys_addr, guest.cpu.mmio.is_write) == (0x8000, 1)


def test_a_forbidden_page_faults_and_without_its_slot_the_access_has_an_address(
    boot: Callable, more: Region
) -> None:
    guest = boot(bytes.fromhex("b07b a20480 e680"))  # mov al,7bh; mov [8004h],al; out 80h,al
    guest.vm.set_memory_region(1, 0x8000, 0x1000, more.hva)
    more.protect(0, 0x1000, Access.NONE)

    reason = guest.cpu.run()
    if reason != abi.Exit.MMIO:  # a KVM that emulates such accesses knows the address at once
        assert reason in (abi.EXIT_EFAULT, abi.Exit.MEMORY_FAULT)
        guest.vm.set_memory_region(1, 0x8000, 0, more.hva)
        assert guest.cpu.run() == abi.Exit.MMIO

    written = (guest.cpu.mmio.phys_addr, guest.cpu.mmio.is_write, guest.cpu.mmio_value())
    assert written == (0x8004, 1, 0x7B)
    assert guest.cpu.run() == abi.Exit.IO, "the guest goes on"


@pytest.mark.parametrize(
    ("slot", "gpa", "size"),
    [(1, 0x7000, 0x2000), (1, 0x8000, 0x123), (0, 0, 0x1000)],
    ids=["overlap", "not pages", "resize"],
)
def test_a_bad_slot_is_an_error_that_names_slot_and_address(
    boot: Callable, more: Region, slot: int, gpa: int, size: int
) -> None:
    vm = boot(READ_8000).vm

    with pytest.raises(HostError, match=f"memory slot {slot} .* at {gpa:#x}"):
        vm.set_memory_region(slot, gpa, size, more.hva)


@pytest.mark.parametrize("length", [2, 0])
def test_a_doorbell_counts_and_does_not_exit(boot: Callable, eventfd: int, length: int) -> None:
    guest = boot(DOORBELL)
    guest.vm.set_ioeventfd(eventfd, 0x8004, length)

    assert guest.cpu.run() == abi.Exit.IO
    assert os.eventfd_read(eventfd) == 2

    guest.vm.set_ioeventfd(eventfd, 0x8004, length, assign=False)
    assert guest.cpu.run() == abi.Exit.MMIO
    assert guest.cpu.mmio.phys_addr == 0x8004


def test_a_write_of_another_length_is_no_doorbell(boot: Callable, eventfd: int) -> None:
    guest = boot(DOORBELL)

    guest.vm.set_ioeventfd(eventfd, 0x8004, 4)

    assert guest.cpu.run() == abi.Exit.MMIO


def test_taking_back_an_unknown_doorbell_is_an_error(boot: Callable, eventfd: int) -> None:
    vm = boot(DOORBELL).vm

    with pytest.raises(HostError, match=r"0x8004.*KVM_IOEVENTFD"):
        vm.set_ioeventfd(eventfd, 0x8004, 2, assign=False)


def test_closing_twice_is_harmless(boot: Callable) -> None:
    guest = boot(READ_8000)

    guest.vm.close()
    guest.vm.close()
