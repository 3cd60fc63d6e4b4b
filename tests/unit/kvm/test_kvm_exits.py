"""Exits of real guest code: what the machine's vCPU loop will see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from minivmm.kvm import abi

pytestmark = pytest.mark.kvm

OUT_AL = bytes.fromhex("baf803 b041 ee f4")  # mov dx,3f8h; mov al,'A'; out dx,al; hlt


def test_out_gives_port_size_and_data(boot: Callable) -> None:
    cpu = boot(OUT_AL).cpu

    reason = cpu.run()

    assert reason == abi.Exit.IO
    assert (cpu.io.direction, cpu.io.port, cpu.io.size, cpu.io.count) == (abi.IO_OUT, 0x3F8, 1, 1)
    assert bytes(cpu.io_data()) == b"A"


def test_run_page_and_overlays_are_the_same_memory(boot: Callable) -> None:
    cpu = boot(OUT_AL).cpu

    cpu.run()

    assert cpu.run_page.exit_reason == abi.Exit.IO
    assert cpu.run_page.io.port == cpu.io.port == 0x3F8


def test_in_takes_the_answer_from_io_data(boot: Callable) -> None:
    # mov dx,600h; in ax,dx; mov [500h],ax; out dx,al
    guest = boot(bytes.fromhex("ba0006 ed a30005 ee"))

    assert guest.cpu.run() == abi.Exit.IO
    assert (guest.cpu.io.direction, guest.cpu.io.size) == (abi.IO_IN, 2)
    guest.cpu.io_data()[:] = b"\x34\x12"
    assert guest.cpu.run() == abi.Exit.IO

    assert guest.peek(0x500, 2) == b"\x34\x12"


def test_string_out_gives_all_items_in_order(boot: Callable) -> None:
    # mov si,600h; mov cx,4; mov dx,3f8h; cld; rep outsw; mov dx,80h; out dx,al
    guest = boot(bytes.fromhex("be0006 b90400 baf803 fc f36f ba8000 ee"))
    guest.poke(0x600, b"minivmm!")

    data = b""
    while guest.cpu.run() == abi.Exit.IO and guest.cpu.io.port == 0x3F8:
        assert guest.cpu.io.size == 2
        data += bytes(guest.cpu.io_data())

    assert data == b"minivmm!"
    assert guest.cpu.io.port == 0x80


def test_string_in_stores_all_items_in_order(boot: Callable) -> None:
    # mov di,600h; mov cx,4; mov dx,3f8h; cld; rep insb; mov dx,80h; out dx,al
    guest = boot(bytes.fromhex("bf0006 b90400 baf803 fc f36c ba8000 ee"))
    answers = iter(b"abcd")

    while guest.cpu.run() == abi.Exit.IO and guest.cpu.io.port == 0x3F8:
        view = guest.cpu.io_data()
        for at in range(len(view)):
            view[at] = next(answers)

    assert guest.peek(0x600, 4) == b"abcd"


def test_the_instruction_pointer_is_behind_writes_and_at_reads(boot: Callable) -> None:
    cpu = boot(bytes.fromhex("a20080 a00090 f4")).cpu  # mov [8000h],al; mov al,[9000h]; hlt

    assert cpu.run() == abi.Exit.MMIO
    after_write = cpu.instruction_pointer()
    assert cpu.run() == abi.Exit.MMIO

    assert (after_write, cpu.instruction_pointer()) == (0x1003, 0x1003)


def test_mmio_write_gives_address_length_and_value(boot: Callable) -> None:
    # mov eax,11223344h; mov [8000h],eax; mov [9002h],al
    cpu = boot(bytes.fromhex("66b844332211 66a30080 a20290")).cpu

    assert cpu.run() == abi.Exit.MMIO
    wide = (cpu.mmio.phys_addr, cpu.mmio.len, cpu.mmio.is_write, cpu.mmio_value())
    assert cpu.run() == abi.Exit.MMIO
    narrow = (cpu.mmio.phys_addr, cpu.mmio.len, cpu.mmio.is_write, cpu.mmio_value())

    assert wide == (0x8000, 4, 1, 0x11223344)
    assert narrow == (0x9002, 1, 1, 0x44)


def test_mmio_read_takes_the_answer(boot: Callable) -> None:
    # mov ax,[8004h]; mov [500h],ax; hlt-free end: out 80h,al
    guest = boot(bytes.fromhex("a10480 a30005 e680"))

    assert guest.cpu.run() == abi.Exit.MMIO
    assert (guest.cpu.mmio.phys_addr, guest.cpu.mmio.len) == (0x8004, 2)
    assert not guest.cpu.mmio.is_write
    guest.cpu.set_mmio_value(0xBEEF)
    assert guest.cpu.run() == abi.Exit.IO

    assert guest.peek(0x500, 2) == b"\xef\xbe"


def test_long_mode_state_is_loaded(boot64: Callable) -> None:
    # mov [500h],rsi; mov rax,cr3; mov [508h],rax; out 80h,al
    code = bytes.fromhex("4889342500050000 0f20d8 4889042508050000 e680")
    guest = boot64(code)

    assert guest.cpu.run() == abi.Exit.IO

    assert guest.peek(0x500, 16) == (0x1234).to_bytes(8, "little") + (0x2000).to_bytes(8, "little")
    assert "cr3=0x2000" in guest.cpu.describe()


def test_eight_byte_mmio_write_keeps_all_bits(boot64: Callable) -> None:
    # mov rax,1122334455667788h; mov [8000h],rax
    guest = boot64(bytes.fromhex("48b88877665544332211 4889042500800000"))

    assert guest.cpu.run() == abi.Exit.MMIO
    assert (guest.cpu.mmio.len, guest.cpu.mmio_value()) == (8, 0x1122334455667788)


def test_triple_fault_is_a_shutdown(boot64: Callable) -> None:
    guest = boot64(bytes.fromhex("0f0b"))  # ud2 with an empty IDT

    assert guest.cpu.run() == abi.Exit.SHUTDOWN


def test_guest_sees_the_cpuid_it_was_given(boot: Callable) -> None:
    # mov eax,40000000h; cpuid; mov [500h],ebx; out 80h,al
    guest = boot(b"")
    guest.poke(0x1000, bytes.fromhex("66b800000040 0fa2 66891e0005 e680"))
    marked = [
        replace(leaf, ebx=0xCAFE) if leaf.function == 0x4000_0000 else leaf
        for leaf in guest.system.supported_cpuid()
    ]

    guest.cpu.initialise(marked, None)
    assert guest.cpu.run() == abi.Exit.IO

    assert guest.peek(0x500, 4) == b"\xfe\xca\x00\x00"


def test_describe_is_one_line_with_rip(boot: Callable) -> None:
    text = boot(OUT_AL).cpu.describe()

    assert "\n" not in text
    assert text.startswith("cpu0 rip=0x1000 ")
