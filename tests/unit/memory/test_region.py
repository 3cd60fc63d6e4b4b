"""A host mapping of each kind: alignment, content, populating, giving back, protection, death."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.errors import HostError
from minivmm.memory import files, libc, room
from minivmm.memory.backing import Backing
from minivmm.memory.region import PAGE_SIZE, Access, Region
from minivmm.memory.usage import Usage
from minivmm.units import GIB, MIB, TIB

ALL_KINDS = ("anon", "memfd", "file", "directory")
SHARED_KINDS = ALL_KINDS[1:]

Make = Callable[..., Region]


def a_backing(kind: str, directory: Path, thp: str = "off") -> Backing:
    if kind == "file":
        return Backing(kind="file", path=str(directory / "memory"), thp=thp)
    if kind == "directory":
        return Backing(kind="file", path=str(directory), thp=thp)
    return Backing(kind=kind, thp=thp)


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.fixture
def make(in_memory: Path) -> Iterator[Make]:
    """Regions of 8 MiB and any kind, in base pages unless told otherwise; closed afterwards."""
    made: list[Region] = []

    def make(kind: str = "anon", size: int = 8 * MIB, thp: str = "off") -> Region:
        made.append(Region(size, a_backing(kind, in_memory, thp)))
        return made[-1]

    yield make
    for region in made:
        region.close()


@pytest.fixture(params=ALL_KINDS)
def region(make: Make, request: pytest.FixtureRequest) -> Region:
    return make(request.param)


def test_region_is_aligned_for_huge_pages(region: Region) -> None:
    assert region.hva % (2 * MIB) == 0


def test_odd_size_is_rounded_up_to_pages(make: Make) -> None:
    assert make(size=PAGE_SIZE + 1).size == 2 * PAGE_SIZE


def test_a_region_is_anonymous_with_huge_pages_unless_told_otherwise() -> None:
    region = Region(2 * MIB)

    assert region.backing == Backing(kind="anon", thp="on")
    assert not region.reads_allocate
    region.close()


def test_nothing_around_the_region_stays_mapped(make: Make) -> None:
    region = make(size=5 * MIB)

    for outside in (region.hva - PAGE_SIZE, region.hva + region.size):
        with pytest.raises(OSError, match="madvise"):
            libc.madvise(outside, PAGE_SIZE, libc.MADV_POPULATE_WRITE)


def test_fresh_region_occupies_nothing_and_is_zero(region: Region) -> None:
    assert region.usage() == Usage(0, 0)
    assert region.resident_in(0, region.size) == 0
    assert bytes(region.view(region.size - 16, 16)) == bytes(16)


def test_view_writes_through(region: Region) -> None:
    region.view(4096, 4)[:] = b"abcd"

    assert bytes(region.view(4097, 2)) == b"bc"
    assert bytes(libc.buffer(region.hva + 4096, 4)) == b"abcd"


def test_last_byte_of_a_region_is_writable(region: Region) -> None:
    region.view(region.size - 1, 1)[0] = 7

    assert bytes(region.view(region.size - 1, 1)) == b"\7"


def test_populating_takes_memory_for_exactly_its_range(region: Region) -> None:
    region.populate(2 * MIB, 3 * MIB)

    assert region.usage().resident == 3 * MIB
    assert region.resident_in(2 * MIB, 3 * MIB) == 3 * MIB
    assert region.resident_in(0, 2 * MIB) == region.resident_in(5 * MIB, 3 * MIB) == 0


def test_populating_keeps_what_is_there(region: Region) -> None:
    region.view(MIB, 4)[:] = b"keep"

    region.populate(0, 2 * MIB)

    assert bytes(region.view(MIB, 5)) == b"keep\0"


def test_populating_goes_on_after_its_first_chunk(make: Make) -> None:
    region = make(size=200 * MIB)

    region.populate(PAGE_SIZE, 129 * MIB)

    assert region.resident_in(PAGE_SIZE, 129 * MIB) == region.usage().resident == 129 * MIB


def test_discard_gives_back_and_zeroes_exactly_its_range(region: Region) -> None:
    region.view(0, region.size)[:] = b"x" * region.size
    before = region.usage().resident

    region.discard(2 * MIB, 4 * MIB)

    assert before == region.size
    assert region.usage().resident == region.size - 4 * MIB
    assert region.resident_in(2 * MIB, 4 * MIB) == 0
    assert bytes(region.view(2 * MIB - 1, 2)) == b"x\0"
    assert bytes(region.view(6 * MIB - 1, 2)) == b"\0x"


def test_discard_of_what_is_empty_is_fine(region: Region) -> None:
    region.discard(0, region.size)

    assert region.usage() == Usage(0, 0)


def test_resident_counts_whole_pages_that_the_range_touches(region: Region) -> None:
    region.view(PAGE_SIZE, 1)[0] = 1

    assert region.usage().resident == PAGE_SIZE
    assert region.resident_in(PAGE_SIZE + 100, 8) == PAGE_SIZE
    assert region.resident_in(PAGE_SIZE - 1, 2) == PAGE_SIZE
    assert region.resident_in(0, PAGE_SIZE) == 0
    assert region.resident_in(2 * PAGE_SIZE, PAGE_SIZE) == 0


def test_scattered_pages_are_all_counted(region: Region) -> None:
    """More runs than one request of the scan returns."""
    for offset in range(0, region.size, 2 * PAGE_SIZE):
        region.view(offset, 1)[0] = 1

    assert region.resident_in(0, region.size) == region.size // 2
    assert region.resident_in(PAGE_SIZE, 2 * MIB) == MIB


@pytest.mark.parametrize("thp", ["on", "off"])
def test_reading_empty_anonymous_memory_takes_none(make: Make, thp: str) -> None:
    """Not even where the kernel shows the huge zero page."""
    region = make("anon", thp=thp)

    assert bytes(region.view(0, region.size)) == bytes(region.size)

    assert region.usage() == Usage(0, 0)
    assert region.resident_in(0, region.size) == 0


def test_reading_empty_shared_memory_allocates(make: Make) -> None:
    region = make("memfd")

    assert bytes(region.view(0, MIB)) == bytes(MIB)

    assert region.reads_allocate
    assert region.usage().resident == MIB


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_who_may_read_what_is_empty(make: Make, kind: str) -> None:
    assert make(kind).reads_allocate == (kind != "anon")


def test_without_huge_pages_a_touch_populates_one_base_page(region: Region) -> None:
    region.view(3 * MIB, 1)[0] = 1

    assert region.usage() == Usage(PAGE_SIZE, 0)


def test_huge_pages_cover_populated_memory(make: Make, thp_host: None) -> None:
    region = make("anon", thp="on")

    region.populate(0, 6 * MIB)

    assert region.usage() == Usage(6 * MIB, 6 * MIB)


def test_without_advice_the_hosts_setting_decides(make: Make, thp_host: None) -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    region = make("anon", thp="madvise-default")

    region.populate(0, 6 * MIB)

    assert region.usage().huge == (6 * MIB if "[always]" in setting else 0)


@pytest.fixture
def thp_host() -> None:
    """Fail, do not skip: every machine that this is tested on has them."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert "[never]" not in setting, "this test needs transparent huge pages"


