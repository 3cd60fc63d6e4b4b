"""The PCI host: bus 0, both ways into configuration space, where BARs are decoded, and pins."""

from __future__ import annotations

from collections.abc import Iterator

from minivmm.bus import Bus
from minivmm.irq import InterruptController
from minivmm.memory.layout import AddressMap, Window
from minivmm.pci.function import Bar, PciFunction
from minivmm.pci.intx import PinRouter
from minivmm.saved import Form, build, parse, require
from minivmm.spec import pci
from minivmm.spec.platform import PCI_CONFIG_PORT
from minivmm.units import align_up

_FORM = Form("minivmm.pci.saved", "HOST")

_HOST_BRIDGE = pci.Header(
    vendor_id=0x1B36,
    device_id=0x0008,  # "generic PCIe host bridge": a name for people, no Linux quirk knows it
    class_code=pci.ClassCode.HOST_BRIDGE.to_bytes(3, "little"),
)


class HostBridge(PciFunction):
    """00:00.0: it has nothing but an identity; Linux takes it as proof that CF8/CFC works."""

    name = "host bridge"

    def __init__(self) -> None:
        super().__init__(_HOST_BRIDGE)


class PciHost:
    """Bus 0 with single-function devices, reached by ECAM on `mmio` and by CF8/CFC on `pio`."""

    def __init__(
        self, mmio: Bus, pio: Bus, address_map: AddressMap, interrupts: InterruptController
    ) -> None:
        self._mmio = mmio
        self._pins = PinRouter(interrupts)
        self._windows = (address_map.mmio32, address_map.mmio64)
        self._functions: dict[int, PciFunction] = {}
        ecam, ports = EcamAccess(self._functions), PortAccess(self._functions)
        self._ports = ports
        mmio.add(address_map.ecam.base, address_map.ecam.size, ecam, name="pci ecam")
        pio.add(PCI_CONFIG_PORT, 8, ports, name="pci config ports")
        self.add(HostBridge(), 0)

    def add(self, function: PciFunction, slot: int | None = None) -> None:
        """Plug `function` into `slot` (0..31) or the first free one. Raises ValueError if taken."""
        if slot is None:
            slot = next((s for s in range(pci.SLOTS) if s not in self._functions), pci.SLOTS)
        if slot in self._functions or not 0 <= slot < pci.SLOTS:
            raise ValueError(f"PCI slot {slot} for {function.name} is not free")
        function.slot = slot
        function.on_decode_change = self._decode
        function.on_decode_load = self._place
        function.pin = self._pins.pin(slot)
        self._functions[slot] = function

    @property
    def functions(self) -> tuple[PciFunction, ...]:
        """All functions, by slot."""
        return tuple(self._functions[slot] for slot in sorted(self._functions))

    def assign_bars(self) -> None:
        """Give every BAR an address in its window, as firmware would; largest first in each.

        Raises ValueError if a window is too small. Decoding stays off: the guest enables it.
        """
        mmio32, mmio64 = self._windows
        free = {False: mmio32.base, True: mmio64.base}
        for function, bar in sorted(self._bars(), key=lambda pair: -pair[1].size):
            address = align_up(free[bar.wide], bar.size)
            if not _inside(mmio64 if bar.wide else mmio32, address, bar.size):
                raise ValueError(f"no PCI window has room for {function.name} BAR {bar.index}")
            function.place_bar(bar, address)
            free[bar.wide] = address + bar.size

    def reset(self) -> None:
        """Every function as after power-on. BARs are 0 until assign_bars()."""
        self._ports.reset()
        for function in self.functions:
            function.reset()

    def save_state(self) -> bytes:
        """What is the host's own; its functions save themselves."""
        return build(_FORM, address=self._ports.address)

    def load_state(self, data: bytes) -> None:
        """Take it over. Raises BadState."""
        address = parse("pci", _FORM, data).address
        known = not address & ~pci.ConfigAddress.IMPLEMENTED
        require(known, "pci", "config address", f"{address:#x}", "it has reserved bits")
        self._ports.address = address

    def inspect(self) -> dict[str, object]:
        """Every function by address."""
        return {function.address: function.inspect() for function in self.functions}

    def _bars(self) -> Iterator[tuple[PciFunction, Bar]]:
        return ((function, bar) for function in self.functions for bar in function.bars)

    def _decode(self) -> None:
        """A guest changed where BARs are to be decoded; what was covered may be so no more."""
        for _, bar in self._bars():
            bar.covered = False
        self._place()

    def _place(self) -> None:
        """Bring the bus in line with all BARs.

        A BAR outside the windows, or on top of another, is not decoded. All are looked at, not only
        the one that changed: moving one can uncover another. First unmap, then map.
        """
        moved: list[tuple[PciFunction, Bar]] = []
        for function, bar in self._bars():
            moves = bar.covered or bar.mapped != function.wanted_address(bar)
            if bar.mapped is not None and moves:
                self._mmio.remove(bar.mapped)
                bar.mapped = None
                moved.append((function, bar))
        for function, bar in self._bars():
            wanted = function.wanted_address(bar)
            hidden = bar.mapped is not None or bar.covered
            if not hidden and wanted is not None and self._free(wanted, bar.size):
                self._mmio.add(wanted, bar.size, bar.device, name=f"{function.name} {bar.name}")
                bar.mapped = wanted
                if (function, bar) not in moved:
                    moved.append((function, bar))
        for function, bar in moved:
            function.on_bar_moved(bar)

    def _free(self, base: int, size: int) -> bool:
        inside = any(_inside(window, base, size) for window in self._windows)
        return inside and not self._mmio.overlaps(base, size)


