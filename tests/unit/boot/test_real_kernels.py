"""Kernels that happen to be on this machine are accepted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.boot.image import load_kernel
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import plan
from minivmm.memory.region import Region
from minivmm.units import MIB

FOLDERS = (Path("/boot"), Path("/tmp/k/x/boot"))
KERNELS = [file for folder in FOLDERS for file in sorted(folder.glob("vmlinuz-*"))]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    memory.add(0, Region(256 * MIB), name="low RAM")
    yield memory
    memory.close()


@pytest.mark.skipif(not KERNELS, reason="no kernel in /boot")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda file: file.name)
def test_real_kernel_is_loaded(memory: GuestMemory, kernel: Path) -> None:
    state = load_kernel(
        memory,
        plan(256 * MIB, [], 40),
        kernel=kernel.read_bytes(),
        name=str(kernel),
        cmdline="console=ttyS0",
        initrd=b"x",
        rsdp=0xE0000,
    )
    assert state.regs.rip % (2 * MIB) == 0x200
    assert memory.read(state.regs.rip, 16) != bytes(16)
