"""A driver's view of a PCI function: configuration space by ECAM, BARs, virtio's structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from minivmm.bus import Bus
from minivmm.spec import pci, platform, virtio_pci
from minivmm.spec.virtio_pci import CapabilityType


@dataclass(frozen=True)
class Structure:
    """Where a virtio structure lies: BAR, offset and length (bytes), as its capability says."""

    bar: int
    offset: int
    length: int
    multiplier: int = 0


class PciDriver:
    """Finds and reaches what the function in `slot` of bus 0 has."""

    def __init__(self, mmio: Bus, slot: int) -> None:
        self.structures: dict[CapabilityType, Structure] = {}
        self.msix_capability = 0
        self._mmio = mmio
        self._config_base = platform.ECAM_BASE + slot * 8 * pci.ECAM_FUNCTION_SIZE

    def read_pci(self, offset: int, size: int) -> int:
        """Configuration read by ECAM."""
        return self._mmio.read(self._config_base + offset, size)

    def write_pci(self, offset: int, size: int, value: int) -> None:
        """Configuration write by ECAM."""
        self._mmio.write(self._config_base + offset, size, value)

    def probe(self) -> Self:
        """Switch memory space and bus mastering on, find all capabilities."""
        command = pci.Command.MEMORY_SPACE | pci.Command.BUS_MASTER
        self.write_pci(pci.COMMAND, 2, command)
        at = self.read_pci(pci.CAPABILITIES, 1)
        while at:
            self._capability(at)
            at = self.read_pci(at + 1, 1)
        return self

    def capability(self, identifier: int) -> int:
        """Offset of the first capability with that identifier; 0 if there is none."""
        at = self.read_pci(pci.CAPABILITIES, 1)
        while at and self.read_pci(at, 1) != identifier:
            at = self.read_pci(at + 1, 1)
        return at

    def reset_function(self) -> None:
        """Reset the function alone, by Advanced Features. Raises AssertionError if not offered."""
        at = self.capability(pci.CapabilityId.ADVANCED_FEATURES)
        offered = at and self.read_pci(at + pci.AdvancedFeatures.OFFSETS["offered"], 1)
        assert offered & pci.AdvancedFeature.FUNCTION_RESET, "function level reset is not offered"
        control = at + pci.AdvancedFeatures.OFFSETS["control"]
        self.write_pci(control, 1, pci.INITIATE_RESET)

    def bar_address(self, index: int) -> int:
        """Guest physical address in BAR `index`."""
        low = self.read_pci(pci.BAR0 + 4 * index, 4)
        high = self.read_pci(pci.BAR0 + 4 * index + 4, 4) if low & pci.BarFlags.TYPE_64 else 0
        return (high << 32 | low) & ~0xF

    def address(self, kind: CapabilityType, offset: int = 0) -> int:
        """Guest physical address of `offset` in a structure."""
        structure = self.structures[kind]
        return self.bar_address(structure.bar) + structure.offset + offset

    def read(self, kind: CapabilityType, offset: int, size: int) -> int:
        """MMIO read inside a structure."""
        return self._mmio.read(self.address(kind, offset), size)

    def write(self, kind: CapabilityType, offset: int, size: int, value: int) -> None:
        """MMIO write inside a structure."""
        self._mmio.write(self.address(kind, offset), size, value)

    def _capability(self, at: int) -> None:
        kind = self.read_pci(at, 1)
        if kind == pci.CapabilityId.MSIX:
            self.msix_capability = at
        if kind != pci.CapabilityId.VENDOR:
            return
        size = virtio_pci.NotifyCapability.SIZE
        data = bytes(self.read_pci(at + i, 1) for i in range(size))
        found = virtio_pci.NotifyCapability.parse(data)
        self.structures.setdefault(
            CapabilityType(found.type),
            Structure(found.bar, found.offset, found.size, found.multiplier),
        )
