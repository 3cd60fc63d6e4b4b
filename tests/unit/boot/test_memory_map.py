"""The E820 map (reference F.11)."""

import itertools

import pytest

from minivmm.boot.e820 import memory_map
from minivmm.memory.layout import AddressMap, RegionRequest, plan
from minivmm.units import GIB, MIB

KINDS = [64 * MIB, 512 * MIB, 3 * GIB, 5 * GIB]


def make(memory: int) -> AddressMap:
    requests = [RegionRequest("a", 2 * GIB, MIB, None), RegionRequest("b", 4 * GIB, MIB, None)]
    return plan(memory, requests, 46)


@pytest.mark.parametrize("memory", KINDS)
def test_entries_are_sorted_and_disjoint(memory: int) -> None:
    entries = memory_map(make(memory))
    for left, right in itertools.pairwise(entries):
        assert left.base + left.size <= right.base


@pytest.mark.parametrize("memory", KINDS)
def test_usable_ram_is_all_memory_without_the_hole_below_1_mib(memory: int) -> None:
    usable = sum(entry.size for entry in memory_map(make(memory)) if entry.type == 1)
    assert usable == memory - (1 * MIB - 0x9FC00)


@pytest.mark.parametrize("memory", KINDS)
def test_device_regions_and_pci_windows_are_never_listed(memory: int) -> None:
    address_map = make(memory)
    windows = [*address_map.regions.values(), address_map.mmio32, address_map.mmio64]
    for entry in memory_map(address_map):
        for window in windows:
            assert entry.base + entry.size <= window.base or window.end <= entry.base


def test_ecam_and_kvms_pages_are_reserved() -> None:
    reserved = {(e.base, e.size) for e in memory_map(make(512 * MIB)) if e.type == 2}
    assert (0xE0000000, 1 * MIB) in reserved
    assert (0xFFFBC000, 0x4000) in reserved


def test_high_ram_starts_at_4_gib() -> None:
    last = memory_map(make(5 * GIB))[-1]
    assert (last.base, last.size, last.type) == (4 * GIB, 2 * GIB, 1)
