"""The interface to KVM against reference F.2 and, where installed, the kernel's headers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from minivmm.kvm import abi, debug_abi, device_abi, dirty_abi, ioctl, saved_abi
from minivmm.kvm.ioctl import Ioctl, Table

NUMBERS = {
    "GET_API_VERSION": 0xAE00,
    "CREATE_VM": 0xAE01,
    "GET_MSR_INDEX_LIST": 0xC004AE02,
    "CHECK_EXTENSION": 0xAE03,
    "GET_VCPU_MMAP_SIZE": 0xAE04,
    "GET_SUPPORTED_CPUID": 0xC008AE05,
    "CREATE_VCPU": 0xAE41,
    "GET_DIRTY_LOG": 0x4010AE42,
    "SET_USER_MEMORY_REGION": 0x4020AE46,
    "SET_TSS_ADDR": 0xAE47,
    "SET_IDENTITY_MAP_ADDR": 0x4008AE48,
    "CREATE_IRQCHIP": 0xAE60,
    "IRQ_LINE": 0x4008AE61,
    "GET_IRQCHIP": 0xC208AE62,
    "SET_IRQCHIP": 0x8208AE63,
    "SET_GSI_ROUTING": 0x4008AE6A,
    "IRQFD": 0x4020AE76,
    "IOEVENTFD": 0x4040AE79,
    "SET_CLOCK": 0x4030AE7B,
    "GET_CLOCK": 0x8030AE7C,
    "CREATE_DEVICE": 0xC00CAEE0,
    "SET_DEVICE_ATTR": 0x4018AEE1,
    "RUN": 0xAE80,
    "GET_REGS": 0x8090AE81,
    "SET_REGS": 0x4090AE82,
    "GET_SREGS": 0x8138AE83,
    "SET_SREGS": 0x4138AE84,
    "TRANSLATE": 0xC018AE85,
    "GET_MSRS": 0xC008AE88,
    "SET_MSRS": 0x4008AE89,
    "GET_LAPIC": 0x8400AE8E,
    "SET_LAPIC": 0x4400AE8F,
    "SET_CPUID2": 0x4008AE90,
    "GET_MP_STATE": 0x8004AE98,
    "SET_MP_STATE": 0x4004AE99,
    "SET_GUEST_DEBUG": 0x4048AE9B,
    "GET_VCPU_EVENTS": 0x8040AE9F,
    "X86_SETUP_MCE": 0x4008AE9C,
    "SET_VCPU_EVENTS": 0x4040AEA0,
    "GET_DEBUGREGS": 0x8080AEA1,
    "SET_DEBUGREGS": 0x4080AEA2,
    "GET_XSAVE": 0x9000AEA4,
    "SET_XSAVE": 0x5000AEA5,
    "GET_XCRS": 0x8188AEA6,
    "SET_XCRS": 0x4188AEA7,
    "SET_TSC_KHZ": 0xAEA2,
    "GET_TSC_KHZ": 0xAEA3,
    "KVMCLOCK_CTRL": 0xAEAD,
    "GET_SREGS2": 0x8140AECC,
    "SET_SREGS2": 0x4140AECD,
    "GET_XSAVE2": 0x9000AECF,
}
"""The table of F.2, without the requests that minivmm does not make."""

SIZES = {
    abi.KvmUserspaceMemoryRegion: 32,
    abi.KvmIoeventfd: 64,
    saved_abi.KvmClockData: 48,
    abi.KvmIrqfd: 32,
    device_abi.KvmCreateDevice: 12,
    device_abi.KvmDeviceAttr: 24,
    abi.KvmIrqRoutingEntry: 48,
    abi.KvmIrqRouting: 8,
    abi.KvmRegs: 144,
    abi.KvmSregs: 312,
    abi.KvmSegment: 24,
    saved_abi.KvmSregs2: 320,
    abi.KvmLapicState: 1024,
    abi.KvmXsave: 4096,
    abi.KvmXcrs: 392,
    abi.KvmVcpuEvents: 64,
    abi.KvmDebugregs: 128,
    abi.KvmCpuidEntry2: 40,
    abi.KvmCpuid2: 8,
    abi.KvmMsrEntry: 16,
    abi.KvmMsrs: 8,
    abi.KvmIrqchip: 520,
    debug_abi.KvmGuestDebug: 72,
    debug_abi.KvmTranslation: 24,
    debug_abi.KvmDebugExit: 32,
    debug_abi.FxArea: 520,
    dirty_abi.KvmDirtyLog: 16,
}

UNION = 32
OFFSETS = [
    (abi.KvmRun, "immediate_exit", 1),
    (abi.KvmRun, "exit_reason", 8),
    (abi.KvmRun, "exit", UNION),
    (abi.KvmRunIo, "direction", 32 - UNION),
    (abi.KvmRunIo, "size", 33 - UNION),
    (abi.KvmRunIo, "port", 34 - UNION),
    (abi.KvmRunIo, "count", 36 - UNION),
    (abi.KvmRunIo, "data_offset", 40 - UNION),
    (abi.KvmRunMmio, "phys_addr", 32 - UNION),
    (abi.KvmRunMmio, "data", 40 - UNION),
    (abi.KvmRunMmio, "len", 48 - UNION),
    (abi.KvmRunMmio, "is_write", 52 - UNION),
    (abi.KvmSegment, "base", 0),
    (abi.KvmSegment, "limit", 8),
    (abi.KvmSegment, "selector", 12),
    (abi.KvmSegment, "type", 14),
    (abi.KvmSegment, "present", 15),
    (abi.KvmSegment, "dpl", 16),
    (abi.KvmSegment, "db", 17),
    (abi.KvmSegment, "s", 18),
    (abi.KvmSegment, "l", 19),
    (abi.KvmSegment, "g", 20),
    (abi.KvmSegment, "avl", 21),
    (abi.KvmSegment, "unusable", 22),
    (abi.KvmSregs, "tr", 144),
    (abi.KvmSregs, "ldt", 168),
    (abi.KvmSregs, "gdt", 192),
    (abi.KvmSregs, "idt", 208),
    (abi.KvmSregs, "cr0", 224),
    (abi.KvmSregs, "cr2", 232),
    (abi.KvmSregs, "cr3", 240),
    (abi.KvmSregs, "cr4", 248),
    (abi.KvmSregs, "efer", 264),
    (abi.KvmSregs, "apic_base", 272),
    (saved_abi.KvmSregs2, "apic_base", 272),
    (saved_abi.KvmSregs2, "flags", 280),
    (saved_abi.KvmSregs2, "pdptrs", 288),
]

EXITS = {"IO": 2, "HLT": 5, "MMIO": 6, "SHUTDOWN": 8, "FAIL_ENTRY": 9, "INTR": 10}
EXITS |= {"INTERNAL_ERROR": 17, "SYSTEM_EVENT": 24, "X86_BUS_LOCK": 33, "NOTIFY": 37}
EXITS |= {"MEMORY_FAULT": 39}


def test_ioctl_numbers_are_those_of_the_reference() -> None:
    assert {request.name: request.value for request in Ioctl} == NUMBERS


def test_number_helpers_agree_with_requests_we_do_not_make() -> None:
    assert ioctl._IOWR(0xC0, ctypes.c_uint8 * 24) == 0xC018AEC0  # CLEAR_DIRTY_LOG
    assert ioctl._IOR(0x8C, ctypes.c_uint8 * 416) == 0x81A0AE8C  # GET_FPU
    assert ioctl._IO(0xAD) == 0xAEAD  # KVMCLOCK_CTRL


@pytest.mark.parametrize(("kind", "size"), SIZES.items(), ids=lambda v: getattr(v, "__name__", v))
def test_structure_sizes_are_those_of_the_reference(kind: type, size: int) -> None:
    assert ctypes.sizeof(kind) == size


@pytest.mark.parametrize(("kind", "member", "offset"), OFFSETS)
def test_member_offsets_are_those_of_the_reference(kind: type, member: str, offset: int) -> None:
    assert getattr(kind, member).offset == offset


def test_exit_reasons_are_those_of_the_reference() -> None:
    assert {name: abi.Exit[name].value for name in EXITS} == EXITS


def test_efault_sentinel_is_no_exit_reason() -> None:
    assert abi.EXIT_EFAULT not in list(abi.Exit)


def test_table_counts_its_entries_and_places_them_after_the_head() -> None:
    table = Table(abi.KvmMsrs, abi.KvmMsrEntry, 2)
    table.entries[1].data = 0x1122

    raw = ctypes.string_at(ctypes.addressof(table.head), 8 + 2 * 16)

    assert table.count == 2
    assert raw[:4] == b"\x02\0\0\0"
    assert raw[8 + 16 + 8 :][:2] == b"\x22\x11"


def test_table_may_be_empty() -> None:
    assert Table(abi.KvmCpuid2, abi.KvmCpuidEntry2, 0).count == 0


HEADER_NAMES = {
    abi.KvmUserspaceMemoryRegion: "kvm_userspace_memory_region",
    abi.KvmIoeventfd: "kvm_ioeventfd",
    abi.KvmIrqfd: "kvm_irqfd",
    abi.KvmIrqLevel: "kvm_irq_level",
    abi.KvmIrqchip: "kvm_irqchip",
    abi.KvmRegs: "kvm_regs",
    abi.KvmSregs: "kvm_sregs",
    saved_abi.KvmSregs2: "kvm_sregs2",
    abi.KvmSegment: "kvm_segment",
    abi.KvmDtable: "kvm_dtable",
    abi.KvmMsrEntry: "kvm_msr_entry",
    abi.KvmCpuidEntry2: "kvm_cpuid_entry2",
    abi.KvmMpState: "kvm_mp_state",
}


def test_the_kernels_headers_agree(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("no C compiler or no <linux/kvm.h>: install gcc and linux-libc-dev")
    claims = [f"KVM_{request.name} == {request.value:#x}UL" for request in Ioctl]
    claims += [f"KVM_CAP_{cap.name} == {cap.value}" for cap in abi.Cap]
    claims += [f"KVM_MP_STATE_{state.name} == {state.value}" for state in abi.MpState]
    claims += [f"KVM_EXIT_{name.name} == {name.value}" for name in abi.Exit if name < 38]
    claims += ["KVM_MEM_READONLY == 2", "KVM_IRQFD_FLAG_DEASSIGN == 1"]
    claims += ["KVM_IOEVENTFD_FLAG_DEASSIGN == 4", "KVM_IRQ_ROUTING_MSI == 2"]
    claims += [f"KVM_IRQCHIP_IOAPIC == {abi.CHIP_IOAPIC}"]
    for kind, name in HEADER_NAMES.items():
        claims.append(f"sizeof(struct {name}) == {ctypes.sizeof(kind)}")
        claims += [
            f"offsetof(struct {name}, {member}) == {getattr(kind, member).offset}"
            for member, *_ in kind._fields_
            if not member.startswith("pad")
        ]
    for overlay, part in (
        (abi.KvmRunIo, "io"),
        (abi.KvmRunMmio, "mmio"),
        (abi.KvmRunInternal, "internal"),
        (abi.KvmRunSystemEvent, "system_event"),
        (abi.KvmRunFailEntry, "fail_entry"),
    ):
        claims += [
            f"offsetof(struct kvm_run, {part}.{member})"
            f" == {UNION + getattr(overlay, member).offset}"
            for member, *_ in overlay._fields_
        ]
    source = tmp_path / "claims.c"
    asserts = "\n".join(f'_Static_assert({claim}, "{claim}");' for claim in claims)
    source.write_text(f"#include <stddef.h>\n#include <linux/kvm.h>\n{asserts}\n")

    done = subprocess.run(
        [compiler, "-fsyntax-only", "-w", str(source)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
