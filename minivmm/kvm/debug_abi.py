"""Structures and constants of <linux/kvm.h> and <asm/kvm.h> that only debugging a guest needs."""

from __future__ import annotations

from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntFlag


class GuestDebug(IntFlag):
    """kvm_guest_debug.control (KVM_GUESTDBG_*); KVM_CAP_SET_GUEST_DEBUG2 tells the known ones."""

    ENABLE = 1 << 0
    SINGLESTEP = 1 << 1
    USE_SW_BP = 1 << 16
    USE_HW_BP = 1 << 17
    INJECT_DB = 1 << 18
    INJECT_BP = 1 << 19
    BLOCKIRQ = 1 << 20
    """No interrupts while stepping (Linux 5.15)."""


VECTOR_DB = 1
VECTOR_BP = 3
"""kvm_debug_exit_arch.exception: a debug exception, or an `int3`."""

DR6_SINGLE_STEP = 1 << 14
DR6_SLOTS = 0xF
"""kvm_debug_exit_arch.dr6: what happened (Intel SDM vol. 3, 18.2.3)."""

DR7_ALWAYS = 0x400
"""Bit 10 is always set."""


class KvmGuestDebug(Structure):
    """What of a vCPU ends in Exit.DEBUG; debugreg as DR0 to DR7."""

    _fields_ = [("control", c_uint32), ("pad", c_uint32), ("debugreg", c_uint64 * 8)]


class KvmDebugExit(Structure):
    """Details of an Exit.DEBUG: struct kvm_debug_exit_arch, at kvm_run's byte 32."""

    _fields_ = [
        ("exception", c_uint32),
        ("pad", c_uint32),
        ("pc", c_uint64),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
    ]


class KvmTranslation(Structure):
    """A linear address in, the guest physical one out, if `valid`."""

    _fields_ = [
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    ]


class FxArea(Structure):
    """Start of an XSAVE area: x87 and SSE registers, and which components the area holds.

    `ftwx` has a bit for each x87 register that is in use (Intel SDM vol. 1, 10.5.1 and 13.4).
    """

    _fields_ = [
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftwx", c_uint8),
        ("reserved1", c_uint8),
        ("last_opcode", c_uint16),
        ("last_ip", c_uint64),
        ("last_dp", c_uint64),
        ("mxcsr", c_uint32),
        ("mxcsr_mask", c_uint32),
        ("fpr", (c_uint8 * 16) * 8),
        ("xmm", (c_uint8 * 16) * 16),
        ("reserved2", c_uint8 * 96),
        ("xstate_bv", c_uint64),
    ]


X87_AND_SSE = 3
"""Their bits of xstate_bv."""
