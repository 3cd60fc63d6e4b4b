"""A passed-on device on a bus of its own, over a fake VFIO: a workbench for tests of vfio_pci."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minivmm.bus import Bus
from minivmm.devices.vfio_pci.function import VfioPciFunction
from minivmm.pci.host import PciHost
from minivmm.spec import pci
from minivmm.testing.driver import bench_map
from minivmm.testing.fake_irq import FakeEventInterrupts, FakeInterruptController
from minivmm.testing.fake_vfio import FakeHost
from minivmm.testing.fake_vfio_device import FakePciDevice
from minivmm.testing.pci_driver import PciDriver
from minivmm.trace import Trace
from minivmm.vfio.abi import Irq
from minivmm.vfio.host import HostDevices
from minivmm.vfio.place import by_address

MEMORY_AND_MASTER = pci.Command.MEMORY_SPACE | pci.Command.BUS_MASTER

MSI_AT, MSIX_AT, POWER_AT, EXPRESS_AT = 0x40, 0x60, 0x70, 0x80
"""Where a_device() has its capabilities."""
VECTORS = 8


def a_device(
    name: str = "0000:01:00.0",
    *,
    bar: int = 0x8000,
    table: int = 0x2000,
    pending: int = 0x3000,
    extended: bytes = b"",
) -> FakePciDevice:
    """An express endpoint: BAR 0 is 64-bit and holds the MSI-X table, BAR 2 is for ports, BAR 3
    32-bit; MSI with four vectors, power management."""
    config = bytearray(4096 if extended else 256)

    def put(at: int, size: int, value: int) -> None:
        config[at : at + size] = value.to_bytes(size, "little")

    put(0x00, 4, 0x5678_1234)
    put(pci.STATUS, 2, pci.Status.CAPABILITY_LIST)
    put(pci.HEADER_TYPE, 1, pci.MULTIFUNCTION)
    put(pci.BAR0, 4, 0xF000_000C)  # 64-bit, prefetchable
    put(pci.BAR0 + 8, 4, 0x0000_E001)  # ports
    put(pci.BAR0 + 12, 4, 0xFE00_0000)
    put(pci.EXPANSION_ROM, 4, 0xFFFF_0001)
    put(pci.INTERRUPT_LINE, 1, 11)
    put(pci.INTERRUPT_PIN, 1, 2)
    put(pci.CAPABILITIES, 1, MSI_AT)
    put(MSI_AT, 4, 0x0184_6005)  # four vectors, 64-bit, maskable; next at 0x60
    put(MSIX_AT, 4, (VECTORS - 1) << 16 | POWER_AT << 8 | pci.CapabilityId.MSIX)
    put(MSIX_AT + 4, 4, table)
    put(MSIX_AT + 8, 4, pending)
    put(POWER_AT, 2, EXPRESS_AT << 8 | pci.CapabilityId.POWER_MANAGEMENT)
    put(EXPRESS_AT, 4, 0x0002_0010)  # version 2, endpoint; the last one
    put(EXPRESS_AT + pci.Express.LINK, 4, 0x0041_1111)
    config[256 : 256 + len(extended)] = extended
    irqs = {Irq.INTX: 1, Irq.MSI: 4, Irq.MSIX: VECTORS, Irq.ERROR: 1, Irq.REQUEST: 1}
    return FakePciDevice(name, config, bars={0: bar, 2: 32, 3: 0x1000}, irqs=irqs)


class FakeWindows:
    """bus.Windows: what the guest reaches without an exit, (gpa, size) -> hva."""

    def __init__(self) -> None:
        self.shown: dict[tuple[int, int], int] = {}

    def show(self, gpa: int, size: int, hva: int) -> Callable[[], None]:
        """Raises AssertionError if it overlaps what is shown."""
        assert not any(at < gpa + size and gpa < at + length for at, length in self.shown)
        self.shown[gpa, size] = hva

        def hide() -> None:
            del self.shown[gpa, size]

        return hide


class VfioBench:
    """`device` of `host`, opened and plugged in; `driver` is the guest's way to it."""

    def __init__(self, root: Path, device: FakePciDevice | None = None) -> None:
        self.device = device or a_device()
        self.host = FakeHost(root)
        self.host.add(self.device)
        self.irq = FakeEventInterrupts()
        self.windows = FakeWindows()
        self.trace = Trace()
        self.warnings: list[str] = []
        self.heard: dict[int, Callable[[], None]] = {}
        """What is called when an eventfd is written to, in the order of asking."""
        self.mmio = Bus("mmio")
        self.pci = PciHost(self.mmio, Bus("pio"), bench_map(), FakeInterruptController())

    def plug_in(self) -> None:
        """Open it, as a machine does; its BARs have a place then. vfio.ioctl.raw must be ours."""
        place = by_address(self.device.name, self.host.sysfs)
        self.opened = HostDevices([place], dev=self.host.dev)
        self.function = VfioPciFunction(
            "vfio0",
            self.opened.devices[0],
            interrupts=self.irq,
            windows=self.windows,
            watch=self._watch,
            trace=self.trace,
            warn=self.warnings.append,
        )
        self.pci.add(self.function)
        self.function.start()
        self.pci.assign_bars()
        self.driver = PciDriver(self.mmio, self.function.slot)

    def bar(self, index: int) -> int:
        """Where BAR `index` is, for accesses on `mmio`."""
        return next(one.mapped for one in self.function.bars if one.index == index) or 0

    def close(self) -> None:
        """Give the device back."""
        self.function.close()
        self.opened.close()
        self.irq.close()

    def _watch(self, callback: Callable[[], None]) -> tuple[int, Callable[[], None]]:
        number = 1000 + len(self.heard)
        self.heard[number] = callback
        return number, lambda: None
