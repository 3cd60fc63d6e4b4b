"""What a vCPU exit says, read in place from the area that the vCPU shares with us.

Vcpu lays this over the mapping of its descriptor, the fake vCPU of minivmm.testing over its own
memory: both have the same accessors. Interpreting an exit is the machine's business.
"""

from __future__ import annotations

from mmap import mmap

from minivmm.kvm.abi import KvmRun, KvmRunIo, KvmRunMmio

_MASKS = {size: (1 << 8 * size) - 1 for size in range(9)}


class ExitArea:
    """The kvm_run page and, behind it, the data of port I/O.

    The overlays are made once, so looking at an exit allocates nothing but integers.
    """

    run_page: KvmRun
    """The head, valid after run() until the next run()."""
    io: KvmRunIo
    """run_page.io: what an Exit.IO is about."""
    mmio: KvmRunMmio
    """run_page.mmio: what an Exit.MMIO is about."""

    def __init__(self, area: bytearray | mmap) -> None:
        self.run_page = KvmRun.from_buffer(area)
        self.io = self.run_page.io
        self.mmio = self.run_page.mmio
        self._area = memoryview(area)

    def io_data(self) -> memoryview:
        """The size * count data bytes of the current Exit.IO: to read for OUT, to fill for IN."""
        io = self.io
        start: int = io.data_offset
        return self._area[start : start + io.size * io.count]

    def mmio_value(self) -> int:
        """What the current Exit.MMIO writes: `mmio.len` bytes as a little-endian integer."""
        value: int = self.mmio.data & _MASKS[self.mmio.len]
        return value

    def set_mmio_value(self, value: int) -> None:
        """Answer the read of the current Exit.MMIO; the guest takes the low `mmio.len` bytes."""
        self.mmio.data = value
