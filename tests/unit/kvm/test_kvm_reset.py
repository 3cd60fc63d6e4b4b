"""Reset: whatever a guest did to its CPU, afterwards it is as it was at power-on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from minivmm.errors import HostError
from minivmm.kvm import abi, state
from minivmm.kvm.saved import get_chip
from minivmm.kvm.state import MSR_TSC, PowerOnState
from minivmm.kvm.vcpu import Vcpu

pytestmark = pytest.mark.kvm

MCG_CAP = 0x179

CLOBBER = bytes.fromhex(
    "66b91b000000 0f32 660d000c0000 0f30"  # x2APIC mode
    "66b90f080000 66b8ff010000 6631d2 0f30"  # spurious vector register: enable
    "66b932080000 66b841000200 6631d2 0f30"  # timer: periodic, vector 41h
    "66b938080000 66b8ffffff00 6631d2 0f30"  # timer: start
    "66b976010000 66b811223344 6631d2 0f30"  # SYSENTER_EIP
    "66b9004d564b 66b8010c0000 6631d2 0f30"  # kvmclock's wall clock, at c00h
    "66b900020000 66b800000080 6631d2 0f30"  # first variable MTRR
    "66b8e0ff0000 0f23f8"  # DR7
    "0f20e0 660d00060000 0f22e0 0f10060006"  # CR4: enable SSE; XMM0
    "b8ffff 8ed8 bc0060"  # DS, SP
    "e680 e681"  # out 80h; out 81h
)


def frozen_state(vcpu: Vcpu) -> dict[str, Any]:
    """Everything that reset must bring back, by name, without the ticking TSC."""
    now = PowerOnState(vcpu._fd, vcpu._traits)
    plain = {name: bytes(value) for name, value in now._pieces.items()}
    return plain | {"msrs": {i: v for i, v in now._msrs if i != MSR_TSC}}


def run_to_port(vcpu: Vcpu, port: int) -> None:
    assert vcpu.run() == abi.Exit.IO
    assert vcpu.io.port == port


def test_reset_brings_everything_back(boot: Callable) -> None:
    guest = boot(CLOBBER)
    guest.poke(0x600, b"sixteen bytes...")
    power_on = frozen_state(guest.cpu)
    guest.cpu.reset(None)
    bare = frozen_state(guest.cpu)
    guest.reset()
    assert frozen_state(guest.cpu) == power_on
    run_to_port(guest.cpu, 0x80)
    clobbered = frozen_state(guest.cpu)
    changed = {name for name in power_on if clobbered[name] != power_on[name]}

    guest.reset()

    assert {"regs", "sregs", "lapic", "debugregs", "xsave", "msrs"} <= changed
    assert frozen_state(guest.cpu) == power_on
    guest.cpu.reset(None)
    assert frozen_state(guest.cpu) == bare


def test_pending_out_is_not_completed_on_top_of_the_new_registers(boot: Callable) -> None:
    guest = boot(bytes.fromhex("90 e680 e681"))
    run_to_port(guest.cpu, 0x80)

    guest.reset()

    assert "rip=0x1000 " in guest.cpu.describe()
    run_to_port(guest.cpu, 0x80)
    run_to_port(guest.cpu, 0x81)


def test_pending_mmio_read_is_not_completed_on_top_of_the_new_registers(boot: Callable) -> None:
    guest = boot(bytes.fromhex("a10080 a30005 e680"))  # mov ax,[8000h]; mov [500h],ax
    assert guest.cpu.run() == abi.Exit.MMIO
    guest.cpu.set_mmio_value(0x1111)

    guest.reset()

    assert guest.cpu.run() == abi.Exit.MMIO
    guest.cpu.set_mmio_value(0x2222)
    run_to_port(guest.cpu, 0x80)
    assert guest.peek(0x500, 2) == b"\x22\x22"


def test_finish_access_completes_the_instruction_and_nothing_more(boot: Callable) -> None:
    guest = boot(bytes.fromhex("a10080 a30005 e680"))  # mov ax,[8000h]; mov [500h],ax; out
    assert guest.cpu.run() == abi.Exit.MMIO
    guest.cpu.set_mmio_value(0x2222)

    guest.cpu.finish_access()

    assert "rip=0x1003 " in guest.cpu.describe()
    assert guest.peek(0x500, 2) == b"\0\0"
    run_to_port(guest.cpu, 0x80)
    assert guest.peek(0x500, 2) == b"\x22\x22"


def test_reset_in_the_middle_of_a_string_out(boot: Callable) -> None:
    guest = boot(bytes.fromhex("be0006 b90010 baf803 fc f36e"))
    run_to_port(guest.cpu, 0x3F8)

    guest.reset()

    assert "rip=0x1000 " in guest.cpu.describe()
    run_to_port(guest.cpu, 0x3F8)


def test_reset_out_of_a_triple_fault(boot64: Callable) -> None:
    guest = boot64(bytes.fromhex("e680 0f0b"))  # out 80h,al; ud2, with an empty IDT
    run_to_port(guest.cpu, 0x80)
    assert guest.cpu.run() == abi.Exit.SHUTDOWN

    guest.reset()

    run_to_port(guest.cpu, 0x80)


def test_a_kick_before_reset_is_still_there_after_it(boot: Callable) -> None:
    guest = boot(bytes.fromhex("e680"))
    guest.cpu.run()
    guest.cpu.kick()

    guest.reset()

    assert guest.cpu.run() == abi.Exit.INTR
    run_to_port(guest.cpu, 0x80)


def test_a_reset_without_kick_leaves_none(boot: Callable) -> None:
    guest = boot(bytes.fromhex("e680"))
    guest.cpu.run()

    guest.reset()

    run_to_port(guest.cpu, 0x80)


def test_another_cpu_is_uninitialised_again_and_forgets_a_waiting_sipi(boot: Callable) -> None:
    x2apic = bytes.fromhex("66b91b000000 0f32 660d000c0000 0f30")
    init = bytes.fromhex("66b930080000 6631d2 66b800450c00 0f30 66b802460c00 0f30")
    guest = boot(x2apic + init + bytes.fromhex("e680"))
    other = guest.add_cpu(None)
    guest.poke(0x2000, bytes.fromhex("e699"))
    run_to_port(guest.cpu, 0x80)  # the SIPI waits at the other CPU, which has not run since

    guest.reset()
    other.reset(None)
    other.kick()

    assert other.run() == abi.Exit.INTR
    mp_state = abi.KvmMpState.from_buffer_copy(frozen_state(other)["mp-state"])
    assert mp_state.mp_state == abi.MpState.UNINITIALIZED


def test_reset_irqchips_undoes_what_the_guest_programmed(boot: Callable) -> None:
    guest = boot(bytes.fromhex("b011e620 b040e621 b004e621 b001e621 b0efe621 e680"))
    before = [bytes(get_chip(guest.vm._fd, chip)) for chip in range(3)]
    run_to_port(guest.cpu, 0x80)
    assert bytes(get_chip(guest.vm._fd, abi.CHIP_PIC_MASTER)) != before[0]

    guest.vm.reset_irqchips()

    assert [bytes(get_chip(guest.vm._fd, chip)) for chip in range(3)] == before


def test_a_refused_msr_is_named(boot: Callable) -> None:
    cpu = boot(b"").cpu

    with pytest.raises(HostError, match="MSR 0xdeadbeef"):
        state.write_msrs(cpu._fd, [(0x174, 0), (0xDEAD_BEEF, 1), (0x175, 0)])


def test_lint_pins_are_wired_as_on_a_pc(boot: Callable) -> None:
    lapic = frozen_state(boot(b"").cpu)["lapic"]
    registers = abi.KvmLapicState.from_buffer_copy(lapic)

    assert registers[abi.LAPIC_LVT_LINT0] >> 8 & 7 == 7
    assert registers[abi.LAPIC_LVT_LINT1] >> 8 & 7 == 4


def test_one_bank_of_machine_checks_is_all_that_a_guest_must_look_at(boot: Callable) -> None:
    guest = boot(CLOBBER)

    (capabilities,) = state.read_msrs(guest.cpu._fd, [MCG_CAP]).values()

    assert capabilities & 0xFF == 1
