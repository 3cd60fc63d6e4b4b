"""CPUID for one vCPU: what KVM supports, with identity, topology and limits of our machine.

A socket has `count` single-threaded cores; APIC ids are vCPU indexes, so their upper bits name the
socket. No socket spans two NUMA nodes (Topology.socket_cpus): Linux takes it for a shared cache.
Sources: Intel SDM vol. 2A "CPUID"; AMD APM vol. 3 appendix E; Linux
Documentation/virt/kvm/x86/cpuid.rst; reference F.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from minivmm.spec.x86 import CpuidEntry

INDEXED = 1
"""KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the leaf depends on ECX."""

LEAF_VENDOR = 0x0
LEAF_FEATURES = 0x1
LEAF_CACHES = 0x4
LEAF_POWER = 0x6
LEAF_EXTENDED = 0x7
LEAF_TOPOLOGY = 0xB
LEAF_TOPOLOGY_V2 = 0x1F
LEAF_KVM_FEATURES = 0x40000001
LEAF_AMD_FEATURES = 0x80000001
LEAF_ADDRESS_SIZES = 0x80000008
LEAF_AMD_SVM = 0x8000000A
LEAF_AMD_CACHES = 0x8000001D
LEAF_AMD_IDENTITY = 0x8000001E
LEAF_AMD_TOPOLOGY = 0x80000026

ECX1_MONITOR = 1 << 3
ECX1_VMX = 1 << 5
ECX1_TSC_DEADLINE = 1 << 24
ECX1_HYPERVISOR = 1 << 31
EDX1_HTT = 1 << 28
EAX6_ARAT = 1 << 2
EDX7_AMX = 1 << 22 | 1 << 24 | 1 << 25
"""AMX needs an arch_prctl permission that we do not ask for."""
ASYNC_PAGE_FAULT = 1 << 4 | 1 << 10 | 1 << 14
"""KVM_FEATURE_ASYNC_PF, _VMEXIT and _INT."""
ECX81_CMP_LEGACY = 1 << 1
ECX81_SVM = 1 << 2

_SMT_LEVEL = 1
_CORE_LEVEL = 2
_LAST_LEVEL_CACHE = 3
_DEFAULT_PHYS_BITS = 36
_AMD_VENDORS = (b"AuthenticAMD", b"HygonGenuine")
_REPLACED = (LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2, LEAF_AMD_TOPOLOGY, LEAF_AMD_SVM)


@dataclass(frozen=True)
class _Cpu:
    """The vCPU that leaves are made for, and how many share its socket."""

    index: int
    count: int
    phys_bits: int
    amd: bool
    tsc_deadline: bool

    @property
    def core_bits(self) -> int:
        """Bits of an APIC id that tell cores of the socket apart."""
        return (self.count - 1).bit_length()


def host_phys_bits(supported: Sequence[CpuidEntry]) -> int:
    """Width of the guest physical addresses that KVM can map, from its supported leaves.

    A processor may have more bits than its nested paging; KVM tells that in EAX 23:16.
    """
    for entry in supported:
        if entry.function == LEAF_ADDRESS_SIZES:
            own, guest = entry.eax & 0xFF, entry.eax >> 16 & 0xFF
            return min(own, guest) if guest else own
    return _DEFAULT_PHYS_BITS


def guest_cpuid(
    supported: Sequence[CpuidEntry],
    *,
    index: int,
    count: int,
    phys_bits: int,
    tsc_deadline: bool = False,
) -> list[CpuidEntry]:
    """Leaves for vCPU `index`, in a socket of `count`, for addresses of `phys_bits` bits.

    `tsc_deadline`: KVM has KVM_CAP_TSC_DEADLINE_TIMER; kernels before 6.13 say so only there.
    """
    vendor = next((entry for entry in supported if entry.function == LEAF_VENDOR), CpuidEntry(0))
    letters = (vendor.ebx, vendor.edx, vendor.ecx)
    cpu = _Cpu(
        index=index,
        count=count,
        phys_bits=phys_bits,
        amd=b"".join(part.to_bytes(4, "little") for part in letters) in _AMD_VENDORS,
        tsc_deadline=tsc_deadline,
    )
    leaves = [_patch(entry, cpu) for entry in supported if entry.function not in _REPLACED]
    for function in (LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2):
        if vendor.eax >= function:
            leaves.extend(_topology(function, cpu))
    return leaves


def _features(entry: CpuidEntry, cpu: _Cpu) -> CpuidEntry:
    """Leaf 1. Without HYPERVISOR Linux looks for no kvmclock (reference F.7)."""
    ecx = entry.ecx & ~(ECX1_MONITOR | ECX1_VMX) | ECX1_HYPERVISOR
    return replace(
        entry,
        ebx=entry.ebx & 0xFFFF | min(cpu.count, 0xFF) << 16 | (cpu.index & 0xFF) << 24,
        ecx=ecx | ECX1_TSC_DEADLINE if cpu.tsc_deadline else ecx,
        edx=_with(entry.edx, EDX1_HTT, cpu.count > 1),
    )


def _caches(entry: CpuidEntry, cpu: _Cpu) -> CpuidEntry:
    """Leaf 4 and its AMD twin: all cores share the last level, nobody else's anything."""
    if entry.eax & 0x1F == 0:  # the end of the list
        return entry
    shared = entry.eax >> 5 & 0x7 >= _LAST_LEVEL_CACHE
    eax = entry.eax & 0x3FFF | (min(cpu.count - 1, 0xFFF) << 14 if shared else 0)
    if entry.function == LEAF_CACHES:
        eax |= min(cpu.count - 1, 0x3F) << 26
    return replace(entry, eax=eax)


