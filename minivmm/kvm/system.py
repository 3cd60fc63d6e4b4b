"""/dev/kvm: may we use it, what can it do, and new virtual machines."""

from __future__ import annotations

import errno
import os
from ctypes import byref, c_uint32
from typing import Any

from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm.ioctl import Ioctl, Table, call
from minivmm.kvm.pieces import VcpuTraits
from minivmm.kvm.vm import Vm
from minivmm.spec.x86 import CpuidEntry

_REQUIRED = (
    abi.Cap.IRQCHIP,
    abi.Cap.USER_MEMORY,
    abi.Cap.SET_TSS_ADDR,
    abi.Cap.EXT_CPUID,
    abi.Cap.MP_STATE,
    abi.Cap.IRQ_ROUTING,
    abi.Cap.IRQFD,
    abi.Cap.IOEVENTFD,
    abi.Cap.SET_IDENTITY_MAP_ADDR,
    abi.Cap.VCPU_EVENTS,
    abi.Cap.DEBUGREGS,
    abi.Cap.XSAVE,
    abi.Cap.READONLY_MEM,
    abi.Cap.IMMEDIATE_EXIT,
)
"""All there since Linux 4.13 (2017); IMMEDIATE_EXIT came last."""

_FIRST_GUESS = 256
"""Entries offered for a list whose length only KVM knows."""


class System:
    """The open device. Raises HostError, with the cure, if it cannot be used."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        self._path = path
        self._fd = _open(path)
        try:
            self._check_interface()
        except BaseException:
            self.close()
            raise

    def check(self, capability: int) -> int:
        """What KVM says about an abi.Cap: 0 for no, else yes or a number. Raises HostError."""
        return call(self._fd, Ioctl.CHECK_EXTENSION, int(capability), to="ask for a capability")

    def supported_cpuid(self) -> list[CpuidEntry]:
        """The CPUID leaves that this host can give to guests. Raises HostError."""
        table = self._list(Ioctl.GET_SUPPORTED_CPUID, abi.KvmCpuid2, abi.KvmCpuidEntry2)
        return [
            CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
            for e in table.entries[: table.count]
        ]

    def create_vm(self) -> Vm:
        """A VM without memory and vCPUs, set up as reference F.1 says. Raises HostError."""
        indices = self._list(Ioctl.GET_MSR_INDEX_LIST, abi.KvmMsrList, c_uint32)
        traits = VcpuTraits(
            run_size=call(self._fd, Ioctl.GET_VCPU_MMAP_SIZE, to="size the vCPU area"),
            xsave_size=self.check(abi.Cap.XSAVE2),
            has_xcrs=bool(self.check(abi.Cap.XCRS)),
            msr_indices=tuple(indices.entries[: indices.count]),
            has_sregs2=bool(self.check(abi.Cap.SREGS2)),
            scales_tsc=bool(self.check(abi.Cap.TSC_CONTROL)),
        )
        fd = call(self._fd, Ioctl.CREATE_VM, to="create a virtual machine")
        try:
            return Vm(fd, traits)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close the device; virtual machines live on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _list(self, request: Ioctl, head: type[Any], entry: type[Any]) -> Table:
        """Ask for a list, with more room as long as KVM says that it does not fit."""
        room = _FIRST_GUESS
        while True:
            table = Table(head, entry, room)
            try:
                call(self._fd, request, byref(table.head), to="list what KVM supports")
                return table
            except HostError as error:
                too_small = getattr(error.__cause__, "errno", 0) == errno.E2BIG
                if not too_small or room >= 1 << 16:
                    raise
                room *= 2

    def _check_interface(self) -> None:
        try:
            version = call(self._fd, Ioctl.GET_API_VERSION, to=f"use {self._path}")
        except HostError as error:
            raise HostError(
                f"{self._path} is not a KVM device: load kvm_intel or kvm_amd, or use --accel lab"
            ) from error
        if version != abi.API_VERSION:
            raise HostError(
                f"{self._path} speaks KVM API version {version}, minivmm needs {abi.API_VERSION}:"
                " use another host kernel, or --accel lab"
            )
        missing = ", ".join(f"KVM_CAP_{c.name}" for c in _REQUIRED if not self.check(c))
        if missing:
            raise HostError(
                f"{self._path} lacks {missing}: use a newer host kernel (x86-64 Linux 4.13 or"
                " later), or --accel lab"
            )


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise HostError(
            f"{path} may not be opened by this user: join its group with"
            " `sudo usermod -aG kvm $USER` and log in again (or `sudo chmod a+rw"
            f" {path}`), or use --accel lab"
        ) from error
    except OSError as error:
        raise HostError(
            f"{path} cannot be opened ({error.strerror}): enable virtualization in the firmware and"
            " load kvm_intel or kvm_amd, or use --accel lab"
        ) from error
