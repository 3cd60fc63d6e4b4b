"""The virtio-pci function, modern interface (virtio-spec 4.1): capabilities, BAR, interrupts.

What the registers mean to a device is transport.py's. BAR 0 is 64-bit, 16 KiB:

    0x0000 common configuration   0x1000 ISR   0x2000 device configuration   0x3000 doorbells

BAR 2 holds the MSI-X table. Drivers that do not switch MSI-X on, and those of devices without any
(vectors=0), are interrupted by INTA#: level-triggered, and released by reading the ISR byte.
"""

from __future__ import annotations

from minivmm.bus import Bus, Doorbells
from minivmm.errors import BadState, DeviceBroken
from minivmm.irq import InterruptController
from minivmm.memory.guest import GuestMemory
from minivmm.pci.function import Bar, PciFunction
from minivmm.pci.msix import MAX_VECTORS, Msix
from minivmm.registers import Register, RegisterFile
from minivmm.saved import Form, build, parse
from minivmm.spec import pci, virtio_pci
from minivmm.spec.virtio_pci import CapabilityType, CommonConfig, Isr
from minivmm.trace import Trace
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.notification import STRIDE, NotificationArea
from minivmm.virtio.pci_common import CommonConfiguration
from minivmm.virtio.pci_window import ConfigWindow
from minivmm.virtio.saved import judge_interrupts, judge_transport, transport_values
from minivmm.virtio.service import Defer
from minivmm.virtio.transport import Transport

_FORM = Form("minivmm.virtio.saved_forms", "FUNCTION")

