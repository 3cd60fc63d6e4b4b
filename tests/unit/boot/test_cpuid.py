"""CPUID leaves as a guest decodes them (Intel SDM CPUID, AMD APM vol. 3 appendix E)."""

from collections.abc import Sequence

import pytest

from minivmm.boot.cpuid import guest_cpuid, host_phys_bits
from minivmm.spec.x86 import CpuidEntry


def vendor(name: bytes, max_leaf: int) -> CpuidEntry:
    words = [int.from_bytes(name[at : at + 4], "little") for at in (0, 4, 8)]
    return CpuidEntry(0, eax=max_leaf, ebx=words[0], edx=words[1], ecx=words[2])


COMMON = [
    CpuidEntry(
        0x1, eax=0x663, ebx=0x12345678, ecx=0xFFFFFFFF & ~(1 << 31 | 1 << 24), edx=0xFFFFFFFF
    ),
    CpuidEntry(0x6, eax=0x75, ebx=2, ecx=9, edx=1),
    CpuidEntry(0x7, 0, 1, eax=2, ebx=0x1234, ecx=0x5678, edx=0xFFFFFFFF),
    CpuidEntry(0x7, 1, 1, eax=0x10, edx=0xFFFFFFFF),
    CpuidEntry(0xB, 0, 1, edx=77),
    CpuidEntry(0xD, 0, 1, eax=7, ebx=832, ecx=832),
    CpuidEntry(0x40000000, eax=0x40000001, ebx=0x4B4D564B, ecx=0x564B4D56, edx=0x4D),
    CpuidEntry(0x40000001, eax=0x01007EFB),
]
AMD = [
    vendor(b"AuthenticAMD", 0xD),
    *COMMON,
    CpuidEntry(0x80000001, ecx=0x00400007, edx=0x2FD3FBFF),
    CpuidEntry(0x80000008, eax=0x00302830, ebx=0x1000, ecx=0x00017FFF),
    CpuidEntry(0x8000000A, eax=1, ebx=16),
    CpuidEntry(0x8000001D, 0, 1, eax=0x1C121),
    CpuidEntry(0x8000001D, 3, 1, eax=0x1C163),
    CpuidEntry(0x8000001E, eax=99, ebx=0x0150, ecx=0x303),
]
INTEL = [
    vendor(b"GenuineIntel", 0x1F),
    *COMMON,
    CpuidEntry(0x4, 0, 1, eax=0xFC004121),
    CpuidEntry(0x4, 3, 1, eax=0xFC1FC163),
    CpuidEntry(0x4, 4, 1, eax=0),
    CpuidEntry(0x1F, 0, 1, edx=77),
    CpuidEntry(0x80000001, ecx=0x121, edx=0x2C100800),
    CpuidEntry(0x80000008, eax=0x3027, ecx=0),
]
BOTH = pytest.mark.parametrize("host", [AMD, INTEL], ids=["amd", "intel"])


def leaf(
    host: Sequence[CpuidEntry],
    function: int,
    number: int = 0,
    *,
    index: int = 1,
    count: int = 3,
    phys_bits: int = 40,
    tsc_deadline: bool = False,
) -> CpuidEntry:
    leaves = guest_cpuid(
        host, index=index, count=count, phys_bits=phys_bits, tsc_deadline=tsc_deadline
    )
    (found,) = [e for e in leaves if (e.function, e.index) == (function, number)]
    return found


@BOTH
def test_hypervisor_is_announced_and_nesting_is_not(host: list[CpuidEntry]) -> None:
    entry = leaf(host, 1)
    assert entry.ecx >> 31 & 1
    assert not entry.ecx >> 3 & 1  # MONITOR
    assert not entry.ecx >> 5 & 1  # VMX
    assert entry.ecx >> 21 & 1  # x2APIC stays
    assert not leaf(host, 0x80000001).ecx >> 2 & 1  # SVM


@BOTH
def test_leaf_1_carries_apic_id_and_cpu_count(host: list[CpuidEntry]) -> None:
    entry = leaf(host, 1, index=2, count=3)
    assert entry.ebx >> 24 == 2
    assert entry.ebx >> 16 & 0xFF == 3
    assert entry.ebx & 0xFFFF == 0x5678
    assert entry.edx >> 28 & 1


@BOTH
def test_single_cpu_has_no_htt(host: list[CpuidEntry]) -> None:
    assert not leaf(host, 1, index=0, count=1).edx >> 28 & 1


@BOTH
def test_tsc_deadline_is_as_kvm_reports_unless_told(host: list[CpuidEntry]) -> None:
    assert not leaf(host, 1).ecx >> 24 & 1
    assert leaf(host, 1, tsc_deadline=True).ecx >> 24 & 1
    reporting = [CpuidEntry(1, ecx=1 << 24)]
    assert leaf(reporting, 1).ecx >> 24 & 1


@pytest.mark.parametrize(("count", "shift"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6)])
def test_topology_leaf_describes_cores_of_one_socket(count: int, shift: int) -> None:
    index = count - 1
    thread, core, end = (leaf(AMD, 0xB, n, index=index, count=count) for n in range(3))
    assert (thread.eax, thread.ebx, thread.ecx) == (0, 1, 0x100)
    assert (core.eax, core.ebx, core.ecx) == (shift, count, 0x201)
    assert (end.eax, end.ebx, end.ecx) == (0, 0, 2)
    assert {thread.edx, core.edx, end.edx} == {index}
    assert index >> shift == 0


