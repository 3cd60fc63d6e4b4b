"""Structures of <linux/kvm.h> and <asm/kvm.h> that only saving a guest and its clock needs."""

from __future__ import annotations

from ctypes import Structure, c_uint64

from minivmm.kvm.abi import KvmDtable, KvmSegment

KvmClockData = c_uint64 * 6
"""struct kvm_clock_data: the guest's kvmclock in nanoseconds, and what is not looked at."""

_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base", "flags")


class KvmSregs2(Structure):
    """KvmSregs with the page directory pointers as the CPU has loaded them (KVM_CAP_SREGS2)."""

    _fields_ = [
        *((name, KvmSegment) for name in ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"]),
        ("gdt", KvmDtable),
        ("idt", KvmDtable),
        *((name, c_uint64) for name in _CONTROL),
        ("pdptrs", c_uint64 * 4),
    ]
