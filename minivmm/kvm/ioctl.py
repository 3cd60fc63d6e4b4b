"""Requests to KVM: their numbers, and the one way to make them. What they mean is said by callers.

ioctl(2) is declared with a fixed number of arguments: ctypes would pass an undeclared int as 32
bits and cut pointers (shared/DESIGN.md, section 3). Correct for x86-64, where a variadic call
passes its arguments like any other. ctypes releases the GIL during the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import c_int, c_ulong, c_void_p, sizeof
from enum import IntEnum
from typing import Any

from minivmm.errors import HostError
from minivmm.kvm import abi, debug_abi, device_abi, dirty_abi, saved_abi

_KVMIO = 0xAE


def _ioc(direction: int, nr: int, size: int) -> int:
    """<asm-generic/ioctl.h>: direction in bits 31:30, size in 29:16, type in 15:8, nr in 7:0."""
    return direction << 30 | size << 16 | _KVMIO << 8 | nr


def _IO(nr: int) -> int:
    return _ioc(0, nr, 0)


def _IOW(nr: int, argument: Any) -> int:
    return _ioc(1, nr, sizeof(argument))


def _IOR(nr: int, argument: Any) -> int:
    return _ioc(2, nr, sizeof(argument))


def _IOWR(nr: int, argument: Any) -> int:
    return _ioc(3, nr, sizeof(argument))


class Ioctl(IntEnum):
    """Requests (KVM_*): first those of /dev/kvm, then of a VM, then of a vCPU (reference F.2)."""

    GET_API_VERSION = _IO(0x00)
    CREATE_VM = _IO(0x01)
    GET_MSR_INDEX_LIST = _IOWR(0x02, abi.KvmMsrList)
    CHECK_EXTENSION = _IO(0x03)
    GET_VCPU_MMAP_SIZE = _IO(0x04)
    GET_SUPPORTED_CPUID = _IOWR(0x05, abi.KvmCpuid2)

    CREATE_VCPU = _IO(0x41)
    GET_DIRTY_LOG = _IOW(0x42, dirty_abi.KvmDirtyLog)
    SET_USER_MEMORY_REGION = _IOW(0x46, abi.KvmUserspaceMemoryRegion)
    SET_TSS_ADDR = _IO(0x47)
    SET_IDENTITY_MAP_ADDR = _IOW(0x48, ctypes.c_uint64)
    CREATE_IRQCHIP = _IO(0x60)
    IRQ_LINE = _IOW(0x61, abi.KvmIrqLevel)
    GET_IRQCHIP = _IOWR(0x62, abi.KvmIrqchip)
    SET_IRQCHIP = _IOR(0x63, abi.KvmIrqchip)  # a write, but the header says "read" for ever
    SET_GSI_ROUTING = _IOW(0x6A, abi.KvmIrqRouting)
    IRQFD = _IOW(0x76, abi.KvmIrqfd)
    IOEVENTFD = _IOW(0x79, abi.KvmIoeventfd)
    SET_CLOCK = _IOW(0x7B, saved_abi.KvmClockData)
    GET_CLOCK = _IOR(0x7C, saved_abi.KvmClockData)
    CREATE_DEVICE = _IOWR(0xE0, device_abi.KvmCreateDevice)
    SET_DEVICE_ATTR = _IOW(0xE1, device_abi.KvmDeviceAttr)

    RUN = _IO(0x80)
    GET_REGS = _IOR(0x81, abi.KvmRegs)
    SET_REGS = _IOW(0x82, abi.KvmRegs)
    GET_SREGS = _IOR(0x83, abi.KvmSregs)
    SET_SREGS = _IOW(0x84, abi.KvmSregs)
    TRANSLATE = _IOWR(0x85, debug_abi.KvmTranslation)
    GET_MSRS = _IOWR(0x88, abi.KvmMsrs)
    SET_MSRS = _IOW(0x89, abi.KvmMsrs)
    GET_LAPIC = _IOR(0x8E, abi.KvmLapicState)
    SET_LAPIC = _IOW(0x8F, abi.KvmLapicState)
    SET_CPUID2 = _IOW(0x90, abi.KvmCpuid2)
    GET_MP_STATE = _IOR(0x98, abi.KvmMpState)
    SET_MP_STATE = _IOW(0x99, abi.KvmMpState)
    SET_GUEST_DEBUG = _IOW(0x9B, debug_abi.KvmGuestDebug)
    GET_VCPU_EVENTS = _IOR(0x9F, abi.KvmVcpuEvents)
    X86_SETUP_MCE = _IOW(0x9C, ctypes.c_uint64)
    SET_VCPU_EVENTS = _IOW(0xA0, abi.KvmVcpuEvents)
    GET_DEBUGREGS = _IOR(0xA1, abi.KvmDebugregs)
    SET_DEBUGREGS = _IOW(0xA2, abi.KvmDebugregs)
    GET_XSAVE = _IOR(0xA4, abi.KvmXsave)
    SET_XSAVE = _IOW(0xA5, abi.KvmXsave)
    SET_TSC_KHZ = _IO(0xA2)
    GET_TSC_KHZ = _IO(0xA3)
    GET_XCRS = _IOR(0xA6, abi.KvmXcrs)
    SET_XCRS = _IOW(0xA7, abi.KvmXcrs)
    KVMCLOCK_CTRL = _IO(0xAD)
    GET_SREGS2 = _IOR(0xCC, saved_abi.KvmSregs2)
    SET_SREGS2 = _IOW(0xCD, saved_abi.KvmSregs2)
    GET_XSAVE2 = _IOR(0xCF, abi.KvmXsave)  # KVM_SET_XSAVE serves both


_libc = ctypes.CDLL(None, use_errno=True)

raw = _libc.ioctl
"""ioctl(fd, request, argument) -> -1 with ctypes.get_errno(), or the result. For KVM_RUN only."""
raw.argtypes = [c_int, c_ulong, c_void_p]
raw.restype = c_int


def call(fd: int, request: Ioctl, argument: Any = 0, *, to: str) -> int:
    """Make `request` on `fd`; returns KVM's answer (>= 0).

    `argument` is an integer, a ctypes array or byref(structure); `to` completes the sentence
    "cannot ..." for the user. A call interrupted by a signal is made again. Raises HostError, whose
    __cause__ is an OSError with the errno.
    """
    while True:
        result: int = raw(fd, request, argument)
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code != errno.EINTR:
            cause = OSError(code, os.strerror(code))
            raise HostError(f"cannot {to}: KVM_{request.name} failed: {cause.strerror}") from cause


class Table:
    """Argument with a counted tail: `head` (its first u32 is the count), then `entries`.

    Pass byref(table.head). Entries start as zeroes.
    """

    def __init__(self, head: type[ctypes.Structure], entry: type[Any], count: int) -> None:
        self._storage = bytearray(sizeof(head) + count * sizeof(entry))
        self.head = head.from_buffer(self._storage)
        self.entries: Any = (entry * count).from_buffer(self._storage, sizeof(head))
        ctypes.c_uint32.from_buffer(self._storage).value = count

    @property
    def count(self) -> int:
        """Number of entries as KVM left it: how many it gave, or how many it has."""
        return ctypes.c_uint32.from_buffer(self._storage).value
