"""HostBar: a BAR of a device that is passed on: mapped where that may be, and trapped elsewhere.

Pages that hold something of ours, the MSI-X table or its pending bits, are never mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from minivmm.bus import BusDevice, Windows
from minivmm.memory.libc import PAGE_SIZE
from minivmm.units import align_down, align_up
from minivmm.vfio.device import RegionView, VfioDevice


@dataclass(frozen=True)
class Overlay:
    """Something of ours in a BAR: [`start`, `end`) (bytes) is `device`'s."""

    start: int
    end: int
    device: BusDevice


class HostBar:
    """The BusDevice of `region`, and its windows: direct ways of the guest to the device's memory.

    Raises OSError if the region cannot be mapped.
    """

    def __init__(
        self, device: VfioDevice, region: RegionView, windows: Windows, overlays: list[Overlay]
    ) -> None:
        self._device = device
        self._region = region
        self._windows = windows
        self._overlays = overlays
        self._areas = [
            (offset, size, device.map(region, offset, size)) for offset, size in self._direct()
        ]
        self._hide: list[Callable[[], None]] = []

    @property
    def mapped(self) -> int:
        """Bytes that the guest reaches directly, once the BAR has a place."""
        return sum(size for _, size, _ in self._areas)

    def move(self, gpa: int | None) -> None:
        """The BAR is at `gpa` now, or nowhere. Raises HostError if no window can be opened."""
        for hide in self._hide:
            hide()
        self._hide.clear()
        if gpa is None:
            return
        for offset, size, hva in self._areas:
            self._hide.append(self._windows.show(gpa + offset, size, hva))

    def read(self, offset: int, size: int) -> int:
        """Guest read; ones if the device does not answer."""
        at, device = self._find(offset)
        if device is not None:
            return device.read(at, size)
        if offset + size <= self._region.size:
            with suppress(OSError):
                return self._device.read(self._region, offset, size)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Guest write; dropped if the device does not take it."""
        at, device = self._find(offset)
        if device is not None:
            device.write(at, size, value)
        elif offset + size <= self._region.size:
            with suppress(OSError):
                self._device.write(self._region, offset, size, value)

    def _find(self, offset: int) -> tuple[int, BusDevice | None]:
        for overlay in self._overlays:
            if overlay.start <= offset < overlay.end:
                return offset - overlay.start, overlay.device
        return 0, None

    def _direct(self) -> Iterator[tuple[int, int]]:
        """(offset, size) of what may be mapped, without the pages of overlays."""
        holes = sorted(
            (align_down(one.start, PAGE_SIZE), align_up(one.end, PAGE_SIZE))
            for one in self._overlays
        )
        for offset, size in self._region.areas:
            at, end = offset, offset + size
            for first, last in holes:
                if at < first < end:
                    yield at, first - at
                if at < last and first < end:
                    at = max(at, last)
            if at < end:
                yield at, end - at