def test_protected_memory_keeps_its_content(region: Region) -> None:
    region.view(2 * MIB, 4)[:] = b"keep"

    region.protect(2 * MIB, 2 * MIB, Access.NONE)
    assert region.resident_in(2 * MIB, 2 * MIB) == PAGE_SIZE
    region.protect(2 * MIB, 2 * MIB, Access.ALL)

    assert bytes(region.view(2 * MIB, 4)) == b"keep"


@pytest.mark.parametrize("access", [Access.NONE, Access.READ])
def test_protected_memory_cannot_be_populated(region: Region, access: Access) -> None:
    region.protect(2 * MIB, 2 * MIB, access)

    with pytest.raises(OSError, match="madvise"):
        region.populate(MIB, 4 * MIB)

    assert region.resident_in(2 * MIB, 2 * MIB) == 0


def test_protected_memory_can_be_given_back(region: Region) -> None:
    region.populate(0, region.size)
    region.protect(0, region.size, Access.NONE)

    region.discard(0, region.size)

    assert region.usage() == Usage(0, 0)


def test_readable_memory_can_be_read(region: Region) -> None:
    region.protect(0, region.size, Access.READ)

    assert bytes(region.view(MIB, 4)) == bytes(4)


def test_usage_counts_all_pieces_of_different_protection(make: Make) -> None:
    region = make("anon")
    region.populate(0, region.size)

    for offset in range(0, region.size, 2 * MIB):
        region.protect(offset, MIB, Access.NONE)

    assert region.usage() == Usage(region.size, 0)


def test_neighbours_are_not_counted(make: Make) -> None:
    first, second = make("anon"), make("anon")

    first.populate(0, MIB)
    second.populate(0, 2 * MIB)

    assert (first.usage().resident, second.usage().resident) == (MIB, 2 * MIB)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_an_empty_tib_is_counted_at_no_cost(make: Make, kind: str) -> None:
    region = make(kind, size=TIB)
    region.view(700 * GIB, 1)[0] = 1

    assert region.usage().resident == PAGE_SIZE
    assert region.resident_in(0, TIB) == PAGE_SIZE


