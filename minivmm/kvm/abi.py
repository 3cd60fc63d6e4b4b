"""Structures and constants of <linux/kvm.h> and <asm/kvm.h> (x86-64); requests are in ioctl.py.

Only what minivmm uses, in the headers' order and with their field names. Sizes and offsets are
proven against reference F.2 and, where installed, the headers (tests/unit/kvm/test_abi.py).
"""

from __future__ import annotations

from ctypes import Structure, Union, c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum
from typing import Any

API_VERSION = 12
"""KVM_GET_API_VERSION of every kernel since 2.6.22; anything else is not this interface."""

# --- enumerations -------------------------------------------------------------------------------


class Exit(IntEnum):
    """kvm_run.exit_reason (KVM_EXIT_*); only what x86 can give to minivmm (reference F.14)."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    NMI = 16
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    X86_BUS_LOCK = 33
    NOTIFY = 37
    MEMORY_FAULT = 39


EXIT_EFAULT = 0xFFFF_FFFF
"""Our own: KVM_RUN failed with EFAULT and KVM did not say where (reference F.3).

It is stored in exit_reason before every KVM_RUN, so a stale reason is never taken for a new one.
"""

IO_IN = 0
IO_OUT = 1
"""kvm_run.io.direction."""


class Cap(IntEnum):
    """Capabilities asked for with KVM_CHECK_EXTENSION (KVM_CAP_*)."""

    IRQCHIP = 0
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_MEMSLOTS = 10
    MP_STATE = 14
    SET_GUEST_DEBUG = 23
    IRQ_ROUTING = 25
    IRQFD = 32
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    VCPU_EVENTS = 41
    DEBUGREGS = 50
    XSAVE = 55
    XCRS = 56
    TSC_CONTROL = 60
    MAX_VCPUS = 66
    TSC_DEADLINE_TIMER = 72
    READONLY_MEM = 81
    IOEVENTFD_ANY_LENGTH = 122
    IMMEDIATE_EXIT = 136
    SET_GUEST_DEBUG2 = 195
    SREGS2 = 200
    XSAVE2 = 208


class MpState(IntEnum):
    """kvm_mp_state.mp_state (KVM_MP_STATE_*)."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


MEM_READONLY = 1 << 1
"""kvm_userspace_memory_region.flags."""
IRQFD_DEASSIGN, IRQFD_RESAMPLE = 1 << 0, 1 << 1
IOEVENTFD_DEASSIGN = 1 << 2

ROUTING_IRQCHIP = 1
ROUTING_MSI = 2
"""kvm_irq_routing_entry.type."""

CHIP_PIC_MASTER = 0
CHIP_PIC_SLAVE = 1
CHIP_IOAPIC = 2
"""kvm_irqchip.chip_id, and the irqchip of a route."""

LAPIC_LVT_LINT0 = 0x350 // 4
LAPIC_LVT_LINT1 = 0x360 // 4
"""Index of a 32-bit register in kvm_lapic_state (offsets: Intel SDM vol. 3, 12.5.1)."""

# --- kvm_run: what a vCPU exit says ---------------------------------------------------------------


