"""A vCPU's state, and what KVM keeps for its VM, taken to another VM: the guest cannot tell."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from minivmm.errors import BadState
from minivmm.kvm import abi
from minivmm.kvm.pieces import get_pieces
from minivmm.kvm.saved import get_chip
from minivmm.kvm.saved_forms import VCPU, VM
from minivmm.kvm.state import MSR_TSC, read_msrs
from minivmm.kvm.vcpu import Vcpu

pytestmark = pytest.mark.kvm

SECONDS = 1.0
"""For tries at random: thousands, but few in the lab."""

LIVED_IN = bytes.fromhex(
    "66b976010000 66b811223344 6631d2 0f30"  # SYSENTER_EIP
    "66b900020000 66b800000080 6631d2 0f30"  # first variable MTRR
    "0f20e0 660d00060000 0f22e0 0f10060006"  # CR4: enable SSE; XMM0 from 600h
    "66b878563412 66bbefbeadde"  # EAX, EBX
    "e680"  # out 80h
    "0f11060007 e681"  # XMM0 to 700h; out 81h
)
"""A program of two halves, with registers of all kinds to carry over from one to the other."""


def run_to_port(vcpu: Vcpu, port: int) -> None:
    assert vcpu.run() == abi.Exit.IO
    assert vcpu.io.port == port


def state_of(vcpu: Vcpu) -> dict[str, Any]:
    """All of it, without clocks."""
    pieces = {name: bytes(value) for name, value in get_pieces(vcpu._fd, vcpu._traits).items()}
    msrs = read_msrs(vcpu._fd, vcpu.msr_indices)
    return pieces | {"msrs": {i: value for i, value in msrs.items() if i != MSR_TSC}}


@pytest.fixture
def move(boot: Callable) -> Callable:
    """move(guest) -> another with its memory, CPU state and interrupt controllers."""

    def to_another(guest: Any, parts: tuple[str, ...] = ("cpu", "vm")) -> Any:
        guest.cpu.finish_access()
        other = boot(b"")
        other.poke(0, guest.peek(0, guest.ram.size))
        if "cpu" in parts:
            other.cpu.load_state(guest.cpu.save_state())
        if "vm" in parts:
            other.vm.load_state(guest.vm.save_state())
        return other

    return to_another


def test_a_program_goes_on_in_another_vm(boot: Callable, move: Callable) -> None:
    guest = boot(LIVED_IN)
    guest.poke(0x600, b"sixteen bytes...")
    run_to_port(guest.cpu, 0x80)

    other = move(guest)

    assert state_of(other.cpu) == state_of(guest.cpu)
    guest.vm.close()
    run_to_port(other.cpu, 0x81)
    assert other.peek(0x700, 16) == b"sixteen bytes..."
    assert state_of(other.cpu)["msrs"][0x176] == 0x44332211


def test_saving_changes_nothing(boot: Callable) -> None:
    guest = boot(LIVED_IN)
    run_to_port(guest.cpu, 0x80)
    guest.cpu.finish_access()
    before = state_of(guest.cpu)

    guest.cpu.save_state(), guest.vm.save_state()

    assert state_of(guest.cpu) == before
    run_to_port(guest.cpu, 0x81)


def test_a_read_from_a_device_is_finished_before(boot: Callable, move: Callable) -> None:
    guest = boot(bytes.fromhex("a10080 a30005 e680"))  # mov ax,[8000h]; mov [500h],ax; out
    assert guest.cpu.run() == abi.Exit.MMIO
    guest.cpu.set_mmio_value(0x2222)

    other = move(guest)

    assert "rip=0x1003 " in other.cpu.describe()
    run_to_port(other.cpu, 0x80)
    assert other.peek(0x500, 2) == b"\x22\x22"


def test_the_time_stamp_counter_goes_on_where_it_was(boot: Callable) -> None:
    saved = VCPU.parse(boot(b"").cpu.save_state())
    entry = next(one for one in saved.msrs if one.index == MSR_TSC)
    entry.value = later = entry.value + (1 << 45)  # as if the guest had lived for hours

    cpu = boot(b"").cpu
    if read_msrs(cpu._fd, (MSR_TSC,))[MSR_TSC] > 1 << 44:
        pytest.skip("this KVM gives guests the host's own time stamp counter (kvm_pvm)")
    cpu.load_state(VCPU.build(saved))

    ticks = read_msrs(cpu._fd, (MSR_TSC,))[MSR_TSC] - later
    assert 0 <= ticks < 60_000_000_000


def test_the_clock_goes_on_where_it_was(boot: Callable) -> None:
    saved = VM.parse(boot(b"").vm.save_state())
    saved.clock = hours = saved.clock + 10**13  # nanoseconds: as if the guest had lived for hours

    vm = boot(b"").vm
    vm.load_state(VM.build(saved))

    assert 0 <= vm.clock() - hours / 1e9 < 60


def test_an_interrupt_that_waits_is_delivered_there(boot: Callable, move: Callable) -> None:
    program_pic = "b011e620 b040e621 b004e621 b001e621 b0efe621"  # vectors 40h, all but 4 masked
    guest = boot(bytes.fromhex(program_pic + "e680 fb 90 f4"))
    guest.poke(4 * 0x44, bytes.fromhex("00200000"))  # vector 44h: 0000:2000h
    guest.poke(0x2000, bytes.fromhex("e699"))
    run_to_port(guest.cpu, 0x80)
    guest.vm.set_irq_line(4, True)
    guest.cpu.finish_access()

    other = boot(b"")
    other.poke(0, guest.peek(0, guest.ram.size))
    other.vm.set_irq_line(4, True)  # its device does that, before
    other.cpu.load_state(guest.cpu.save_state())
    other.vm.load_state(guest.vm.save_state())

    chips = [abi.CHIP_PIC_MASTER, abi.CHIP_PIC_SLAVE, abi.CHIP_IOAPIC]
    for chip in chips:
        here, there = (bytes(get_chip(one.vm._fd, chip)) for one in (other, guest))
        assert here == there
    run_to_port(other.cpu, 0x99)


def test_a_cpu_that_was_told_to_start_starts_there(boot: Callable) -> None:
    x2apic = bytes.fromhex("66b91b000000 0f32 660d000c0000 0f30")
    init = bytes.fromhex("66b930080000 6631d2 66b800450c00 0f30 66b802460c00 0f30")
    guest = boot(x2apic + init + bytes.fromhex("e680"))
    second = guest.add_cpu(None)
    run_to_port(guest.cpu, 0x80)  # the SIPI waits at the other CPU, which has not run since
    guest.cpu.finish_access()
    saved = [guest.cpu.save_state(), second.save_state()]

    other = boot(b"")
    other.add_cpu(None)
    other.poke(0x2000, bytes.fromhex("e699"))
    for vcpu, data in zip(other.vcpus, saved, strict=True):
        vcpu.load_state(data)

    run_to_port(other.vcpus[1], 0x99)


def test_a_reset_after_loading_gives_the_power_on_state(boot: Callable, move: Callable) -> None:
    guest = boot(LIVED_IN)
    guest.reset()
    fresh = state_of(guest.cpu)
    run_to_port(guest.cpu, 0x80)
    other = move(guest)

    other.reset()

    assert state_of(other.cpu) == fresh
    run_to_port(other.cpu, 0x80)


# -- what does not make sense ----------------------------------------------------------------------


def test_a_state_cut_short_or_grown_is_refused(boot: Callable) -> None:
    cpu, vm = (guest := boot(b"")).cpu, guest.vm
    whole = cpu.save_state()
    for size in (*range(40), *range(40, len(whole), 211)):
        with pytest.raises(BadState, match=r"saved state of cpu0: "):
            cpu.load_state(whole[:size])
    with pytest.raises(BadState, match="its form ends"):
        cpu.load_state(whole + b"\0")
    for data in (b"", vm.save_state()[:-1], vm.save_state() + b"\0"):
        with pytest.raises(BadState, match="saved state of chips: length"):
            vm.load_state(data)


def test_flipped_bits_are_refused_or_are_a_state(boot: Callable) -> None:
    """Whatever a hostile file says: one line, or a guest that could have come there itself."""
    guest = boot(b"")
    chance = random.Random(7)
    for part in (guest.cpu, guest.vm):
        whole = part.save_state()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            data = bytearray(whole)
            at = chance.randrange(len(data) * 8)
            data[at // 8] ^= 1 << at % 8
            try:
                part.load_state(bytes(data))
            except BadState as error:
                assert "\n" not in str(error)
        part.load_state(whole)


def test_msrs_that_no_guest_can_write_are_refused(boot: Callable) -> None:
    cpu = boot(b"").cpu
    saved = VCPU.parse(cpu.save_state())

    saved.msrs[3].index = 0xDEAD_BEEF
    with pytest.raises(BadState, match="MSR 0xdeadbeef: this host does not have it"):
        cpu.load_state(VCPU.build(saved))
    saved.msrs[3].index = saved.msrs[4].index
    with pytest.raises(BadState, match="one is there twice"):
        cpu.load_state(VCPU.build(saved))


def test_an_ioapic_elsewhere_is_refused(boot: Callable) -> None:
    vm = boot(b"").vm
    whole = vm.save_state()
    at = whole.index((0xFEC0_0000).to_bytes(8, "little"))

    with pytest.raises(BadState, match="IOAPIC address 0xfed00000"):
        vm.load_state(whole[:at] + (0xFED0_0000).to_bytes(8, "little") + whole[at + 8 :])


def test_pieces_of_another_kind_of_host_are_refused(boot: Callable) -> None:
    cpu = boot(b"").cpu
    saved = VCPU.parse(cpu.save_state())

    saved.pieces[1].value = saved.pieces[1].value[:-1]
    with pytest.raises(BadState, match=r"size of regs 143: this host's KVM has 144 bytes"):
        cpu.load_state(VCPU.build(saved))
    del saved.pieces[1]
    with pytest.raises(BadState, match=r"pieces mp-state, sregs, .*: this host has mp-state, regs"):
        cpu.load_state(VCPU.build(saved))