def test_pages_are_found_without_the_scan_of_newer_kernels(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(libc, "scan_pages", refuse)
    region = make("anon", size=2 * GIB)
    bytes(region.view(0, MIB))
    region.view(GIB - PAGE_SIZE, 2 * PAGE_SIZE)[:] = b"x" * (2 * PAGE_SIZE)

    assert region.resident_in(0, region.size) == 2 * PAGE_SIZE
    assert region.resident_in(GIB, MIB) == PAGE_SIZE


def test_a_childs_copy_keeps_nothing_that_was_given_back(make: Make) -> None:
    region = make("anon")
    region.populate(0, MIB)
    parent, child = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.write(child[1], b"+")
        os.read(parent[0], 1)
        os._exit(0)
    os.read(child[0], 1)

    counted = region.resident_in(0, MIB)

    os.write(parent[1], b"+")
    assert os.waitpid(pid, 0)[1] == 0
    assert counted == MIB
    for fd in (*parent, *child):
        os.close(fd)


def test_room_is_what_the_host_has(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    region = make("anon")
    monkeypatch.setattr(room, "available", lambda: 10 * MIB)

    assert region.room_for(10 * MIB)
    assert not region.room_for(10 * MIB + 1)


def test_room_on_a_full_file_system_is_its_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    region = make("directory")
    monkeypatch.setattr(room, "available", lambda: TIB)
    monkeypatch.setattr(files.MemoryFile, "room", lambda _self: 10 * MIB)

    assert region.room_for(10 * MIB)
    assert not region.room_for(10 * MIB + 1)


def test_region_that_the_host_cannot_map_is_a_host_error_with_remedy() -> None:
    with pytest.raises(HostError, match=r"cannot map .* of guest memory .* use a smaller -m"):
        Region(1 << 60)


def test_region_that_cannot_be_mapped_leaves_nothing(tmp_path: Path) -> None:
    before = open_descriptors()

    with pytest.raises(HostError):
        Region(1 << 60, Backing(kind="file", path=str(tmp_path / "memory"), thp="off"))
    with pytest.raises(HostError, match=r"cannot map .* of guest memory"):
        Region(1 << 60, Backing(kind="memfd", thp="off"))

    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []


def test_advice_unknown_to_the_host_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(hva: int, length: int, advice: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(libc, "madvise", refuse)

    Region(2 * MIB).close()


def test_close_gives_everything_back_and_may_be_repeated(region: Region) -> None:
    descriptors = len(open_descriptors())
    region.populate(0, region.size)

    region.close()
    region.close()

    assert region.size == 0
    shared = region.backing.kind != "anon"
    assert len(open_descriptors()) == descriptors - shared


def test_closed_region_has_no_view(region: Region) -> None:
    region.close()

    with pytest.raises(ValueError, match="released"):
        region.view(0, 1)


def test_failing_calls_name_themselves() -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("madvise", lambda: libc.madvise(1, PAGE_SIZE, libc.MADV_DONTNEED)),
        ("mprotect", lambda: libc.mprotect(1, PAGE_SIZE, 0)),
        ("munmap", lambda: libc.munmap(1, PAGE_SIZE)),
        ("mmap", lambda: libc.mmap(0, 0, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)),
        ("fallocate", lambda: libc.punch_hole(-1, 0, PAGE_SIZE)),
        ("PAGEMAP_SCAN", lambda: libc.scan_pages(-1, 0, PAGE_SIZE, any_of=8, room=1)),
    ]
    for name, call in calls:
        with pytest.raises(OSError, match=name):
            call()


def test_scan_stops_where_it_has_no_more_room(make: Make) -> None:
    region = make("anon")
    for offset in range(0, 8 * PAGE_SIZE, 2 * PAGE_SIZE):
        region.view(offset, 1)[0] = 1
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)

    runs, stopped = libc.scan_pages(
        pagemap, region.hva, region.hva + region.size, any_of=libc.PAGE_IS_PRESENT, room=2
    )

    os.close(pagemap)
    starts = [region.hva, region.hva + 2 * PAGE_SIZE]
    assert runs == [(start, start + PAGE_SIZE) for start in starts]
    assert starts[-1] + PAGE_SIZE <= stopped <= region.hva + 4 * PAGE_SIZE


def test_what_is_written_is_seen_in_the_users_file(make: Make, in_memory: Path) -> None:
    region = make("file")
    region.view(MIB, 4)[:] = b"seen"

    with (in_memory / "memory").open("rb") as file:
        file.seek(MIB)
        assert file.read(4) == b"seen"
        assert (in_memory / "memory").stat().st_size == region.size


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_pieces_are_punched_out_one_by_one(make: Make, kind: str) -> None:
    region = make(kind)
    region.populate(0, region.size)

    for given_back, offset in enumerate(range(0, region.size, 2 * MIB), start=1):
        region.discard(offset, MIB)
        assert region.usage().resident == region.size - given_back * MIB


def test_a_file_on_a_disk_is_given_back_too(tmp_path: Path) -> None:
    region = Region(64 * MIB, a_backing("file", tmp_path))
    region.populate(0, 32 * MIB)
    taken = region.usage().resident

    region.discard(0, 32 * MIB)

    assert taken >= 32 * MIB
    assert region.usage().resident < MIB  # what the file system needs for itself
    assert region.resident_in(0, region.size) == 0
    region.close()