class KvmRunFailEntry(Structure):
    """The processor refused to enter the guest."""

    _fields_ = [("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32)]


class KvmRunIo(Structure):
    """Port I/O: `count` items of `size` bytes at `data_offset` bytes from the start of kvm_run."""

    _fields_ = [
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    ]


class KvmRunMmio(Structure):
    """Access of `len` bytes; `data` is u8[8] in the header, here the same bytes as one integer."""

    _fields_ = [
        ("phys_addr", c_uint64),
        ("data", c_uint64),
        ("len", c_uint32),
        ("is_write", c_uint8),
    ]


class KvmRunInternal(Structure):
    """KVM gave up: suberror 1 emulation, 3 delivery of an event, 4 unexpected exit."""

    _fields_ = [("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class KvmRunSystemEvent(Structure):
    """Shutdown, reset or crash requested through a paravirtual interface."""

    _fields_ = [("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class KvmRunMemoryFault(Structure):
    """Guest access to [gpa, gpa + size) that the host mapping could not serve."""

    _fields_ = [("flags", c_uint64), ("gpa", c_uint64), ("size", c_uint64)]


class _KvmRunExit(Union):
    _fields_ = [
        ("hardware_exit_reason", c_uint64),
        ("fail_entry", KvmRunFailEntry),
        ("io", KvmRunIo),
        ("mmio", KvmRunMmio),
        ("internal", KvmRunInternal),
        ("system_event", KvmRunSystemEvent),
        ("memory_fault", KvmRunMemoryFault),
        ("padding", c_uint8 * 256),
    ]


class KvmRun(Structure):
    """Head of the page that a vCPU shares with us; which member counts is told by exit_reason."""

    _anonymous_ = ("exit",)
    _fields_ = [
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("exit", _KvmRunExit),
    ]


# --- arguments of ioctls on the VM ----------------------------------------------------------------


class KvmUserspaceMemoryRegion(Structure):
    """A memory slot: addresses and size in bytes, page multiples; size 0 deletes (F.3)."""

    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


class KvmIrqLevel(Structure):
    """Level 0 or 1 of the pin with global system interrupt number `irq`."""

    _fields_ = [("irq", c_uint32), ("level", c_uint32)]


class KvmIrqchip(Structure):
    """State of one PIC or of the IOAPIC; opaque to us, it is only saved and restored."""

    _fields_ = [("chip_id", c_uint32), ("pad", c_uint32), ("chip", c_uint8 * 512)]


class KvmIrqRoutingEntry(Structure):
    """Where a GSI leads. `where` is (irqchip, pin) or (address_lo, address_hi, data) by `type`."""

    _fields_ = [
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("where", c_uint32 * 8),
    ]


class KvmIrqRouting(Structure):
    """Head of the routing table; `nr` entries follow it."""

    _fields_ = [("nr", c_uint32), ("flags", c_uint32)]


class KvmIrqfd(Structure):
    """Ties an eventfd to a GSI."""

    _fields_ = [
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    ]


class KvmIoeventfd(Structure):
    """Ties guest writes of `len` bytes (0: any) at `addr` to an eventfd."""

    _fields_ = [
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    ]


# --- arguments of ioctls on a vCPU ----------------------------------------------------------------


def _fields(kind: type[Any], names: str) -> list[tuple[str, type[Any]]]:
    return [(name, kind) for name in names.split()]


class KvmRegs(Structure):
    """General registers."""

    _fields_ = _fields(
        c_uint64, "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"
    )


class KvmSegment(Structure):
    """A segment register with its hidden part; `limit` in bytes."""

    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *_fields(c_uint8, "type present dpl db s l g avl unusable padding"),
    ]


class KvmDtable(Structure):
    """GDTR or IDTR."""

    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class KvmSregs(Structure):
    """Segments and control registers."""

    _fields_ = [
        *_fields(KvmSegment, "cs ds es fs gs ss tr ldt"),
        ("gdt", KvmDtable),
        ("idt", KvmDtable),
        *_fields(c_uint64, "cr0 cr2 cr3 cr4 cr8 efer apic_base"),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


class KvmMsrEntry(Structure):
    """One model-specific register."""

    _fields_ = [("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64)]


class KvmMsrs(Structure):
    """Head of an MSR list; `nmsrs` entries follow it."""

    _fields_ = [("nmsrs", c_uint32), ("pad", c_uint32)]


class KvmMsrList(Structure):
    """Head of a list of MSR numbers; `nmsrs` u32 follow it."""

    _fields_ = [("nmsrs", c_uint32)]


class KvmCpuidEntry2(Structure):
    """One CPUID leaf."""

    _fields_ = [
        *_fields(c_uint32, "function index flags eax ebx ecx edx"),
        ("padding", c_uint32 * 3),
    ]


class KvmCpuid2(Structure):
    """Head of a CPUID table; `nent` entries follow it."""

    _fields_ = [("nent", c_uint32), ("padding", c_uint32)]


class KvmMpState(Structure):
    """Multiprocessing state, an MpState."""

    _fields_ = [("mp_state", c_uint32)]


KvmLapicState = c_uint32 * 256
"""Local APIC registers, 32 bits each; architecturally one at every 16th byte."""
# The rest is only saved and restored, so its inner structure does not matter here.
KvmXsave = c_uint32 * 1024
KvmXcrs = c_uint8 * 392
KvmVcpuEvents = c_uint8 * 64
KvmDebugregs = c_uint8 * 128