def _power(entry: CpuidEntry, cpu: _Cpu) -> CpuidEntry:
    """Leaf 6: nothing but "the local APIC timer never stops"."""
    return replace(entry, eax=entry.eax & EAX6_ARAT, ebx=0, ecx=0, edx=0)


def _extended_features(entry: CpuidEntry, cpu: _Cpu) -> CpuidEntry:
    return replace(entry, edx=entry.edx & ~EDX7_AMX) if entry.index == 0 else entry


def _kvm_features(entry: CpuidEntry, cpu: _Cpu) -> CpuidEntry:
    """Asynchronous page faults would make the guest's work depend on the host's paging."""
    return replace(entry, eax=entry.eax & ~ASYNC_PAGE_FAULT)


def _amd_features(entry: CpuidEntry, cpu: _Cpu) -> CpuidEntry:
    """CMP_LEGACY on AMD: the logical CPUs that HTT announces are cores."""
    ecx = entry.ecx & ~ECX81_SVM
    if cpu.amd:
        ecx = _with(ecx, ECX81_CMP_LEGACY, cpu.count > 1)
    return replace(entry, ecx=ecx)


def _address_sizes(entry: CpuidEntry, cpu: _Cpu) -> CpuidEntry:
    """EAX 23:16 = 0: guest physical bits are the physical bits. ECX is reserved on Intel."""
    ecx = entry.ecx
    if cpu.amd:
        ecx = ecx & ~0xF0FF | min(cpu.count - 1, 0xFF) | cpu.core_bits << 12
    return replace(entry, eax=entry.eax & 0xFF00FF00 | cpu.phys_bits, ecx=ecx)


def _amd_identity(entry: CpuidEntry, cpu: _Cpu) -> CpuidEntry:
    """APIC id; core id with one thread a core; the socket as AMD's node, one in each."""
    socket = cpu.index >> cpu.core_bits
    return replace(entry, eax=cpu.index, ebx=cpu.index & 0xFF, ecx=socket & 0xFF, edx=0)


_PATCHES: dict[int, Callable[[CpuidEntry, _Cpu], CpuidEntry]] = {
    LEAF_FEATURES: _features,
    LEAF_CACHES: _caches,
    LEAF_POWER: _power,
    LEAF_EXTENDED: _extended_features,
    LEAF_KVM_FEATURES: _kvm_features,
    LEAF_AMD_FEATURES: _amd_features,
    LEAF_ADDRESS_SIZES: _address_sizes,
    LEAF_AMD_CACHES: _caches,
    LEAF_AMD_IDENTITY: _amd_identity,
}
"""Everything else stays as KVM reports it."""


def _patch(entry: CpuidEntry, cpu: _Cpu) -> CpuidEntry:
    patch = _PATCHES.get(entry.function)
    return entry if patch is None else patch(entry, cpu)


def _topology(function: int, cpu: _Cpu) -> Iterator[CpuidEntry]:
    """Sub-leaves: thread, core, end. EDX is the x2APIC id in each, the last one included."""
    levels = ((0, 1, _SMT_LEVEL), (cpu.core_bits, cpu.count, _CORE_LEVEL), (0, 0, 0))
    for number, (shift, width, kind) in enumerate(levels):
        yield CpuidEntry(
            function,
            index=number,
            flags=INDEXED,
            eax=shift,
            ebx=width,
            ecx=number | kind << 8,
            edx=cpu.index,
        )


def _with(value: int, bit: int, wanted: bool) -> int:
    return value | bit if wanted else value & ~bit
