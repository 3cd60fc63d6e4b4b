"""The MSI capability as the guest programs it: ours, while the host has programmed the device's."""

from __future__ import annotations

from minivmm.devices.vfio_pci.config import HostConfig
from minivmm.devices.vfio_pci.interrupts import Message
from minivmm.spec.pci import MSI_CAPABLE_SHIFT, MSI_ENABLED_SHIFT, MsiControl

_CONTROL, _ADDRESS, _MOST = 2, 4, 32
"""Offsets in the capability (PCI 6.8.1), and the most vectors that there can be."""


class Msi:
    """The capability at `offset` of `config`. Masks of single vectors are not offered."""

    def __init__(self, config: HostConfig, offset: int) -> None:
        self._config = config
        self._at = offset
        offered = config.get(offset + _CONTROL, 2)
        self._wide = bool(offered & MsiControl.WIDE)
        self._offered = (offered & MsiControl.CAPABLE) >> MSI_CAPABLE_SHIFT
        self._data = _ADDRESS + (8 if self._wide else 4)
        self.size = self._data + 2
        """Bytes of the capability."""
        writable = int(MsiControl.ENABLE | MsiControl.ENABLED)
        kept = offered & int(MsiControl.WIDE | MsiControl.CAPABLE)
        body = bytes(self.size - _ADDRESS)
        masks = b"\xfc\xff\xff\xff" + b"\xff" * (self.size - _ADDRESS - 4)
        config.declare(
            offset + _CONTROL,
            kept.to_bytes(2, "little") + body,
            writable.to_bytes(2, "little") + masks,
        )

    @property
    def enabled(self) -> bool:
        """Does the guest use it?"""
        return bool(self._control & MsiControl.ENABLE)

    @property
    def messages(self) -> list[Message]:
        """The message of each vector that is in use; their low bits tell them apart."""
        address = self._config.get(self._at + _ADDRESS, 8 if self._wide else 4)
        data = self._config.get(self._at + self._data, 2)
        wanted = (self._control & MsiControl.ENABLED) >> MSI_ENABLED_SHIFT
        count = min(1 << min(wanted, self._offered), _MOST)
        return [(address, data & -count | vector) for vector in range(count)]

    @property
    def _control(self) -> int:
        return self._config.get(self._at + _CONTROL, 2)
