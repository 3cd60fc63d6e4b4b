"""The driver's side of virtio-pci: finds the function's structures and drives the device.

    with DeviceBench(MyDevice("dev0")) as bench:
        bench.driver.start()
        reply = bench.driver.request(0, b"question", 10)
        assert bench.irq.take() == [1]          # MSI-X vector numbers

Everything goes the way a guest would go: configuration space, BARs, rings in guest memory.
"""

from __future__ import annotations

from typing import Self

from minivmm.bus import Bus
from minivmm.closing import Closing
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import AddressMap, Window
from minivmm.memory.region import Region
from minivmm.pci.host import PciHost
from minivmm.spec import pci, platform
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.spec.virtio_pci import NO_VECTOR, CapabilityType, CommonConfig
from minivmm.testing.buffers import GuestAllocator, RingDriver, Used
from minivmm.testing.fake_irq import FakeDefer, FakeDoorbells, FakeInterruptController
from minivmm.testing.packed_ring import PackedDriver
from minivmm.testing.pci_driver import PciDriver
from minivmm.testing.ring import SplitDriver
from minivmm.trace import Event, Trace
from minivmm.units import GIB, MIB
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.pci import VirtioPciFunction

MESSAGE_ADDRESS = 0xFEE0_0000
"""Where the driver sends its messages; the data word is the vector's number."""

_WIDTHS = {name: (offset, width) for offset, width, name in CommonConfig.layout()}


