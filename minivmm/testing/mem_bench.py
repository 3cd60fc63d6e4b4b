"""A virtio-mem device with guest memory, signals and a driver of its own; no rings, no PCI."""

from __future__ import annotations

import errno
from collections.abc import Callable

from minivmm.closing import Closing
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.memory.backing import Backing
from minivmm.memory.guest import GuestMemory, Slot
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.testing.fake_queue import FakeSignals
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB


def make_device(
    make_region: Callable[[int, Backing], Region] = Region, **fields: object
) -> VirtioMem:
    """A device at 4 GiB; `fields` are those of VirtioMemSpec, sizes in bytes."""
    spec = VirtioMemSpec(**fields)  # type: ignore[arg-type]
    return VirtioMem(spec, Window(4 * GIB, spec.size), make_region(spec.size, spec.host_memory))


class MemBench(Closing):
    """Arguments are those of make_device(). Use as a context.

    with MemBench(size=GIB, requested_size=64 * MIB) as bench:
        bench.driver.plug(0, 4)
    """

    def __init__(
        self, make_region: Callable[[int, Backing], Region] = Region, **fields: object
    ) -> None:
        self.device = make_device(make_region, **fields)
        self.region = self.device.region
        self.memory = GuestMemory()
        self.signals = FakeSignals()
        self.device.attach(self.memory, self.signals)
        self.driver = MemDriver(self.device)

    @property
    def plugged(self) -> list[tuple[int, int]]:
        """(first, count) of every run of plugged blocks."""
        return list(self.device.blocks.plugged_ranges())

    def host_refuses(self, *calls: str) -> None:
        """From now on these of the region's methods raise OSError: populate, discard, protect."""

        def refuse(*_arguments: object) -> None:
            raise OSError("refused by the host")

        for name in calls:
            setattr(self.region, name, refuse)

    def close(self) -> None:
        """Unmap the region."""
        self.memory.close()


class Mappings:
    """A LayoutListener that maps what it is shown, as for DMA; `full`: it refuses any more.

    Raises AssertionError for what is shown twice, or hidden without having been shown.
    """

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self.full = False
        self.refusals = 0
        self.units: set[int] = set()
        """Numbers of the units (bytes of a block) of the region that are mapped."""

    def on_map(self, slot: Slot) -> None:
        """Nothing of a sparse region is there yet."""

    def on_plug(self, slot: Slot, offset: int, length: int) -> None:
        """Map, or raise OSError."""
        if self.full:
            self.refusals += 1
            raise OSError(errno.ENOSPC, "no mapping is left")
        shown = self._numbers(offset, length)
        assert not shown & self.units, "shown twice"
        self.units |= shown

    def on_unplug(self, slot: Slot, offset: int, length: int) -> None:
        """Unmap."""
        hidden = self._numbers(offset, length)
        assert hidden <= self.units, "hidden, but never shown"
        self.units -= hidden

    def on_readable(self, slot: Slot) -> None:
        """Mappings for DMA are of plugged memory only."""

    def _numbers(self, offset: int, length: int) -> set[int]:
        return set(range(offset // self._unit, (offset + length) // self._unit))
