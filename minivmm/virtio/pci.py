"""The virtio-pci function, modern interface (virtio-spec 4.1): capabilities, BAR, interrupts.

What the registers mean to a device is transport.py's. BAR 0 is 64-bit, 16 KiB:

    0x0000 common configuration   0x1000 ISR   0x2000 device configuration   0x3000 doorbells

BAR 2 holds the MSI-X table. There is no INTx pin; the ISR byte and the Interrupt Status bit follow
the rules all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from minivmm.bus import Bus, Doorbells
from minivmm.irq import InterruptController
from minivmm.memory.guest import GuestMemory
from minivmm.pci.config import ConfigSpace
from minivmm.pci.function import Bar, PciFunction
from minivmm.pci.msix import MAX_VECTORS, Msix
from minivmm.registers import Register, RegisterFile, constant
from minivmm.spec import pci, virtio_pci
from minivmm.spec.virtio_pci import CapabilityType, CommonConfig, Isr
from minivmm.trace import Trace
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.pci_common import CommonConfiguration
from minivmm.virtio.transport import Defer, Transport

_VIRTIO_BAR, _MSIX_BAR = 0, 2
_COMMON, _ISR, _DEVICE, _NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
_PART_SIZE, _BAR_SIZE = 0x1000, 0x4000
DOORBELL_STRIDE = 4
"""Bytes from one queue's doorbell to the next: notify_off_multiplier."""
DOORBELL_WIDTH = 2
"""Drivers write the 16-bit queue index (PCI-V-9)."""


class VirtioPciFunction(PciFunction):
    """A virtio device on the PCI bus; it is the transport's Notifier."""

    def __init__(
        self,
        device: VirtioDevice,
        *,
        interrupts: InterruptController,
        doorbells: Doorbells,
        memory: GuestMemory,
        trace: Trace,
        defer: Defer,
    ) -> None:
        super().__init__(_header(device))
        self.name = device.identifier
        self.device = device
        self._doorbells = doorbells
        self._unbind: list[Callable[[], None]] = []
        self._isr = 0
        self._queues = range(len(device.traits.queue_sizes))
        self.transport = Transport(device, self, memory=memory, trace=trace, defer=defer)
        vectors = min(device.traits.vectors or max(2, 1 + len(self._queues)), MAX_VECTORS)
        self._common = CommonConfiguration(self.transport, vectors)
        registers = self._build_bar()
        self._add_capabilities()
        bar = self.add_bar(
            _VIRTIO_BAR, _BAR_SIZE, registers, name="virtio", wide=True, prefetchable=True
        )
        ConfigWindow(self.config, bar)
        self.msix = Msix(self, vectors, interrupts, bar_index=_MSIX_BAR)

    def notify_queue(self, index: int) -> None:
        """Used-buffer notification: message, or ISR bit 0 without MSI-X (PCI-D-21, PCI-D-32)."""
        if self.msix.enabled:
            self.msix.deliver(self._common.queue_vectors[index])
        else:
            self._set_isr(self._isr | Isr.QUEUE)

    def notify_config(self) -> None:
        """Configuration change notification; ISR bit 1 first, with or without MSI-X (PCI-D-20)."""
        self._set_isr(self._isr | Isr.CONFIG)
        if self.msix.enabled:
            self.msix.deliver(self._common.config_vector)

    def on_device_reset(self) -> None:
        """The transport was reset: no vector mapped, nothing pending (PCI-D-30, GEN-D-5)."""
        self._common.reset()
        self.msix.forget_pending()
        self._set_isr(0)

    def on_bar_moved(self, bar: Bar) -> None:
        """Doorbells follow the BAR (reference F.5)."""
        if bar.index != _VIRTIO_BAR:
            return
        for unbind in self._unbind:
            unbind()
        self._unbind.clear()
        if bar.mapped is None:
            return
        for index in self._queues:
            gpa = bar.mapped + _NOTIFY + DOORBELL_STRIDE * index
            ring = partial(self.transport.kick, index)
            self._unbind.append(self._doorbells.bind(gpa, DOORBELL_WIDTH, ring))

    def on_bus_master(self, enabled: bool) -> None:
        """While off, rings rest and messages wait; afterwards both are looked at again."""
        if enabled:
            self.msix.flush()
            self.transport.kick_all()

    def reset(self) -> None:
        """Device reset and PCI function reset; the device model keeps its own state (E.5)."""
        self.transport.reset()
        self.msix.reset()
        super().reset()

    def system_reset(self) -> None:
        """The whole machine resets: the device model forgets everything that it may."""
        self.reset()
        self.device.system_reset()

    def inspect(self) -> dict[str, object]:
        """The device model, the transport, the PCI function."""
        return {
            **super().inspect(),
            "transport": self.transport.inspect(),
            "msix": self.msix.inspect(),
            "isr": self._isr,
            "model": self.device.inspect(),
        }

    def _add_capabilities(self) -> None:
        """One of each structure; the driver reads from them where in BAR 0 it lies (PCI-D-7)."""
        doorbells = DOORBELL_STRIDE * len(self._queues)
        add = self.config.add_capability
        add(_capability(CapabilityType.COMMON, _COMMON, CommonConfig.SIZE))
        add(
            virtio_pci.NotifyCapability(
                bar=_VIRTIO_BAR, offset=_NOTIFY, size=doorbells, multiplier=DOORBELL_STRIDE
            )
        )
        add(_capability(CapabilityType.ISR, _ISR, 1))
        if self.device.traits.config_size:
            add(_capability(CapabilityType.DEVICE, _DEVICE, _PART_SIZE))

    def _build_bar(self) -> Bus:
        """The parts of BAR 0 on a bus of their own."""
        isr = Register(0, 1, "isr", self._read_isr)
        doorbells = RegisterFile(
            Register(
                DOORBELL_STRIDE * index,
                DOORBELL_WIDTH,
                f"doorbell {index}",
                constant(0),
                partial(self._rung, index),
            )
            for index in self._queues
        )
        inside = Bus(f"{self.name} bar")
        inside.add(_COMMON, _PART_SIZE, self._common.registers, name="common")
        inside.add(_ISR, _PART_SIZE, RegisterFile([isr]), name="isr")
        inside.add(_DEVICE, _PART_SIZE, DeviceConfiguration(self.transport), name="device")
        inside.add(_NOTIFY, _PART_SIZE, doorbells, name="notify")
        return inside

    def _rung(self, index: int, value: int) -> None:
        """A doorbell write that came as an exit; which queue it is, the address says."""
        self.transport.kick(index)

    def _read_isr(self) -> int:
        isr = self._isr
        self._set_isr(0)
        return isr

    def _set_isr(self, isr: int) -> None:
        self._isr = int(isr)
        self.set_interrupt_status(bool(isr) and not self.msix.enabled)