_VIRTIO_BAR, _MSIX_BAR = 0, 2
_COMMON, _ISR, _DEVICE, _NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
_PART_SIZE, _BAR_SIZE = 0x1000, 0x4000


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
        self._isr = 0
        self.transport = Transport(device, self, memory=memory, trace=trace, defer=defer)
        self._notifications = NotificationArea(self.transport, doorbells)
        vectors = _vectors(device)
        self._common = CommonConfiguration(
            self.transport, self._notifications, vectors, self._event_moved
        )
        registers = self._build_bar()
        self._add_capabilities()
        self.add_bar(_VIRTIO_BAR, _BAR_SIZE, registers, name="virtio", wide=True, prefetchable=True)
        ConfigWindow(self)
        self.msix = Msix(self, vectors, interrupts, bar_index=_MSIX_BAR) if vectors else None
        if device.options.flr:
            self.offer_reset()

    @property
    def isr(self) -> int:
        """The ISR byte, without what reading it does."""
        return self._isr

    @property
    def selected_queue(self) -> int:
        """The queue that the driver selected last."""
        return self._common.queue_select

    def notify_queue(self, index: int) -> None:
        """Used-buffer notification: message, or ISR bit 0 and pin (PCI-D-21, PCI-D-32)."""
        if self.msix and self.msix.enabled:
            self.msix.deliver(self._common.queue_vectors[index])
        else:
            self._set_isr(self._isr | Isr.QUEUE)

    def notify_config(self) -> None:
        """Configuration change notification; ISR bit 1 first, with or without MSI-X (PCI-D-20)."""
        self._set_isr(self._isr | Isr.CONFIG)
        if self.msix and self.msix.enabled:
            self.msix.deliver(self._common.config_vector)

    def on_device_reset(self) -> None:
        """The transport was reset: no vector mapped, nothing pending (PCI-D-30, GEN-D-5)."""
        self._common.reset()
        if self.msix:
            self.msix.forget_pending()
        self._set_isr(0)

    def on_queue_reset(self, index: int) -> None:
        """Queue `index` was reset: nothing is notified for it any more (GEN-D-7)."""
        self._common.unmap_queue(index)

    def on_bar_moved(self, bar: Bar) -> None:
        """Doorbells follow the BAR (reference F.5).

        What another CPU rang at the old place may not have been heard, so all rings are looked at.
        """
        if bar.index == _VIRTIO_BAR:
            self._notifications.move(None if bar.mapped is None else bar.mapped + _NOTIFY)
            self.transport.kick_all()

    def on_bus_master(self, enabled: bool) -> None:
        """While off, rings rest and messages wait; afterwards both are looked at again."""
        if enabled:
            if self.msix:
                self.msix.flush()
            self.transport.kick_all()

    def on_msix_control(self) -> None:
        """With MSI-X the pin is silent; without, it tells of every ISR bit (PCI-D-21)."""
        self._set_isr(self._isr)

    def reset(self) -> None:
        """Device reset and PCI function reset; the device model keeps its own state (E.5)."""
        self.transport.reset()
        if self.msix:
            self.msix.reset()
        super().reset()

    def system_reset(self) -> None:
        """The whole machine resets: the device model forgets everything that it may."""
        self.reset()
        self.device.system_reset()

    def save_state(self) -> bytes:
        """Configuration space, registers, interrupts, rings; the device model saves itself."""
        return build(
            _FORM,
            pci=self.save_pci(),
            msix=self.msix.save() if self.msix else None,
            isr=self._isr,
            common=self._common.save(),
            transport=transport_values(self.transport),
        )

    def load_state(self, data: bytes) -> None:
        """Take it over, the device model's having been loaded. Raises BadState.

        Doorbells are bound, but held (Transport.hold), and no message leaves.
        """
        saved = parse(self.name, _FORM, data)
        queues, vectors = len(self.transport.queue_registers), _vectors(self.device)
        self.judge_pci(saved.pci)
        judge_interrupts(saved, self.name, queues=queues, vectors=vectors)
        judge_transport(saved.transport, self.transport)
        if self.msix:
            self.msix.judge(saved.msix)
        try:
            self.transport.load(saved.transport)
        except DeviceBroken as error:
            raise BadState(self.name, "rings", "of this layout", str(error)) from error
        self._common.load(saved.common)
        if self.msix:
            self.msix.load(saved.msix)
        self.load_pci(saved.pci)
        self._set_isr(saved.isr)

    def inspect(self) -> dict[str, object]:
        """The device model, the transport, the PCI function."""
        return {
            **super().inspect(),
            "transport": self.transport.inspect(),
            "msix": self.msix.inspect() if self.msix else None,
            "isr": self._isr,
            "model": self.device.inspect(),
        }

    def _add_capabilities(self) -> None:
        """One of each structure; the driver reads from them where in BAR 0 it lies (PCI-D-7)."""
        add = self.config.add_capability
        add(_capability(CapabilityType.COMMON, _COMMON, CommonConfig.SIZE))
        add(
            virtio_pci.NotifyCapability(
                bar=_VIRTIO_BAR, offset=_NOTIFY, size=self._notifications.size, multiplier=STRIDE
            )
        )
        add(_capability(CapabilityType.ISR, _ISR, 1))
        if self.device.traits.config_size:
            add(_capability(CapabilityType.DEVICE, _DEVICE, _PART_SIZE))

    def _build_bar(self) -> Bus:
        """The parts of BAR 0 on a bus of their own."""
        isr = Register(0, 1, "isr", self._read_isr)
        inside = Bus(f"{self.name} bar")
        inside.add(_COMMON, _PART_SIZE, self._common.registers, name="common")
        inside.add(_ISR, _PART_SIZE, RegisterFile([isr]), name="isr")
        inside.add(_DEVICE, _PART_SIZE, DeviceConfiguration(self.transport), name="device")
        inside.add(_NOTIFY, _PART_SIZE, self._notifications, name="notify")
        return inside

    def _event_moved(self, old: int, new: int) -> None:
        """A message that is due goes with its event, or nowhere if that is unmapped (PCI-D-32).

        It stays as well if other events share the old vector: it may be theirs, and an interrupt
        without a reason does less harm than one that is lost.
        """
        if self.msix and self.msix.is_due(old):
            if not self._common.is_mapped(old):
                self.msix.forget(old)
            self.msix.deliver(new)

    def _read_isr(self) -> int:
        isr = self._isr
        self._set_isr(0)
        return isr

    def _set_isr(self, isr: int) -> None:
        self._isr = int(isr)
        self.set_interrupt_status(bool(isr) and not (self.msix and self.msix.enabled))


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


def _header(device: VirtioDevice) -> pci.Header:
    traits = device.traits
    return pci.Header(
        vendor_id=virtio_pci.VENDOR_ID,
        device_id=virtio_pci.DEVICE_ID_BASE + traits.device_id,
        revision=virtio_pci.REVISION,
        class_code=traits.pci_class.to_bytes(3, "little"),
        subsystem_vendor_id=virtio_pci.SUBSYSTEM_VENDOR_ID,
        subsystem_id=virtio_pci.SUBSYSTEM_ID,
        interrupt_pin=pci.INTA,
    )


def _vectors(device: VirtioDevice) -> int:
    """MSI-X vectors: as the user says, else as the device model does, else one per event."""
    if device.options.vectors is not None:
        return device.options.vectors
    events = 1 + len(device.traits.queue_sizes)
    return device.traits.vectors or min(max(2, events), MAX_VECTORS)


def _capability(kind: CapabilityType, offset: int, size: int) -> virtio_pci.VirtioCapability:
    return virtio_pci.VirtioCapability(type=kind, bar=_VIRTIO_BAR, offset=offset, size=size)
