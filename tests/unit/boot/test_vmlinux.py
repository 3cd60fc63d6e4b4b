"""Loading ELF kernels through the PVH entry (Xen docs/misc/pvh.pandoc)."""

import io
import struct
from collections.abc import Callable
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from minivmm.boot import elf as loader
from minivmm.errors import ImageError
from minivmm.memory.guest import GuestMemory
from minivmm.units import MIB

Load = Callable[..., Any]
Build = Callable[..., bytes]
TEXT = [(16 * MIB, b"text" * 64, 256)]


def start_info(memory: GuestMemory, state: Any) -> dict[str, int]:
    names = ("magic", "version", "flags", "modules", "modlist", "cmdline", "rsdp", "map", "count")
    values = struct.unpack("<IIIIQQQQI", memory.read(state.regs.rbx, 52))
    return dict(zip(names, values, strict=True))


def test_segments_go_to_their_physical_addresses(
    load: Load, vmlinux: bytes, small_memory: GuestMemory
) -> None:
    state = load(vmlinux)
    assert state.regs.rip == 16 * MIB + 0x30
    assert small_memory.read(16 * MIB, 256) == b"text" * 64
    assert small_memory.read(18 * MIB, 4096) == (b"data" * 16).ljust(4096, b"\0")


def test_start_info_names_cmdline_rsdp_and_memory_map(
    load: Load, vmlinux: bytes, small_memory: GuestMemory
) -> None:
    info = start_info(small_memory, load(vmlinux, cmdline="root=x", rsdp=0xE0000))
    assert (info["magic"], info["version"], info["flags"]) == (0x336EC578, 1, 0)
    assert small_memory.read(info["cmdline"], 7) == b"root=x\0"
    assert info["rsdp"] == 0xE0000
    assert info["modules"] == 0
    first = struct.unpack("<QQII", small_memory.read(info["map"], 24))
    third = struct.unpack("<QQII", small_memory.read(info["map"] + 48, 24))
    assert first == (0, 0x9FC00, 1, 0)
    assert third == (1 * MIB, 127 * MIB, 1, 0)
    assert info["count"] == 5


def test_initrd_is_the_first_module(load: Load, vmlinux: bytes, small_memory: GuestMemory) -> None:
    info = start_info(small_memory, load(vmlinux, initrd=b"cpio" * 10))
    address, size, *_ = struct.unpack("<QQQQ", small_memory.read(info["modlist"], 32))
    assert info["modules"] == 1
    assert address == 128 * MIB - 4096
    assert small_memory.read(address, size) == b"cpio" * 10


def test_everything_handed_over_lies_below_1_gib(
    load: Load, vmlinux: bytes, small_memory: GuestMemory
) -> None:
    state = load(vmlinux, initrd=b"x")
    info = start_info(small_memory, state)
    assert max(state.regs.rbx, info["modlist"], info["map"], info["cmdline"]) < 1 << 30


@pytest.mark.parametrize(("width", "align"), [(4, 4), (8, 4), (8, 8)])
def test_entry_note_of_both_widths(elf: Build, note: Build, width: int, align: int) -> None:
    data = note(16 * MIB, width=width, before=b"")
    assert loader.parse(elf(TEXT, data, align=align), "x").entry == 16 * MIB


def test_parse_agrees_with_pyelftools(vmlinux: bytes) -> None:
    theirs = ELFFile(io.BytesIO(vmlinux))
    loads = [s for s in theirs.iter_segments() if s["p_type"] == "PT_LOAD"]
    segments = [s for s in theirs.iter_segments() if isinstance(s, NoteSegment)]
    notes = [note for segment in segments for note in segment.iter_notes()]
    ours = loader.parse(vmlinux, "x")
    assert ours.segments == tuple((s["p_paddr"], s.data()) for s in loads)
    entry = next(note["n_descdata"] for note in notes if note["n_name"] == "Xen")
    assert ours.entry == int.from_bytes(entry, "little")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"klass": 1}, ["not a 64-bit", "x86-64 kernel"]),
        ({"machine": 183}, ["machine 183", "x86-64 kernel"]),
        ({"kind": 1}, ["ELF type 1", "vmlinux or bzImage"]),
        ({"kind": 3}, ["ELF type 3"]),
        ({"note": b""}, ["no PVH entry note", "CONFIG_PVH=y", "bzImage"]),
        ({"segments": []}, ["no segment to load"]),
        ({"segments": [*TEXT, (0x10000, b"x", 1)]}, ["below 1 MiB"]),
        ({"segments": [*TEXT, (200 * MIB, b"x", 1)]}, ["low RAM ends at 0x8000000", "-m 256M"]),
        ({"segments": [(17 * MIB, b"x", 1)]}, ["entry 0x1000000 lies outside"]),
        ({"segments": [(16 * MIB, b"xy", 1)]}, ["exceeds its memory"]),
        ({"segments": [(16 * MIB, b"x", 1 << 63)]}, ["no -m is enough"]),
    ],
)
def test_unusable_elf_is_refused_with_a_remedy(
    load: Load, elf: Build, note: Build, arguments: dict[str, Any], words: list[str]
) -> None:
    chosen = {"segments": TEXT, "note": note(16 * MIB)} | arguments
    with pytest.raises(ImageError) as caught:
        load(elf(**chosen))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("owner", [b"xen\0", b"GNU\0"])
def test_note_of_another_owner_is_no_entry(elf: Build, note: Build, owner: bytes) -> None:
    with pytest.raises(ImageError, match="no PVH entry note"):
        loader.parse(elf(TEXT, note(16 * MIB, owner=owner)), "x")


def test_note_of_another_type_is_no_entry(elf: Build, note: Build) -> None:
    with pytest.raises(ImageError, match="no PVH entry note"):
        loader.parse(elf(TEXT, note(16 * MIB, kind=17)), "x")


def test_every_truncation_is_an_image_error(load: Load, vmlinux: bytes) -> None:
    for length in range(4, len(vmlinux) - 8, 5):
        with pytest.raises(ImageError):
            load(vmlinux[:length])


def test_cmdline_that_linux_would_cut_is_refused(load: Load, vmlinux: bytes) -> None:
    with pytest.raises(ImageError, match="2048 characters, this kernel takes 2047"):
        load(vmlinux, cmdline="x" * 2048)