def test_leaf_1f_appears_only_if_the_cpu_reaches_it() -> None:
    assert leaf(INTEL, 0x1F, 1).ebx == 3
    leaves = guest_cpuid(AMD, index=0, count=2, phys_bits=40)
    assert not [entry for entry in leaves if entry.function == 0x1F]


def test_leaf_b_is_left_out_on_old_cpus() -> None:
    old = [vendor(b"GenuineIntel", 0xA), CpuidEntry(1)]
    leaves = guest_cpuid(old, index=0, count=2, phys_bits=36)
    assert {entry.function for entry in leaves} == {0, 1}


@BOTH
def test_no_leaf_is_given_twice(host: list[CpuidEntry]) -> None:
    leaves = guest_cpuid(host, index=0, count=2, phys_bits=40)
    keys = [(entry.function, entry.index) for entry in leaves]
    assert len(keys) == len(set(keys))


def test_intel_caches_share_the_last_level_only() -> None:
    first, last, end = (leaf(INTEL, 4, n, count=4) for n in (0, 3, 4))
    assert (first.eax >> 14 & 0xFFF, first.eax >> 26) == (0, 3)
    assert (last.eax >> 14 & 0xFFF, last.eax >> 26) == (3, 3)
    assert first.eax & 0x3FFF == 0x121
    assert first.eax & 0x3E0 == 0x120
    assert end.eax == 0


def test_amd_caches_share_the_last_level_only() -> None:
    first, last = leaf(AMD, 0x8000001D, 0, count=4), leaf(AMD, 0x8000001D, 3, count=4)
    assert first.eax == 0x121
    assert last.eax == 0x163 | 3 << 14 | 0


def test_amd_core_count_and_identity() -> None:
    sizes = leaf(AMD, 0x80000008, index=2, count=3)
    assert sizes.ecx & 0xFF == 2
    assert sizes.ecx >> 12 & 0xF == 2
    assert sizes.ecx >> 16 == 1
    identity = leaf(AMD, 0x8000001E, index=2, count=3)
    assert (identity.eax, identity.ebx, identity.ecx) == (2, 2, 0)
    assert leaf(AMD, 0x80000001).ecx & 2
    assert not leaf(AMD, 0x80000001, index=0, count=1).ecx & 2


def test_intel_keeps_reserved_fields_clear() -> None:
    assert leaf(INTEL, 0x80000008).ecx == 0
    assert leaf(INTEL, 0x80000001).ecx == 0x121


@BOTH
def test_phys_bits_are_ours_and_linear_bits_kvms(host: list[CpuidEntry]) -> None:
    eax = leaf(host, 0x80000008, phys_bits=42).eax
    assert eax & 0xFF == 42
    assert eax >> 8 & 0xFF in (0x28, 0x30)
    assert eax >> 16 == 0


@BOTH
def test_kvm_leaves_stay_without_async_page_faults(host: list[CpuidEntry]) -> None:
    assert leaf(host, 0x40000000) == COMMON[6]
    assert leaf(host, 0x40000001).eax == 0x01007EFB & ~(1 << 4 | 1 << 10 | 1 << 14)


@BOTH
def test_power_leaf_keeps_arat_only(host: list[CpuidEntry]) -> None:
    assert leaf(host, 6) == CpuidEntry(6, eax=4)


@BOTH
def test_amx_is_hidden_and_other_features_stay(host: list[CpuidEntry]) -> None:
    assert leaf(host, 7).edx == 0xFFFFFFFF & ~(1 << 22 | 1 << 24 | 1 << 25)
    assert leaf(host, 7).ebx == 0x1234
    assert leaf(host, 7, 1).edx == 0xFFFFFFFF
    assert leaf(host, 0xD) == COMMON[5]


def test_svm_leaf_is_dropped() -> None:
    leaves = guest_cpuid(AMD, index=0, count=1, phys_bits=40)
    assert not [entry for entry in leaves if entry.function == 0x8000000A]


@pytest.mark.parametrize(
    ("supported", "bits"),
    [
        ([CpuidEntry(0x80000008, eax=0x3027)], 39),
        ([CpuidEntry(0x80000008, eax=0x00303934)], 48),  # 52 bits, nested paging reaches 48
        ([CpuidEntry(0x80000008, eax=0x00003030)], 48),
        ([], 36),
    ],
)
def test_host_phys_bits(supported: list[CpuidEntry], bits: int) -> None:
    assert host_phys_bits(supported) == bits


@BOTH
def test_upper_bits_of_the_apic_id_name_the_socket(host: list[CpuidEntry]) -> None:
    core = leaf(host, 0xB, 1, index=5, count=2)
    assert (core.eax, core.ebx, core.edx) == (1, 2, 5)  # 5 >> 1: socket 2
    assert leaf(host, 1, index=5, count=2).ebx >> 16 == 5 << 8 | 2
    assert leaf(host, 0xB, 1, index=5, count=1).eax == 0


@pytest.mark.parametrize(("count", "socket"), [(1, 5), (2, 2), (4, 1), (6, 0)])
def test_amd_node_is_the_socket(count: int, socket: int) -> None:
    assert leaf(AMD, 0x8000001E, index=5, count=count).ecx == socket


@pytest.mark.parametrize(("host", "function"), [(INTEL, 0x4), (AMD, 0x8000001D)])
def test_caches_end_with_the_socket(host: list[CpuidEntry], function: int) -> None:
    assert leaf(host, function, 3, index=5, count=2).eax >> 14 & 0xFFF == 1  # two share it
    assert leaf(host, function, 0, index=5, count=2).eax >> 14 & 0xFFF == 0
