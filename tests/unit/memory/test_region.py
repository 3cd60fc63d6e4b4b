"""A host mapping: alignment, content, giving pages back, residency, death."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.errors import HostError
from minivmm.memory import libc
from minivmm.memory.region import PAGE_SIZE, Region
from minivmm.units import MIB


@pytest.fixture
def region() -> Iterator[Region]:
    region = Region(8 * MIB)
    yield region
    region.close()


def test_region_is_aligned_for_huge_pages(region: Region) -> None:
    assert region.hva % (2 * MIB) == 0


def test_odd_size_is_rounded_up_to_pages() -> None:
    region = Region(PAGE_SIZE + 1)

    assert region.size == 2 * PAGE_SIZE
    region.close()


def test_fresh_region_is_zero_and_occupies_nothing(region: Region) -> None:
    assert region.resident() == 0
    assert bytes(region.view(region.size - 16, 16)) == bytes(16)


def test_view_writes_through(region: Region) -> None:
    region.view(4096, 4)[:] = b"abcd"

    assert bytes(region.view(4097, 2)) == b"bc"
    assert bytes(libc.buffer(region.hva + 4096, 4)) == b"abcd"


def test_last_byte_of_a_region_is_writable(region: Region) -> None:
    region.view(region.size - 1, 1)[0] = 7

    assert bytes(region.view(region.size - 1, 1)) == b"\7"


def test_discard_gives_back_and_zeroes_exactly_its_range(region: Region) -> None:
    region.view(0, region.size)[:] = b"x" * region.size
    before = region.resident()

    region.discard(2 * MIB, 4 * MIB)

    assert before == region.size
    assert region.resident() == region.size - 4 * MIB
    assert region.resident(2 * MIB, 4 * MIB) == 0
    assert bytes(region.view(2 * MIB - 1, 2)) == b"x\0"
    assert bytes(region.view(6 * MIB - 1, 2)) == b"\0x"


def test_resident_counts_whole_pages_that_it_touches(region: Region) -> None:
    region.forbid_huge_pages()
    region.view(PAGE_SIZE, 1)[0] = 1

    assert region.resident() == PAGE_SIZE
    assert region.resident(PAGE_SIZE + 100, 8) == PAGE_SIZE
    assert region.resident(0, PAGE_SIZE) == 0


def test_without_huge_pages_a_touch_populates_one_base_page(region: Region) -> None:
    region.forbid_huge_pages()

    region.view(3 * MIB, 1)[0] = 1

    assert region.resident() == PAGE_SIZE


def test_residency_across_the_chunks_in_which_it_is_counted() -> None:
    region = Region(2 << 30)
    region.forbid_huge_pages()
    region.view((1 << 30) - PAGE_SIZE, 2 * PAGE_SIZE)[:] = b"x" * (2 * PAGE_SIZE)

    assert region.resident() == 2 * PAGE_SIZE
    region.close()


def test_region_that_the_host_cannot_map_is_a_host_error_with_remedy() -> None:
    with pytest.raises(HostError, match=r"cannot map .* of guest memory .* use a smaller -m"):
        Region(1 << 60)


def test_advice_unknown_to_the_host_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(hva: int, length: int, advice: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(libc, "madvise", refuse)

    region = Region(2 * MIB)

    region.forbid_huge_pages()
    region.close()


def test_close_may_be_repeated() -> None:
    region = Region(2 * MIB)

    region.close()
    region.close()

    assert region.size == 0


def test_closed_region_has_no_view() -> None:
    region = Region(2 * MIB)
    region.close()

    with pytest.raises(ValueError, match="released"):
        region.view(0, 1)


def test_failing_calls_name_themselves() -> None:
    with pytest.raises(OSError, match="madvise"):
        libc.madvise(1, PAGE_SIZE, libc.MADV_DONTNEED)
    with pytest.raises(OSError, match="mincore"):
        libc.mincore(1, PAGE_SIZE)
    with pytest.raises(OSError, match="munmap"):
        libc.munmap(1, PAGE_SIZE)
    with pytest.raises(OSError, match="mmap"):
        libc.mmap(0, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
