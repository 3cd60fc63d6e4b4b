"""A PCI function: identity, BARs, command register, pin. What its BARs do is for its heirs.

Bus placement (which BAR is decoded where) is decided by host.py, the one place that sees all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minivmm.bus import BusDevice
from minivmm.irq import IrqLine
from minivmm.pci.config import ConfigSpace
from minivmm.saved import Form, build, parse, require
from minivmm.spec import pci
from minivmm.units import is_power_of_two

_FORM = Form("minivmm.pci.saved", "PCI")

_COMMAND_BITS = pci.Command.MEMORY_SPACE | pci.Command.BUS_MASTER | pci.Command.INTX_DISABLE
# A plain integer: every request looks at it, and operations on enum members cost a microsecond.
_BUS_MASTER = int(pci.Command.BUS_MASTER)


@dataclass(slots=True)
class Bar:
    """A memory BAR: `size` bytes (power of two) behind BAR register `index`, and its device."""

    index: int
    size: int
    device: BusDevice
    name: str
    wide: bool
    """64-bit: takes register `index` + 1 as well."""
    prefetchable: bool
    mapped: int | None = None
    """The guest physical address at which it is decoded now."""
    covered: bool = False
    """Another BAR lay over it when the machine was saved; until one of them moves."""

    @property
    def flags(self) -> int:
        """The read-only low bits of the register."""
        flags = pci.BarFlags(0)
        if self.wide:
            flags |= pci.BarFlags.TYPE_64
        if self.prefetchable:
            flags |= pci.BarFlags.PREFETCHABLE
        return int(flags)

    @property
    def offset(self) -> int:
        """Where its register lies in configuration space."""
        return pci.BAR0 + 4 * self.index

    @property
    def width(self) -> int:
        """Bytes of its register: 4 or 8."""
        return 8 if self.wide else 4

    @property
    def registers(self) -> range:
        """The BAR registers that it takes."""
        return range(self.index, self.index + self.width // 4)


class PciFunction:
    """A single-function PCI device with memory BARs only; `header` says if it has a pin.

    Instead of a header, a whole configuration space may be given.
    """

    name: str = "function"
    """Short name for the bus, traces and inspect()."""

    def __init__(self, header: pci.Header | ConfigSpace) -> None:
        self.config = header if isinstance(header, ConfigSpace) else ConfigSpace(header)
        self.bars: list[Bar] = []
        self.slot = 0
        """Device number on bus 0; host.py sets it."""
        self.on_decode_change: Callable[[], None] | None = None
        """Called when the wanted place of a BAR may have changed; host.py sets it."""
        self.on_decode_load: Callable[[], None] | None = None
        """The same, but it is not the guest who changed it: a saved state was loaded."""
        self.pin: IrqLine | None = None
        """Where INTA# leads; host.py sets it."""
        self._was_master = False
        self.config.declare(pci.COMMAND, bytes(2), _COMMAND_BITS.to_bytes(2, "little"))
        self.config.declare(pci.CACHE_LINE_SIZE, b"\0", b"\xff")
        self.config.declare(pci.INTERRUPT_LINE, b"\0", b"\xff")
        self.config.watch(pci.COMMAND, 2, after_write=self._command_written)

    @property
    def address(self) -> str:
        """The function's address as people write it."""
        return f"0000:00:{self.slot:02x}.0"

    @property
    def bus_master(self) -> bool:
        """May the function access memory and send messages? (PCI 6.2.2, bit 2)"""
        return self.config.get(pci.COMMAND, 2) & _BUS_MASTER != 0

    def add_bar(
        self,
        index: int,
        size: int,
        device: BusDevice,
        *,
        name: str,
        wide: bool = False,
        prefetchable: bool = False,
    ) -> Bar:
        """Declare BAR `index` of `size` bytes. Raises ValueError if that is not possible."""
        bar = Bar(index, size, device, name, wide, prefetchable)
        taken = {index for other in self.bars for index in other.registers}
        possible = is_power_of_two(size) and size >= 16 and bar.registers[-1] < pci.BARS
        if not possible or taken & set(bar.registers):
            raise ValueError(f"BAR {index} of {size} bytes is not possible")
        self.bars.append(bar)
        mask = -size & ((1 << 8 * bar.width) - 1)
        self.config.declare(
            bar.offset,
            bar.flags.to_bytes(bar.width, "little"),
            mask.to_bytes(bar.width, "little"),
        )
        self.config.watch(bar.offset, bar.width, after_write=self._decode_changed)
        return bar

    def place_bar(self, bar: Bar, address: int) -> None:
        """Write `address` (aligned to the BAR's size) into its register, as firmware would."""
        self.config.set(bar.offset, bar.width, address | bar.flags)
        self._decode_changed()

    def wanted_address(self, bar: Bar) -> int | None:
        """Where the guest wants `bar`; None while memory space is off."""
        if not self.config.get(pci.COMMAND, 2) & pci.Command.MEMORY_SPACE:
            return None
        return self.config.get(bar.offset, bar.width) & -bar.size

    def set_interrupt_status(self, pending: bool) -> None:
        """The Interrupt Status bit, which asserts INTA# unless that is disabled (PCI 6.2.3)."""
        status = self.config.get(pci.STATUS, 2) & ~pci.Status.INTERRUPT
        self.config.set(pci.STATUS, 2, status | (pci.Status.INTERRUPT if pending else 0))
        self._drive_pin()

    def offer_reset(self) -> None:
        """Let drivers reset the function alone (FLR); what is lost is what reset() forgets."""
        writable = pci.AdvancedFeatures(
            id=0, length=0, offered=0, control=pci.INITIATE_RESET
        ).build()
        control = self.config.add_capability(pci.AdvancedFeatures(), writable)
        control += pci.AdvancedFeatures.OFFSETS["control"]

        def written() -> None:
            if self.config.get(control, 1):
                self.reset()

        self.config.watch(control, 1, after_write=written)

    def reset(self) -> None:
        """As after power-on: nothing decoded, no bus master, BARs 0."""
        self.config.reset()
        self._command_written()

    def on_bar_moved(self, bar: Bar) -> None:
        """`bar.mapped` changed. Heirs bind doorbells here."""

    def on_bus_master(self, enabled: bool) -> None:
        """Bus mastering was switched. Heirs stop or resume work here."""

    def on_msix_control(self) -> None:
        """MSI-X may have been switched on or off. Heirs hand interrupts over to it or the pin."""

    # -- saved state -------------------------------------------------------------------------------

    def save_state(self) -> bytes:
        """Configuration space, and which BARs are decoded."""
        return build(_FORM, **self.save_pci())

    def load_state(self, data: bytes) -> None:
        """Take it over. Raises BadState."""
        saved = parse(self.name, _FORM, data)
        self.judge_pci(saved)
        self.load_pci(saved)

    def save_pci(self) -> dict[str, object]:
        """Values of PCI, without the interrupt status: heirs know that."""
        status = self.config.get(pci.STATUS, 2) & ~pci.Status.INTERRUPT
        config = bytearray(self.config.save())
        config[pci.STATUS : pci.STATUS + 2] = status.to_bytes(2, "little")
        return {"config": bytes(config), "decoded": [bar.mapped is not None for bar in self.bars]}

    def judge_pci(self, saved: Any) -> None:
        """Raises BadState unless `saved` can be of this function."""
        alien, count = self.config.alien(saved.config), len(saved.decoded)
        at = 0 if alien is None else alien
        why = f"this function has {self.config.get(at, 1):#04x} there, which no guest changes"
        require(alien is None, self.name, f"configuration byte {at:#04x}", saved.config[at], why)
        require(count == len(self.bars), self.name, "BARs", count, f"it has {len(self.bars)}")

    def load_pci(self, saved: Any) -> None:
        """Take over what was judged. Interrupt status: off; heirs set it."""
        self.config.load(saved.config)
        self._was_master = self.bus_master
        for bar, decoded in zip(self.bars, saved.decoded, strict=True):
            bar.covered = not decoded
        self._drive_pin()
        if self.on_decode_load:
            self.on_decode_load()

    def inspect(self) -> dict[str, object]:
        """Identity, command register and BARs."""
        return {
            "name": self.name,
            "vendor": f"{self.config.get(0, 2):#06x}",
            "device": f"{self.config.get(2, 2):#06x}",
            "command": pci.Command(self.config.get(pci.COMMAND, 2)).name or "off",
            "bars": {
                bar.index: {
                    "name": bar.name,
                    "size": bar.size,
                    "address": None if bar.mapped is None else f"{bar.mapped:#x}",
                }
                for bar in self.bars
            },
        }

    def _drive_pin(self) -> None:
        status, command = self.config.get(pci.STATUS, 2), self.config.get(pci.COMMAND, 2)
        if self.pin:
            asserted = status & pci.Status.INTERRUPT and not command & pci.Command.INTX_DISABLE
            self.pin.set(bool(asserted))

    def _command_written(self) -> None:
        self._drive_pin()
        self._decode_changed()
        if self.bus_master != self._was_master:
            self._was_master = self.bus_master
            self.on_bus_master(self._was_master)

    def _decode_changed(self) -> None:
        if self.on_decode_change:
            self.on_decode_change()
