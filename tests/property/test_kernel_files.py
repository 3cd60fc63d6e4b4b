"""Damaged kernel files never do worse than an ImageError."""

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivmm.boot.image import load_kernel
from minivmm.errors import ImageError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import plan
from minivmm.memory.region import Region
from minivmm.spec.elf import ElfHeader, ProgramHeader
from minivmm.units import MIB

SMALL = plan(64 * MIB, [], 40)


def bzimage() -> bytearray:
    data = bytearray(1024 + 4096)
    data[0x1F1] = 1
    data[0x1F4:0x1F8] = (4096 // 16).to_bytes(4, "little")
    data[0x1FE:0x208] = b"\x55\xaa\xeb\x6aHdrS\x0f\x02"
    data[0x211] = 1
    data[0x22C:0x234] = b"\xff\xff\xff\x7f\x00\x00\x20\x00"
    data[0x234:0x23C] = b"\x01\x15\x03\x00\xff\x07\x00\x00"
    data[0x258:0x264] = (16 * MIB).to_bytes(8, "little") + (2 * MIB).to_bytes(4, "little")
    return data


def vmlinux() -> bytearray:
    note = b"\4\0\0\0\4\0\0\0\x12\0\0\0Xen\0\0\0\0\1"
    programs = (
        ProgramHeader(type=1, offset=0, paddr=16 * MIB, filesz=64, memsz=4096),
        ProgramHeader(type=4, offset=64 + 2 * 56, filesz=len(note), memsz=len(note), align=4),
    )
    header = ElfHeader(phoff=64, phnum=2)
    return bytearray(header.build() + b"".join(program.build() for program in programs) + note)


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    memory.add(0, Region(64 * MIB), name="low RAM")
    yield memory
    memory.close()


def load(memory: GuestMemory, kernel: bytes) -> None:
    load_kernel(
        memory, SMALL, kernel=kernel, name="x", cmdline="quiet", initrd=b"initrd", rsdp=0xE0000
    )


def test_the_undamaged_files_load(memory: GuestMemory) -> None:
    load(memory, bytes(bzimage()))
    load(memory, bytes(vmlinux()))


CHANGES = st.lists(
    st.tuples(st.integers(0, 0x270 - 8), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
)
QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(changes=CHANGES, length=st.integers(0, 6000))
def test_damaged_bzimage(
    memory: GuestMemory, changes: list[tuple[int, bytes]], length: int
) -> None:
    data = bzimage()
    for offset, piece in changes:
        data[offset : offset + len(piece)] = piece
    with contextlib.suppress(ImageError):
        load(memory, bytes(data[:length]))


@QUICK
@given(changes=CHANGES, length=st.integers(1, 300))
def test_damaged_vmlinux(
    memory: GuestMemory, changes: list[tuple[int, bytes]], length: int
) -> None:
    data = vmlinux()
    for offset, piece in changes:
        at = 4 + offset % (len(data) - 12)
        data[at : at + len(piece)] = piece
    with contextlib.suppress(ImageError):
        load(memory, bytes(data[:length]))
