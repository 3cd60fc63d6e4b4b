"""x86 CPU state as plain data, shared by what computes it (boot) and what loads it (kvm).

Field names follow struct kvm_regs, kvm_segment, kvm_sregs and kvm_cpuid_entry2 of <linux/kvm.h>.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Regs:
    """General registers at the first instruction; all others are 0."""

    rip: int
    rsp: int = 0
    rbx: int = 0
    rsi: int = 0
    rflags: int = 2  # bit 1 is always set (Intel SDM vol. 1, 3.4.3)


@dataclass(frozen=True)
class Segment:
    """A segment register with its hidden part; `limit` in bytes (already scaled by g)."""

    base: int = 0
    limit: int = 0xFFFFFFFF
    selector: int = 0
    type: int = 3
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741 - the field's name in <linux/kvm.h>
    g: int = 1
    avl: int = 0
    unusable: int = 0


@dataclass(frozen=True)
class Table:
    """GDT or IDT: linear address and limit in bytes minus one."""

    base: int = 0
    limit: int = 0


@dataclass(frozen=True)
class Sregs:
    """Segments and control registers; `data` is loaded into DS, ES, FS, GS and SS."""

    code: Segment
    data: Segment
    task: Segment
    gdt: Table = field(default_factory=Table)
    idt: Table = field(default_factory=Table)
    cr0: int = 0
    cr3: int = 0
    cr4: int = 0
    efer: int = 0


@dataclass(frozen=True)
class CpuState:
    """Everything a boot CPU needs before its first instruction."""

    regs: Regs
    sregs: Sregs


@dataclass(frozen=True)
class CpuidEntry:
    """One CPUID leaf: `function` and `index` in (EAX, ECX), the four registers out."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0