class VirtioPciDriver(PciDriver):
    """Drives the virtio function in `slot`. `doorbells` and `defer` stand for KVM and the loop."""

    def __init__(
        self,
        mmio: Bus,
        memory: GuestMemory,
        allocator: GuestAllocator,
        slot: int,
        *,
        doorbells: FakeDoorbells,
        defer: FakeDefer,
    ) -> None:
        super().__init__(mmio, slot)
        self.queues: dict[int, RingDriver] = {}
        self.features = 0
        self._memory = memory
        self._allocator = allocator
        self._doorbells = doorbells
        self._defer = defer

    def go_on(
        self, mmio: Bus, memory: GuestMemory, doorbells: FakeDoorbells, defer: FakeDefer
    ) -> None:
        """What the driver has is the same, but elsewhere: its machine was moved."""
        self._mmio, self._memory = mmio, memory
        self._doorbells, self._defer = doorbells, defer
        self._allocator.move(memory)
        for ring in self.queues.values():
            ring.move(memory)

    # -- common configuration ----------------------------------------------------------------------

    def get(self, name: str) -> int:
        """Read a field of the common configuration; 64-bit ones as two halves."""
        offset, width = _WIDTHS[name]
        if width < 8:
            return self.read(CapabilityType.COMMON, offset, width)
        low = self.read(CapabilityType.COMMON, offset, 4)
        return self.read(CapabilityType.COMMON, offset + 4, 4) << 32 | low

    def set(self, name: str, value: int) -> None:
        """Write a field of the common configuration; 64-bit ones as two halves."""
        offset, width = _WIDTHS[name]
        for at in range(0, width, 4):
            self.write(
                CapabilityType.COMMON, offset + at, min(width, 4), value >> 8 * at & 0xFFFF_FFFF
            )

    @property
    def status(self) -> DeviceStatus:
        """device_status."""
        return DeviceStatus(self.get("device_status"))

    def add_status(self, bits: int) -> None:
        """Write device_status with `bits` added, as Linux does."""
        self.set("device_status", self.status | bits)

    def offered_features(self) -> int:
        """All features of the device."""
        words = []
        for word in range(4):
            self.set("device_feature_select", word)
            words.append(self.get("device_feature"))
        return sum(word << 32 * at for at, word in enumerate(words))

    def negotiate(self, features: int | None = None) -> bool:
        """ACKNOWLEDGE, DRIVER, `features` (default: all offered), FEATURES_OK; was it accepted?"""
        self.add_status(DeviceStatus.ACKNOWLEDGE)
        self.add_status(DeviceStatus.DRIVER)
        self.features = self.offered_features() if features is None else features
        for word in range(4):
            self.set("driver_feature_select", word)
            self.set("driver_feature", self.features >> 32 * word & 0xFFFF_FFFF)
        self.add_status(DeviceStatus.FEATURES_OK)
        return DeviceStatus.FEATURES_OK in self.status

    def has(self, feature: Feature) -> bool:
        """Was `feature` negotiated?"""
        return bool(self.features & feature.mask)

    def setup_queue(
        self, index: int, size: int | None = None, *, vector: int | None = None
    ) -> RingDriver:
        """A new ring for queue `index` (default: its largest size), enabled.

        Its vector is index + 1 by default, or the last one if there are fewer.
        """
        self.set("queue_select", index)
        if size is not None:
            self.set("queue_size", size)
        kind = PackedDriver if self.has(Feature.RING_PACKED) else SplitDriver
        event_idx = self.has(Feature.EVENT_IDX)
        ring = kind(self._memory, self._allocator, self.get("queue_size"), event_idx=event_idx)
        self.set("queue_desc", ring.layout.descriptors)
        self.set("queue_driver", ring.layout.driver)
        self.set("queue_device", ring.layout.device)
        if vector is None:
            vector = min(index + 1, self.vectors - 1) if self.vectors else NO_VECTOR
        self.set("queue_msix_vector", vector)
        self.set("queue_enable", 1)
        self.queues[index] = ring
        return ring

    @property
    def vectors(self) -> int:
        """How many vectors the MSI-X table has; 0 if there is no MSI-X."""
        if not self.msix_capability:
            return 0
        return (self.read_pci(self.msix_capability + 2, 2) & 0x7FF) + 1

    def enable_msix(self) -> None:
        """Every vector unmasked; vector n sends n to MESSAGE_ADDRESS."""
        self.set_msix_control(pci.MsixControl.ENABLE | pci.MsixControl.FUNCTION_MASK)
        for vector in range(self.vectors):
            self.set_msix_entry(vector, pci.MsixEntry(MESSAGE_ADDRESS, 0, vector, 0))
        self.set_msix_control(pci.MsixControl.ENABLE)

    def set_msix_control(self, control: int) -> None:
        """Write MSI-X Message Control."""
        self.write_pci(self.msix_capability + 2, 2, control)

    def set_msix_entry(self, vector: int, entry: pci.MsixEntry) -> None:
        """Write one table entry, four bytes at a time."""
        table = self.read_pci(self.msix_capability + 4, 4)
        at = self.bar_address(table & 7) + (table & ~7) + pci.MsixEntry.SIZE * vector
        data = entry.build()
        for offset in range(0, len(data), 4):
            word = int.from_bytes(data[offset : offset + 4], "little")
            self._mmio.write(at + offset, 4, word)

    # -- life --------------------------------------------------------------------------------------

    def start(self, features: int | None = None, *, size: int | None = None) -> Self:
        """Probe, reset, negotiate, MSI-X, all queues, DRIVER_OK; AssertionError if refused."""
        self.probe()
        self.reset()
        assert self.negotiate(features), "FEATURES_OK was refused"
        if self.msix_capability:
            self.enable_msix()
            self.set("config_msix_vector", 0)
        for index in range(self.get("num_queues")):
            self.setup_queue(index, size)
        self.add_status(DeviceStatus.DRIVER_OK)
        return self

    def reset(self) -> None:
        """Write 0 to device_status; the rings are forgotten."""
        self.set("device_status", 0)
        self.queues.clear()

    def reset_queue(self, index: int) -> None:
        """Write 1 to queue_reset (RING_RESET); the ring is forgotten."""
        self.set("queue_select", index)
        self.set("queue_reset", 1)
        self.queues.pop(index, None)

    def kick(self, index: int, *, by_exit: bool = False) -> None:
        """Ring the doorbell of queue `index`; with `by_exit`, by a write that reaches the BAR.

        Work that the device deferred is done before this returns.
        """
        self.set("queue_select", index)
        structure = self.structures[CapabilityType.NOTIFY]
        offset = self.get("queue_notify_off") * structure.multiplier
        gpa = self.address(CapabilityType.NOTIFY, offset)
        width, value = self._doorbell(index)
        if by_exit or not self._doorbells.ring(gpa, width):
            self._mmio.write(gpa, width, value)
        self._defer.run()

    def _doorbell(self, index: int) -> tuple[int, int]:
        """Width in bytes and value of queue `index`'s doorbell (PCI-V-9)."""
        named = self.has(Feature.NOTIF_CONFIG_DATA)
        name = self.get("queue_notif_config_data") if named else index
        if not self.has(Feature.NOTIFICATION_DATA):
            return 2, name
        position = self.queues[index].position if index in self.queues else 0
        return 4, position << 16 | name

    def submit(self, index: int, *readable: bytes, writable: tuple[int, ...] = ()) -> list[Used]:
        """One chain: add, kick if the device wants it, collect everything that came back.

        A chain of more descriptors than the ring has goes into an indirect table.
        """
        ring = self.queues[index]
        fits = len(readable) + len(writable) <= ring.size
        ring.add(readable, writable, direct=None if fits else 0)
        if ring.wants_kick():
            self.kick(index)
        return ring.collect()

    def request(self, index: int, data: bytes, reply_size: int) -> bytes:
        """Send `data` with room for `reply_size` bytes; what the device wrote.

        Raises AssertionError unless exactly this request came back.
        """
        done = self.submit(index, data, writable=(reply_size,))
        assert len(done) == 1, f"{len(done)} chains came back"
        return done[0].data

    def read_config(self, size: int) -> bytes:
        """The first `size` bytes of device configuration, by the generation loop."""
        while True:
            before = self.get("config_generation")
            data = b"".join(
                self.read(CapabilityType.DEVICE, at, 1).to_bytes(1, "little") for at in range(size)
            )
            if self.get("config_generation") == before:
                return data

    def isr(self) -> int:
        """Read, and so clear, the ISR byte."""
        return self.read(CapabilityType.ISR, 0, 1)


