"""Loading bzImages by the 64-bit boot protocol (Linux Documentation/arch/x86/boot.rst)."""

import struct
from collections.abc import Callable
from typing import Any

import pytest

from minivmm.errors import ImageError
from minivmm.memory.guest import GuestMemory
from minivmm.units import KIB, MIB

Load = Callable[..., Any]
Build = Callable[..., bytes]


def zero_page(memory: GuestMemory, state: Any) -> bytes:
    return memory.read(state.regs.rsi, 4096)


def field(page: bytes, offset: int, form: str) -> int:
    return int(struct.unpack_from(form, page, offset)[0])


def test_code_goes_to_the_preferred_address_and_entry_is_0x200_above(
    load: Load, bzimage: Build, small_memory: GuestMemory
) -> None:
    code = bytes(range(256)) * 16
    state = load(bzimage(code))
    assert state.regs.rip == 16 * MIB + 0x200
    assert small_memory.read(16 * MIB, len(code)) == code


def test_bytes_behind_the_code_are_not_loaded(
    load: Load, bzimage: Build, small_memory: GuestMemory
) -> None:
    load(bzimage() + b"signature")
    assert small_memory.read(16 * MIB + 0x1000, 16) == bytes(16)


def test_setup_sects_zero_means_four(load: Load, bzimage: Build, small_memory: GuestMemory) -> None:
    load(bzimage(b"code" * 1024, setup_sects=0))
    assert small_memory.read(16 * MIB, 4) == b"code"


def test_relocatable_kernel_is_aligned_upwards(load: Load, bzimage: Build) -> None:
    state = load(bzimage(pref_address=17 * MIB, kernel_alignment=4 * MIB))
    assert state.regs.rip == 20 * MIB + 0x200


def test_fixed_kernel_stays_at_its_address(load: Load, bzimage: Build) -> None:
    state = load(bzimage(relocatable_kernel=0, pref_address=17 * MIB, kernel_alignment=0))
    assert state.regs.rip == 17 * MIB + 0x200


def test_relocatable_kernel_is_never_below_1_mib(load: Load, bzimage: Build) -> None:
    state = load(bzimage(pref_address=0))
    assert state.regs.rip == 2 * MIB + 0x200


def test_zero_page_holds_header_and_pointers(
    load: Load, bzimage: Build, small_memory: GuestMemory
) -> None:
    kernel = bzimage()
    page = zero_page(small_memory, load(kernel, cmdline="a b", rsdp=0xE1230))
    assert field(page, 0x070, "<Q") == 0xE1230
    assert field(page, 0x1EF, "<B") == 0
    assert field(page, 0x210, "<B") == 0xFF
    assert field(page, 0x214, "<I") == 16 * MIB
    assert field(page, 0x218, "<Q") == 0
    assert field(page, 0x1FE, "<H") == 0xAA55
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x22C:0x26C] == kernel[0x22C:0x26C]
    assert small_memory.read(field(page, 0x228, "<I"), 4) == b"a b\0"


def test_only_the_kernels_own_header_length_is_copied(
    load: Load, bzimage: Build, small_memory: GuestMemory
) -> None:
    short = bytearray(bzimage(jump=0x66EB))  # protocol 2.12: ends at 0x268
    short[0x268:0x270] = b"realmode"
    page = zero_page(small_memory, load(bytes(short)))
    assert page[0x264:0x270] == short[0x264:0x268] + bytes(8)


def test_newer_header_fields_are_copied_too(
    load: Load, bzimage: Build, small_memory: GuestMemory
) -> None:
    longer = bytearray(bzimage(jump=0x7AEB))  # ends at 0x27C
    longer[0x26C:0x280] = b"0123456789abcdef!!!!"
    page = zero_page(small_memory, load(bytes(longer)))
    assert page[0x26C:0x280] == b"0123456789abcdef" + bytes(4)


def test_e820_map_is_in_the_zero_page(
    load: Load, bzimage: Build, small_memory: GuestMemory
) -> None:
    page = zero_page(small_memory, load(bzimage()))
    count = field(page, 0x1E8, "<B")
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(count)]
    assert entries[0] == (0, 0x9FC00, 1)
    assert entries[1] == (0x9FC00, 0x100000 - 0x9FC00, 2)
    assert entries[2] == (1 * MIB, 127 * MIB, 1)
    assert page[0x2D0 + 20 * count :] == bytes(4096 - 0x2D0 - 20 * count)


