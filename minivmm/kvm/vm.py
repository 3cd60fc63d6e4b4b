"""One virtual machine in KVM: its memory slots, interrupt controllers, eventfds and vCPUs.

What lies at which address, and who signals what, is the machine's business.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ctypes import byref

from minivmm.errors import HostError
from minivmm.kvm import abi, device_abi, dirty_abi
from minivmm.kvm.ioctl import Ioctl, Table, call
from minivmm.kvm.pieces import VcpuTraits
from minivmm.kvm.saved import CHIPS, get_chip, get_clock, load_vm, save_vm
from minivmm.kvm.vcpu import Vcpu
from minivmm.spec.platform import IDENTITY_MAP_BASE, TSS_BASE
from minivmm.units import format_size

_PIC_PINS = 8
_IOAPIC_PINS = 24


class Vm:
    """A VM and its descriptor, with PICs, IOAPIC and LAPICs in the kernel and no PIT.

    Made by System.create_vm(). Every failure of KVM is raised as HostError.

    KVM_CAP_X2APIC_API is deliberately not enabled: only CPUs above 254 need it, and with it KVM
    would judge the upper half of MSI addresses, which are the guest's choice, and refuse routes.
    """

    def __init__(self, fd: int, traits: VcpuTraits) -> None:
        self._fd = fd
        self._traits = traits
        self._vcpus: list[Vcpu] = []
        self._vfio: int | None = None
        # Before any vCPU (reference F.1). Only Intel without "unrestricted guest" needs the two.
        identity_map = ctypes.c_uint64(IDENTITY_MAP_BASE)
        call(fd, Ioctl.SET_IDENTITY_MAP_ADDR, byref(identity_map), to="place the identity map")
        call(fd, Ioctl.SET_TSS_ADDR, TSS_BASE, to="place the TSS")
        call(fd, Ioctl.CREATE_IRQCHIP, to="create the interrupt controllers")
        self._irqchips = [get_chip(fd, chip) for chip in CHIPS]

    def set_memory_region(
        self,
        slot: int,
        gpa: int,
        size: int,
        hva: int,
        *,
        readonly: bool = False,
        logged: bool = False,
    ) -> None:
        """Show the guest `size` bytes of host memory at `hva` as its memory at `gpa`.

        Page multiples all; `size` 0 deletes the slot. A slot cannot be resized, nor slots overlap;
        writes to a read-only one exit as MMIO (KVM_SET_USER_MEMORY_REGION, reference F.3). Of a
        `logged` one KVM remembers which pages are written, and that may be changed at any time.
        """
        flags = abi.MEM_READONLY if readonly else 0
        flags |= dirty_abi.MEM_LOG_DIRTY_PAGES if logged else 0
        region = abi.KvmUserspaceMemoryRegion(slot, flags, gpa, size, hva)
        what = f"set memory slot {slot} to {format_size(size)} at {gpa:#x}"
        call(self._fd, Ioctl.SET_USER_MEMORY_REGION, byref(region), to=what)

    def dirty_pages(self, slot: int, size: int) -> bytearray:
        """Which pages of a logged `slot` of `size` bytes were written since the last such call.

        A bit a page, the lowest first. vCPUs may run: what they write from now on is told by the
        next call (KVM_GET_DIRTY_LOG, reference F.4).
        """
        bitmap = bytearray(dirty_abi.bitmap_size(size))
        where = ctypes.addressof(ctypes.c_char.from_buffer(bitmap))
        request = dirty_abi.KvmDirtyLog(slot=slot, dirty_bitmap=where)
        call(self._fd, Ioctl.GET_DIRTY_LOG, byref(request), to=f"read the log of slot {slot}")
        return bitmap

    def create_vcpu(self, index: int) -> Vcpu:
        """A vCPU whose APIC id is `index` (0..254); number 0 is the boot CPU."""
        fd = call(self._fd, Ioctl.CREATE_VCPU, index, to=f"create cpu{index}")
        vcpu = Vcpu(fd, index, self._traits)
        self._vcpus.append(vcpu)
        return vcpu

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Drive pin `gsi` (0..23) of IOAPIC and PICs."""
        line = abi.KvmIrqLevel(gsi, level)
        call(self._fd, Ioctl.IRQ_LINE, byref(line), to="set an interrupt line")

    def set_irqfd(
        self, fd: int, gsi: int, *, assign: bool = True, resample: int | None = None
    ) -> None:
        """Have writes to eventfd `fd` raise `gsi`, or undo exactly that (reference F.6).

        With `resample`, an eventfd, they assert a pin; it is released and `resample` written to
        when the guest acknowledges its interrupt.
        """
        irqfd = abi.KvmIrqfd(fd=fd, gsi=gsi, flags=0 if assign else abi.IRQFD_DEASSIGN)
        if resample is not None and assign:
            irqfd.flags, irqfd.resamplefd = abi.IRQFD_RESAMPLE, resample
        call(self._fd, Ioctl.IRQFD, byref(irqfd), to=f"tie an eventfd to GSI {gsi}")

    def set_routes(self, msi: Mapping[int, tuple[int, int]]) -> None:
        """Replace the routing table: the 24 pins, and `msi` as GSI -> (64-bit address, data).

        KVM takes any address and data. A GSI without a route is silent; irqfds on it stay valid.
        """
        entries = [*_pin_routes(), *_msi_routes(msi)]
        table = Table(abi.KvmIrqRouting, abi.KvmIrqRoutingEntry, len(entries))
        for slot, (gsi, kind, where) in zip(table.entries, entries, strict=True):
            slot.gsi, slot.type = gsi, kind
            slot.where[: len(where)] = where
        call(self._fd, Ioctl.SET_GSI_ROUTING, byref(table.head), to=f"route {len(entries)} GSIs")

    def show_vfio(self, fd: int, *, shown: bool = True) -> None:
        """Tell KVM of a VFIO group or device in use here (Documentation/virt/kvm/devices/vfio.rst).

        Then DMA that the CPUs' caches do not see is taken care of, and devices that need to know
        the VM do. KVM holds on to it until it is not `shown` any more, or the VM ends.
        """
        if self._vfio is None:
            device = device_abi.KvmCreateDevice(type=device_abi.DEV_TYPE_VFIO)
            call(self._fd, Ioctl.CREATE_DEVICE, byref(device), to="connect KVM and VFIO")
            self._vfio = int(device.fd)
        number = ctypes.c_int32(fd)
        attribute = device_abi.KvmDeviceAttr(
            group=device_abi.DEV_VFIO_FILE,
            attr=device_abi.DEV_VFIO_FILE_ADD if shown else device_abi.DEV_VFIO_FILE_DEL,
            addr=ctypes.addressof(number),
        )
        call(self._vfio, Ioctl.SET_DEVICE_ATTR, byref(attribute), to="connect KVM and VFIO")

    def set_ioeventfd(self, fd: int, address: int, length: int, *, assign: bool = True) -> None:
        """Have guest writes of `length` bytes (0: any) at MMIO `address` signal eventfd `fd`.

        Such a write does not exit; its value is lost. Undoing needs identical arguments (F.5).
        """
        flags = 0 if assign else abi.IOEVENTFD_DEASSIGN
        ioeventfd = abi.KvmIoeventfd(addr=address, len=length, fd=fd, flags=flags)
        what = f"tie an eventfd to writes at {address:#x}"
        call(self._fd, Ioctl.IOEVENTFD, byref(ioeventfd), to=what)

    def clock(self) -> float | None:
        """The guest's kvmclock, in seconds since it began; it runs on while vCPUs are stopped.

        None if KVM does not tell.
        """
        with suppress(HostError):
            return get_clock(self._fd) / 1e9
        return None

    def save_state(self) -> bytes:
        """Interrupt controllers and clock; all vCPUs are out of run(). Raises HostError."""
        return save_vm(self._fd)

    def load_state(self, data: bytes) -> None:
        """Take such a state over, after that of the vCPUs. Raises BadState."""
        load_vm(self._fd, data)

    def reset_irqchips(self) -> None:
        """PICs and IOAPIC back to their state after creation; LAPICs follow with their vCPUs.

        Levels of pins are their drivers' state and stay: devices release theirs in their reset.
        """
        for chip in self._irqchips:
            call(self._fd, Ioctl.SET_IRQCHIP, byref(chip), to="reset the interrupt controllers")

    def close(self) -> None:
        """Close the vCPUs and the VM. KVM ends it when the last Vcpu object is gone, too."""
        for vcpu in self._vcpus:
            vcpu.close()
        self._vcpus.clear()
        if self._vfio is not None:
            os.close(self._vfio)
            self._vfio = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _pin_routes() -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """KVM's own routes of GSIs 0-23: the IOAPIC pin of that number, and 0-15 the PICs' as well."""
    for gsi in range(_IOAPIC_PINS):
        yield gsi, abi.ROUTING_IRQCHIP, (abi.CHIP_IOAPIC, gsi)
        if gsi < 2 * _PIC_PINS:
            chip = abi.CHIP_PIC_SLAVE if gsi >= _PIC_PINS else abi.CHIP_PIC_MASTER
            yield gsi, abi.ROUTING_IRQCHIP, (chip, gsi % _PIC_PINS)


def _msi_routes(
    msi: Mapping[int, tuple[int, int]],
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    for gsi, (address, data) in msi.items():
        yield gsi, abi.ROUTING_MSI, (address & 0xFFFF_FFFF, address >> 32, data)
