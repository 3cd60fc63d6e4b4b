"""CPU state and the tables behind it, read back as a CPU reads them (Intel SDM vol. 3)."""

import struct

import pytest

from minivmm.boot import cpu
from minivmm.memory.guest import GuestMemory
from minivmm.spec.x86 import Segment

PRESENT, WRITABLE, LARGE = 1, 2, 0x80


def entry(memory: GuestMemory, table: int, index: int) -> int:
    return int(struct.unpack("<Q", memory.read(table + 8 * index, 8))[0])


def translate(memory: GuestMemory, cr3: int, address: int) -> int:
    """4-level paging with 2 MiB pages (SDM 4.5)."""
    table = cr3
    for shift in (39, 30):
        value = entry(memory, table, address >> shift & 0x1FF)
        assert value & (PRESENT | WRITABLE | LARGE) == PRESENT | WRITABLE
        table = value & ~0xFFF
    value = entry(memory, table, address >> 21 & 0x1FF)
    assert value & (PRESENT | WRITABLE | LARGE) == PRESENT | WRITABLE | LARGE
    return value & ~0x1FFFFF | address & 0x1FFFFF


def decode(descriptor: int) -> tuple[int, int, int, int]:
    """(base, limit as encoded, access byte, flags nibble) (SDM 3.4.5)."""
    base = descriptor >> 16 & 0xFFFFFF | descriptor >> 56 << 24
    limit = descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16
    return base, limit, descriptor >> 40 & 0xFF, descriptor >> 52 & 0xF


@pytest.mark.parametrize(
    "address", [0, 0x7000, 0x1FFFFF, 0x200000, 0x3FFFFFFF, 0x40000000, 0xC0000123, 0xFFFFFFFF]
)
def test_first_4_gib_map_to_themselves(small_memory: GuestMemory, address: int) -> None:
    state = cpu.long_mode(small_memory, entry=0x1000200, zero_page=0x7000)
    assert translate(small_memory, state.sregs.cr3, address) == address


def test_nothing_above_4_gib_is_mapped(small_memory: GuestMemory) -> None:
    cr3 = cpu.long_mode(small_memory, entry=0, zero_page=0).sregs.cr3
    assert entry(small_memory, cr3, 1) == 0
    pdpt = entry(small_memory, cr3, 0) & ~0xFFF
    assert entry(small_memory, pdpt, 4) == 0


def test_long_mode_state_is_what_the_boot_protocol_asks_for(small_memory: GuestMemory) -> None:
    state = cpu.long_mode(small_memory, entry=0x1000200, zero_page=0x7000)
    assert (state.regs.rip, state.regs.rsi, state.regs.rflags) == (0x1000200, 0x7000, 2)
    assert state.sregs.cr0 & 0x80000001 == 0x80000001
    assert state.sregs.cr4 == 0x20
    assert state.sregs.efer == 0x500
    assert (state.sregs.code.selector, state.sregs.data.selector) == (0x10, 0x18)
    assert (state.sregs.code.l, state.sregs.code.db) == (1, 0)
    assert state.sregs.idt.limit == 0


def test_gdt_in_memory_matches_the_loaded_segments(small_memory: GuestMemory) -> None:
    state = cpu.long_mode(small_memory, entry=0, zero_page=0)
    gdt = state.sregs.gdt
    assert gdt.limit + 1 >= 0x30
    code = decode(entry(small_memory, gdt.base, 2))
    data = decode(entry(small_memory, gdt.base, 3))
    task = decode(entry(small_memory, gdt.base, 4))
    assert code == (0, 0xFFFFF, 0x9B, 0xA)
    assert data == (0, 0xFFFFF, 0x93, 0xC)
    assert task == (0, 0x67, 0x8B, 0x0)
    assert entry(small_memory, gdt.base, 5) == 0


def test_descriptor_spreads_base_and_limit() -> None:
    segment = Segment(base=0x12345678, limit=0x9ABCD, type=3, g=0, dpl=3)
    assert decode(cpu.descriptor(segment)) == (0x12345678, 0x9ABCD, 0xF3, 0x0)


def test_protected_mode_state_is_what_pvh_asks_for() -> None:
    state = cpu.protected_mode(entry=0x1000000, start_info=0x2000)
    sregs = state.sregs
    assert (state.regs.rip, state.regs.rbx, state.regs.rflags) == (0x1000000, 0x2000, 2)
    assert (sregs.cr0, sregs.cr4, sregs.efer) == (0x11, 0, 0)
    assert (sregs.code.type, sregs.code.db, sregs.code.g, sregs.code.l) == (0xB, 1, 1, 0)
    assert (sregs.data.limit, sregs.data.base) == (0xFFFFFFFF, 0)
    assert (sregs.task.type, sregs.task.limit, sregs.task.s) == (0xB, 0x67, 0)