def test_initrd_ends_at_the_end_of_low_ram(
    load: Load, bzimage: Build, small_memory: GuestMemory
) -> None:
    initrd = b"cpio" * 1500
    page = zero_page(small_memory, load(bzimage(), initrd=initrd))
    address, size = field(page, 0x218, "<I"), field(page, 0x21C, "<I")
    assert (address, size) == (128 * MIB - 8 * KIB, len(initrd))
    assert small_memory.read(address, size) == initrd


def test_initrd_stays_below_the_kernels_limit(
    load: Load, bzimage: Build, small_memory: GuestMemory
) -> None:
    kernel = bzimage(initrd_addr_max=64 * MIB - 1)
    page = zero_page(small_memory, load(kernel, initrd=bytes(4096)))
    assert field(page, 0x218, "<I") == 64 * MIB - 4096


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"boot_flag": 0}, ["boot flag is 0x0000", "damaged"]),
        ({"header": 0}, ["HdrS", "bzImage"]),
        ({"version": 0x020B}, ["2.11", "2.12", "Linux 3.8"]),
        ({"version": 0x0200}, ["protocol 2.00"]),
        ({"xloadflags": 0}, ["no 64-bit entry", "x86-64 kernel"]),
        ({"loadflags": 0}, ["zImage", "bzImage"]),
        ({"kernel_alignment": 3}, ["alignment 0x3", "damaged"]),
        ({"kernel_alignment": 0}, ["alignment 0x0"]),
        ({"jump": 0x10EB}, ["ends at 0x212", "damaged"]),
        ({"jump": 0x8FEB}, ["ends at 0x291", "damaged"]),
        ({"init_size": 200 * MIB}, ["0x1000000-0xd7fffff", "ends at 0x8000000", "-m 256M"]),
        ({"pref_address": 0xC0000000}, ["no -m is enough"]),
        ({"relocatable_kernel": 0, "pref_address": 0x10000}, ["below 1 MiB"]),
        ({"syssize": 0x20}, ["512 bytes of code"]),
    ],
)
def test_unusable_kernel_is_refused_with_a_remedy(
    load: Load, bzimage: Build, fields: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(ImageError) as caught:
        load(bzimage(**fields))
    message = str(caught.value)
    assert message.startswith("vmlinuz: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("length", [0x210, 0x28F, 512, 2047, 2048, 2048 + 0xFFF])
def test_truncated_file_is_refused(load: Load, bzimage: Build, length: int) -> None:
    with pytest.raises(ImageError, match=r"truncated|only \d+ bytes long|damaged"):
        load(bzimage()[:length])


def test_truncation_names_both_sizes(load: Load, bzimage: Build) -> None:
    with pytest.raises(ImageError, match="truncated, 6000 bytes of the 6144"):
        load(bzimage()[:6000])


def test_cmdline_of_exactly_cmdline_size_is_accepted(load: Load, bzimage: Build) -> None:
    load(bzimage(cmdline_size=255), cmdline="x" * 255)


def test_cmdline_beyond_cmdline_size_is_refused(load: Load, bzimage: Build) -> None:
    with pytest.raises(ImageError, match="256 characters, this kernel takes 255"):
        load(bzimage(cmdline_size=255), cmdline="x" * 256)


def test_initrd_that_would_reach_into_the_kernel_is_refused(load: Load, bzimage: Build) -> None:
    initrd = bytes(128 * MIB - 24 * MIB + 1)
    with pytest.raises(ImageError, match=r"initrd of 109051905 bytes .* use -m 256M"):
        load(bzimage(), initrd=initrd)


def test_initrd_may_touch_the_end_of_the_kernel(
    load: Load, bzimage: Build, small_memory: GuestMemory
) -> None:
    page = zero_page(small_memory, load(bzimage(init_size=100 * MIB), initrd=bytes(12 * MIB)))
    assert field(page, 0x218, "<I") == 116 * MIB


def test_initrd_beyond_the_kernels_limit_is_not_cured_by_memory(load: Load, bzimage: Build) -> None:
    with pytest.raises(ImageError, match=r"must end below 0x1900000: use a smaller one"):
        load(bzimage(initrd_addr_max=25 * MIB - 1), initrd=bytes(2 * MIB))


def test_empty_initrd_is_refused(load: Load, bzimage: Build) -> None:
    with pytest.raises(ImageError, match="initrd is empty"):
        load(bzimage(), initrd=b"")