def bench_map(ram: int = 16 * MIB) -> AddressMap:
    """An address map with `ram` bytes at 0 and the 64-bit PCI window out of everybody's way."""
    return AddressMap(
        ram=(Window(0, ram),),
        regions={},
        ecam=Window(platform.ECAM_BASE, platform.ECAM_SIZE),
        mmio32=Window(platform.MMIO32_BASE, platform.MMIO32_SIZE),
        mmio64=Window(1 << 40, 64 * GIB),
        phys_bits=46,
    )


class DeviceBench(Closing):
    """A device on a PCI bus with 16 MiB of RAM and everything else faked. Use as a context."""

    def __init__(self, device: VirtioDevice, irq: FakeInterruptController | None = None) -> None:
        self.device = device
        self.memory = GuestMemory()
        address_map = bench_map()
        ram = address_map.ram[0]
        self.memory.add(ram.base, Region(ram.size), name="ram")
        self.allocator = GuestAllocator(self.memory, MIB, ram.end)
        self.irq = irq or FakeInterruptController()
        self.doorbells = FakeDoorbells()
        self.defer = FakeDefer()
        self.trace = Trace()
        self.mmio, self.pio = Bus("mmio"), Bus("pio")
        self.host = PciHost(self.mmio, self.pio, address_map, self.irq)
        self.function, self.driver = self.add(device)

    def add(
        self, device: VirtioDevice, slot: int | None = None
    ) -> tuple[VirtioPciFunction, VirtioPciDriver]:
        """Plug a function with `device` into `slot` or the next one; all BARs are placed anew."""
        function = VirtioPciFunction(
            device,
            interrupts=self.irq,
            doorbells=self.doorbells,
            memory=self.memory,
            trace=self.trace,
            defer=self.defer,
        )
        self.host.add(function, slot)
        self.host.assign_bars()
        driver = VirtioPciDriver(
            self.mmio,
            self.memory,
            self.allocator,
            function.slot,
            doorbells=self.doorbells,
            defer=self.defer,
        )
        return function, driver

    def events(self, name: str) -> list[Event]:
        """Trace events called `name`, oldest first."""
        return [event for event in self.trace.recent() if event.name == name]

    def close(self) -> None:
        """Unmap guest memory."""
        self.memory.close()
