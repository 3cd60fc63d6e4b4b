"""The PCI_CFG capability: a function's BARs through its configuration space (virtio-spec 4.1.4.9).

Firmware without a mapping of the BARs reaches a device by it, so it works with memory space off.
"""

from __future__ import annotations

from minivmm.bus import BusDevice
from minivmm.pci.function import PciFunction
from minivmm.spec.virtio_pci import WindowCapability

_FIELDS = WindowCapability.OFFSETS
_DATA_SIZE = 4


class ConfigWindow:
    """Accesses to `data` become accesses of the place that bar, offset and size name (PCI-D-26).

    Whatever touches a byte of `data` counts; a write is stored before its bytes are passed on.
    """

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self._config = function.config
        writable = WindowCapability(
            id=0,
            length=0,
            type=0,
            bar=0xFF,
            offset=(1 << 32) - 1,
            size=(1 << 32) - 1,
            data=b"\xff" * _DATA_SIZE,
        ).build()
        self._start = self._config.add_capability(WindowCapability(), writable)
        self._data = self._start + _FIELDS["data"]
        self._config.watch(self._data, _DATA_SIZE, before_read=self._load, after_write=self._store)

    def _load(self) -> None:
        target = self._target()
        if target:
            device, offset, size = target
            self._config.set(self._data, size, device.read(offset, size))

    def _store(self) -> None:
        target = self._target()
        if target:
            device, offset, size = target
            device.write(offset, size, self._config.get(self._data, size))

    def _target(self) -> tuple[BusDevice, int, int] | None:
        """(BAR, offset, size) of a possible access (PCI-V-8); None for anything else."""
        chosen = self._config.get(self._start + _FIELDS["bar"], 1)
        offset = self._config.get(self._start + _FIELDS["offset"], 4)
        size = self._config.get(self._start + _FIELDS["size"], 4)
        bar = next((bar for bar in self._function.bars if bar.index == chosen), None)
        if bar is None or size not in (1, 2, 4) or offset % size or offset + size > bar.size:
            return None
        return bar.device, offset, size
