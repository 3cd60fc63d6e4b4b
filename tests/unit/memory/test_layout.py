"""The address map: where things lie, and which wishes are refused with which words."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.errors import UsageError
from minivmm.memory.layout import AddressMap, RegionRequest, Window, plan
from minivmm.spec import platform
from minivmm.units import GIB, MIB, TIB

BLOCK = 2 * MIB
PHYS_BITS = 46


def wish(
    size: int, address: int | None = None, *, name: str = "vmem0", alignment: int = BLOCK
) -> RegionRequest:
    return RegionRequest(name, size, alignment, address)


def all_windows(address_map: AddressMap) -> list[Window]:
    parts = [address_map.ecam, address_map.mmio32, address_map.mmio64]
    return [*address_map.ram, *address_map.regions.values(), *parts]


def test_small_memory_is_one_low_window() -> None:
    assert plan(512 * MIB, [], PHYS_BITS).ram == (Window(0, 512 * MIB),)


def test_three_gib_still_fit_below_the_windows() -> None:
    assert plan(3 * GIB, [], PHYS_BITS).ram == (Window(0, 3 * GIB),)


def test_memory_beyond_three_gib_continues_at_four_gib() -> None:
    address_map = plan(3 * GIB + 4096, [], PHYS_BITS)

    assert address_map.ram == (Window(0, 3 * GIB), Window(4 * GIB, 4096))


def test_low_windows_are_where_the_platform_says() -> None:
    address_map = plan(512 * MIB, [], PHYS_BITS)

    assert address_map.mmio32 == Window(0xC000_0000, 512 * MIB)
    assert address_map.ecam == Window(0xE000_0000, MIB)
    assert address_map.phys_bits == PHYS_BITS


def test_region_of_a_small_machine_starts_at_four_gib() -> None:
    assert plan(512 * MIB, [wish(4 * GIB)], PHYS_BITS).regions["vmem0"] == Window(4 * GIB, 4 * GIB)


def test_region_starts_two_gib_aligned_after_high_memory() -> None:
    """3 GiB low, 2 GiB high end at 6 GiB exactly; one page more moves the region to 8 GiB."""
    assert plan(5 * GIB, [wish(GIB)], PHYS_BITS).regions["vmem0"].base == 6 * GIB
    assert plan(5 * GIB + 4096, [wish(GIB)], PHYS_BITS).regions["vmem0"].base == 8 * GIB


def test_large_blocks_align_their_region() -> None:
    region = plan(512 * MIB, [wish(16 * GIB, alignment=16 * GIB)], PHYS_BITS).regions["vmem0"]

    assert region.base == 16 * GIB


def test_regions_follow_each_other_in_order() -> None:
    address_map = plan(512 * MIB, [wish(3 * GIB, name="a"), wish(GIB, name="b")], PHYS_BITS)

    assert list(address_map.regions) == ["a", "b"]
    assert address_map.regions["a"] == Window(4 * GIB, 3 * GIB)
    assert address_map.regions["b"] == Window(8 * GIB, GIB)


def test_automatic_region_avoids_a_later_explicit_one() -> None:
    requests = [wish(4 * GIB, name="a"), wish(GIB, 5 * GIB, name="b")]

    address_map = plan(512 * MIB, requests, PHYS_BITS)

    assert list(address_map.regions) == ["a", "b"]
    assert address_map.regions["b"] == Window(5 * GIB, GIB)
    assert address_map.regions["a"] == Window(6 * GIB, 4 * GIB)


def test_automatic_region_fills_a_gap_below_an_explicit_one() -> None:
    requests = [wish(2 * GIB, name="a"), wish(GIB, 64 * GIB, name="b")]

    assert plan(512 * MIB, requests, PHYS_BITS).regions["a"] == Window(4 * GIB, 2 * GIB)


def test_mmio64_follows_the_last_region() -> None:
    assert plan(512 * MIB, [wish(4 * GIB)], PHYS_BITS).mmio64 == Window(8 * GIB, 64 * GIB)


def test_mmio64_takes_what_narrow_addresses_leave() -> None:
    assert plan(512 * MIB, [wish(4 * GIB)], 36).mmio64 == Window(8 * GIB, 56 * GIB)
    assert plan(512 * MIB, [wish(59 * GIB)], 36).mmio64 == Window(63 * GIB, GIB)


def test_no_room_for_mmio64_is_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"64-bit PCI window ends at 0x1040000000.*36 bits"):
        plan(512 * MIB, [wish(60 * GIB)], 36)


def test_region_beyond_phys_bits_is_refused_with_both_numbers_and_a_remedy() -> None:
    with pytest.raises(
        UsageError, match=r"vmem0: region ends at 0x1100000000.*36 bits, up to 0x1000000000: use"
    ):
        plan(512 * MIB, [wish(64 * GIB)], 36)


def test_region_beyond_the_guests_bits_needs_a_host_that_reaches_it() -> None:
    beyond = wish(GIB, 1 << 36)
    address_map = plan(512 * MIB, [beyond], 36, reach=40)

    assert address_map.regions["vmem0"] == Window(1 << 36, GIB)
    assert address_map.mmio64 == Window(4 * GIB, 60 * GIB)
    assert address_map.phys_bits == 36
    assert address_map.warnings() == [
        "vmem0: region 0x1000000000-0x103fffffff ends beyond the guest's 36 address bits"
        " (0xfffffffff): its driver will refuse it; use a smaller size= or memaddr="
    ]
    with pytest.raises(UsageError, match=r"vmem0: region ends at 0x1040000000.*36 bits"):
        plan(512 * MIB, [beyond], 36, reach=36)


def test_mmio64_lies_in_the_highest_gap_that_the_guest_reaches() -> None:
    wishes = [wish(2 * GIB, 8 * GIB, name="a"), wish(4 * GIB, (1 << 36) - 2 * GIB, name="b")]

    assert plan(512 * MIB, wishes, 36, reach=40).mmio64 == Window(10 * GIB, 52 * GIB)
    with pytest.raises(UsageError, match="64-bit PCI window ends at"):
        plan(512 * MIB, [wish(128 * GIB)], 36, reach=40)


def test_nobody_is_warned_of_what_is_within_reach() -> None:
    assert plan(512 * MIB, [wish(4 * GIB)], PHYS_BITS).warnings() == []


def test_boot_memory_must_be_within_the_guests_bits() -> None:
    with pytest.raises(UsageError, match=r"memory ends at .*36 bits"):
        plan(64 * GIB, [], 36, reach=40)


def test_explicit_address_is_honoured() -> None:
    region = plan(512 * MIB, [wish(GIB, 0x1_4800_0000)], PHYS_BITS).regions["vmem0"]

    assert region == Window(0x1_4800_0000, GIB)


def test_explicit_address_off_the_linux_grid_is_refused_naming_neighbours() -> None:
    with pytest.raises(
        UsageError, match=r"0x140200000 is not a multiple of 128M.*0x140000000, 0x148000000"
    ):
        plan(512 * MIB, [wish(GIB, 0x1_4020_0000)], PHYS_BITS)


def test_explicit_address_must_suit_large_blocks() -> None:
    with pytest.raises(UsageError, match="is not a multiple of 1G"):
        plan(512 * MIB, [wish(GIB, 0x1_4800_0000, alignment=GIB)], PHYS_BITS)


@pytest.mark.parametrize("address", [0, GIB, 0xC000_0000, 0xE000_0000, 4 * GIB - 128 * MIB])
def test_explicit_address_below_four_gib_is_refused(address: int) -> None:
    with pytest.raises(UsageError, match="below 4G"):
        plan(512 * MIB, [wish(GIB, address)], PHYS_BITS)


def test_explicit_address_inside_high_memory_is_refused() -> None:
    with pytest.raises(UsageError, match=r"overlaps memory at 0x100000000-0x13fffffff"):
        plan(4 * GIB, [wish(GIB, 4 * GIB)], PHYS_BITS)


def test_explicit_address_right_after_high_memory_is_fine() -> None:
    assert plan(4 * GIB, [wish(GIB, 5 * GIB)], PHYS_BITS).regions["vmem0"].base == 5 * GIB


def test_overlapping_explicit_regions_are_refused() -> None:
    requests = [wish(2 * GIB, 8 * GIB, name="a"), wish(GIB, 9 * GIB, name="b")]

    with pytest.raises(UsageError, match=r"b: region .* overlaps"):
        plan(512 * MIB, requests, PHYS_BITS)


def test_duplicate_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="'vmem0' is used twice"):
        plan(512 * MIB, [wish(GIB), wish(GIB)], PHYS_BITS)


def test_too_little_memory_is_refused() -> None:
    assert plan(64 * MIB, [], PHYS_BITS).ram[0].size == 64 * MIB
    with pytest.raises(UsageError, match=r"63M is too little .* 64M or more"):
        plan(63 * MIB, [], PHYS_BITS)


def test_memory_in_half_pages_is_refused_naming_neighbours() -> None:
    with pytest.raises(UsageError, match=r"not a multiple of 4096 .*134217728, 134221824"):
        plan(128 * MIB + 1, [], PHYS_BITS)


def test_regions_and_memory_may_be_larger_than_a_memslot() -> None:
    """A memslot has less than 8 TiB; memslots.py cuts what is larger."""
    assert plan(512 * MIB, [wish(16 * TIB)], PHYS_BITS).regions["vmem0"].size == 16 * TIB
    assert plan(8 * TIB + 3 * GIB, [], PHYS_BITS).ram[1].size == 8 * TIB


@given(
    memory=st.integers(16384, 8 * 262144).map(lambda pages: pages * 4096),
    wishes=st.lists(st.tuples(st.integers(1, 4096), st.none() | st.integers(32, 512)), max_size=5),
)
def test_nothing_ever_overlaps(memory: int, wishes: list[tuple[int, int | None]]) -> None:
    requests = [
        wish(blocks * BLOCK, None if slot is None else slot * 128 * MIB, name=f"vmem{number}")
        for number, (blocks, slot) in enumerate(wishes)
    ]
    try:
        address_map = plan(memory, requests, PHYS_BITS)
    except UsageError as error:
        assert "overlaps" in str(error)  # of explicit addresses, the only possible fault here
        return

    assert not any(a.overlaps(b) for a, b in combinations(all_windows(address_map), 2))
    assert sum(window.size for window in address_map.ram) == memory
    for request in requests:
        region = address_map.regions[request.id]
        assert region.size == request.size
        assert region.base >= platform.HIGH_RAM_START
        if request.address is None:
            assert region.base % (2 * GIB) == 0
        else:
            assert region.base == request.address
        assert address_map.mmio64.base >= region.end
    assert address_map.mmio64.end <= 1 << PHYS_BITS
