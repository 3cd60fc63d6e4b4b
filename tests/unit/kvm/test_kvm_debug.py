"""Debugging real guest code: registers, page tables, steps, watched addresses, the probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from minivmm.errors import HostError
from minivmm.guest_code import OUT_TRAP, TRAP_PORT
from minivmm.kvm import abi
from minivmm.kvm.debug import Watch, dr7
from minivmm.kvm.debug_abi import DR6_SINGLE_STEP, VECTOR_DB, GuestDebug
from minivmm.kvm.debug_probe import probe
from minivmm.kvm.system import System

pytestmark = pytest.mark.kvm

CODE = 0x1000
NOPS = bytes.fromhex("90 90 90 90 f4")
STEP = GuestDebug.ENABLE | GuestDebug.SINGLESTEP


def test_a_step_ends_behind_one_instruction(boot64: Callable) -> None:
    cpu = boot64(NOPS).cpu

    for done in (1, 2, 3):
        cpu.debug.control(STEP)
        assert cpu.run() == abi.Exit.DEBUG
        event = cpu.debug.event()
        assert (event.exception, event.pc) == (VECTOR_DB, CODE + done)
        assert event.dr6 & DR6_SINGLE_STEP
        assert cpu.debug.registers()["rip"] == CODE + done


def test_after_the_last_step_the_guest_runs_freely(boot64: Callable) -> None:
    cpu = boot64(NOPS[:4] + OUT_TRAP).cpu
    cpu.debug.control(STEP)
    cpu.run()

    cpu.debug.control(GuestDebug(0))

    assert cpu.run() == abi.Exit.IO
    assert cpu.io.port == TRAP_PORT


def test_a_watched_instruction_stops_before_it_runs(boot64: Callable, system: System) -> None:
    if not probe(system).hardware:
        pytest.skip("this KVM does not report watched addresses")
    cpu = boot64(NOPS).cpu

    cpu.debug.control(GuestDebug.ENABLE | GuestDebug.USE_HW_BP, (None, Watch(CODE + 2)))

    assert cpu.run() == abi.Exit.DEBUG
    assert cpu.debug.event().pc == CODE + 2
    assert cpu.debug.event().dr6 & 0xF == 1 << 1


def test_registers_are_those_of_the_guest(boot64: Callable) -> None:
    values = boot64(NOPS).cpu.debug.registers()

    assert values["rip"] == CODE
    assert (values["rsi"], values["rbx"]) == (0x1234, 0x55)
    assert values["cr3"] == 0x2000
    assert values["efer"] == 0x500
    assert (values["cs"], values["ds"]) == (0x10, 0x18)
    assert values["fctrl"] in (0x37F, 0x40)  # as after FNINIT, or after power-on
    assert values["mxcsr"] == 0x1F80


def test_every_register_that_can_be_set_is(boot64: Callable) -> None:
    debug = boot64(NOPS).cpu.debug
    changes = {
        "rax": 1 << 63,
        "r15": 0x1515,
        "rip": CODE + 3,
        "eflags": 0x46,
        "fs_base": 0x7000_0000_1000,
        "gs_base": 0xFFFF_8000_0000_2000,
        "k_gs_base": 0x3000,
        "cr2": 0x4444,
        "st0": 0x3FFF_8000_0000_0000_0000,
        "ftag": 0xFFFC,
        "fioff": 0x55,
        "xmm15": (1 << 127) | 5,
        "mxcsr": 0x1F00,
    }
    before = debug.registers()

    debug.set_registers(changes)

    assert debug.registers() == before | changes


def test_a_segment_cannot_be_set(boot64: Callable) -> None:
    with pytest.raises(HostError, match="cs cannot be set"):
        boot64(NOPS).cpu.debug.set_registers({"cs": 8})


def test_addresses_are_translated_by_the_guests_page_tables(boot64: Callable) -> None:
    debug = boot64(NOPS).cpu.debug

    assert debug.translate(CODE + 5) == CODE + 5
    assert debug.translate(0x20_0000) is None  # 2 MiB are mapped


def test_a_guest_without_kvmclock_does_not_mind_a_pause(boot64: Callable) -> None:
    boot64(NOPS).cpu.debug.tell_of_pause()


def test_the_probe_believes_what_it_sees(system: System) -> None:
    features = probe(system)

    assert features == replace(features, block_interrupts=True)  # Linux 5.15


@pytest.mark.parametrize(
    ("watch", "bits"),
    [
        (Watch(0x1000), 0x2),
        (Watch(0x1000, 4, "write"), 0x2 | 0b1101 << 16),
        (Watch(0x1000, 8, "access"), 0x2 | 0b1011 << 16),
        (Watch(0x1000, 2, "access"), 0x2 | 0b0111 << 16),
    ],
)
def test_dr7_has_the_bits_of_the_manual(watch: Watch, bits: int) -> None:
    assert dr7((watch,)) == 0x400 | bits
    assert dr7((None, watch)) == 0x400 | (bits & 0xFF) << 2 | (bits >> 16) << 20