class DeviceConfiguration:
    """The device configuration structure; every width and alignment works (reference A.3)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def read(self, offset: int, size: int) -> int:
        """Bytes of the configuration space, zeroes behind it."""
        return self._transport.read_config(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Passed on to the device model."""
        self._transport.write_config(offset, size, value)


class ConfigWindow:
    """The PCI_CFG capability: BAR 0 through configuration space, decoded or not (PCI-D-26)."""

    def __init__(self, config: ConfigSpace, bar: Bar) -> None:
        self._config = config
        self._bar = bar
        fields = virtio_pci.WindowCapability.OFFSETS
        writable = virtio_pci.WindowCapability(
            id=0, length=0, type=0, bar=0xFF, offset=(1 << 32) - 1, size=(1 << 32) - 1
        ).build()[: fields["data"]]
        start = config.add_capability(virtio_pci.WindowCapability(), writable + b"\xff" * 4)
        self._bar_at = start + fields["bar"]
        self._offset_at = start + fields["offset"]
        self._size_at = start + fields["size"]
        self._data_at = start + fields["data"]
        config.watch(self._data_at, 4, before_read=self._load, after_write=self._store)

    def _load(self) -> None:
        target = self._target()
        if target:
            self._config.set(self._data_at, 4, self._bar.device.read(*target))

    def _store(self) -> None:
        target = self._target()
        if target:
            offset, size = target
            self._bar.device.write(offset, size, self._config.get(self._data_at, size))

    def _target(self) -> tuple[int, int] | None:
        """(offset, size) of a valid access (PCI-V-8); None for anything else."""
        offset, size = self._config.get(self._offset_at, 4), self._config.get(self._size_at, 4)
        if self._config.get(self._bar_at, 1) != self._bar.index or size not in (1, 2, 4):
            return None
        if offset % size or offset + size > self._bar.size:
            return None
        return offset, size


def _header(device: VirtioDevice) -> pci.Header:
    traits = device.traits
    return pci.Header(
        vendor_id=virtio_pci.VENDOR_ID,
        device_id=virtio_pci.DEVICE_ID_BASE + traits.device_id,
        revision=virtio_pci.REVISION,
        class_code=traits.pci_class.to_bytes(3, "little"),
        subsystem_vendor_id=virtio_pci.SUBSYSTEM_VENDOR_ID,
        subsystem_id=virtio_pci.SUBSYSTEM_ID,
    )


def _capability(kind: CapabilityType, offset: int, size: int) -> virtio_pci.VirtioCapability:
    return virtio_pci.VirtioCapability(type=kind, bar=_VIRTIO_BAR, offset=offset, size=size)