class EcamAccess:
    """Memory-mapped access: bits 27:20 bus, 19:15 device, 14:12 function (PCIe 7.2.2)."""

    def __init__(self, functions: dict[int, PciFunction]) -> None:
        self._functions = functions

    def read(self, offset: int, size: int) -> int:
        """Configuration read; all ones where no function is."""
        function = self._functions.get(offset // pci.ECAM_FUNCTION_SIZE // 8)
        if function is None or not _reachable(offset, size):
            return (1 << 8 * size) - 1
        return function.config.read(offset % pci.ECAM_FUNCTION_SIZE, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Configuration write; dropped where no function is."""
        function = self._functions.get(offset // pci.ECAM_FUNCTION_SIZE // 8)
        if function is not None and _reachable(offset, size):
            function.config.write(offset % pci.ECAM_FUNCTION_SIZE, size, value)


class PortAccess:
    """Configuration mechanism 1: address at CF8, data at CFC-CFF (PCI 3.2.2.3.2)."""

    def __init__(self, functions: dict[int, PciFunction]) -> None:
        self._ecam = EcamAccess(functions)
        self.address = 0
        """The latch."""

    def read(self, offset: int, size: int) -> int:
        """Port read: the latch as 4 bytes, or the register that it names."""
        if offset == 0 and size == 4:
            return self.address
        at = self._target(offset, size)
        return (1 << 8 * size) - 1 if at is None else self._ecam.read(at, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Port write: the latch (4 bytes only), or the register that it names."""
        if offset == 0 and size == 4:
            self.address = value & pci.ConfigAddress.IMPLEMENTED
            return
        at = self._target(offset, size)
        if at is not None:
            self._ecam.write(at, size, value)

    def reset(self) -> None:
        """Forget the address."""
        self.address = 0

    def _target(self, offset: int, size: int) -> int | None:
        """The ECAM offset that a data port access means; None if it means nothing."""
        if offset < 4 or offset + size > 8 or not self.address & pci.ConfigAddress.ENABLE:
            return None
        bus_device_function = self.address >> 8 & 0xFFFF
        register = self.address & 0xFC
        return bus_device_function * pci.ECAM_FUNCTION_SIZE + register + offset - 4


def _reachable(offset: int, size: int) -> bool:
    """Function 0 only; aligned accesses of 1, 2 or 4 bytes only."""
    function = offset // pci.ECAM_FUNCTION_SIZE % 8
    return function == 0 and size in (1, 2, 4) and offset % size == 0


def _inside(window: Window, base: int, size: int) -> bool:
    return window.base <= base and base + size <= window.end
