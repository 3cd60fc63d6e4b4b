"""Memslots of sparse regions: there while something in a range is plugged, exact once narrowed."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest

from minivmm.errors import HostError
from minivmm.memory.guest import GuestMemory, Slot
from minivmm.memory.region import Region
from minivmm.memslot_pieces import range_size
from minivmm.memslots import LARGEST_MEMSLOT, LINGER, Memslots
from minivmm.testing.fake_kvm import FakeVm
from minivmm.testing.sparse import FakeOccupancy
from minivmm.units import GIB, MIB, TIB

BASE = 4 * GIB
BLOCK = 2 * MIB


class Sparse:
    """A region of 5.5 GiB at BASE, its occupancy, and the memslots of a fake KVM."""

    def __init__(
        self,
        limit: int = 100,
        size: int = 5 * GIB + 512 * MIB,
        guarded: Collection[str] = (),
    ) -> None:
        self.vm = FakeVm()
        self.slots = Memslots(self.vm, limit, sparse=size, block=BLOCK, guarded=guarded)
        self.memory = GuestMemory()
        self.occupancy = FakeOccupancy()
        self.memory.subscribe(self.slots)
        self.region = Region(size)
        self.slot = self.memory.add(BASE, self.region, name="vmem0", occupancy=self.occupancy)

    def plug(self, offset: int, length: int) -> None:
        self.memory.plug(self.slot, offset, length)
        self.occupancy.plugged = merged([*self.occupancy.plugged, (offset, length)])

    def unplug(self, offset: int, length: int) -> None:
        self.memory.unplug(self.slot, offset, length)
        self.occupancy.plugged = list(without(self.occupancy.plugged, offset, length))

    def seen(self) -> list[tuple[int, int]]:
        """(offset, length) of every memslot of the region, by address."""
        ours = [known for known in self.vm.slots.values() if known.gpa >= BASE]
        for known in ours:
            assert known.hva - self.region.hva == known.gpa - BASE
            assert not known.readonly
        return sorted((known.gpa - BASE, known.size) for known in ours)


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, size in sorted(ranges):
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((start, size))
    return found


def without(ranges: list[tuple[int, int]], offset: int, length: int) -> Iterator[tuple[int, int]]:
    for start, size in ranges:
        if start < offset:
            yield start, min(start + size, offset) - start
        if start + size > offset + length:
            first = max(start, offset + length)
            yield first, start + size - first


@pytest.fixture
def sparse() -> Iterator[Sparse]:
    made = Sparse()
    yield made
    made.memory.close()


def test_ram_has_one_memslot_from_the_start() -> None:
    vm = FakeVm()
    memory = GuestMemory()
    region = Region(64 * MIB)

    memory.subscribe(Memslots(vm, 32))
    memory.add(0, region, name="low RAM")

    assert [(s.gpa, s.size, s.hva) for s in vm.slots.values()] == [(0, 64 * MIB, region.hva)]
    memory.close()


def test_ram_beyond_the_largest_memslot_is_cut() -> None:
    vm = FakeVm()

    class Huge:
        size, hva = 9 * TIB, 1 << 45

    memslots = Memslots(vm, 32)
    memslots.on_map(Slot(0, Huge(), "RAM"))  # type: ignore[arg-type]

    sizes = [s.size for s in vm.slots.values()]
    assert sum(sizes) == 9 * TIB
    assert max(sizes) == LARGEST_MEMSLOT < 4096 << 31


def test_an_empty_region_has_no_memslot(sparse: Sparse) -> None:
    assert sparse.seen() == []
    assert sparse.slots.count == 0


def test_the_first_block_of_a_range_brings_its_memslot(sparse: Sparse) -> None:
    sparse.plug(GIB + 64 * MIB, BLOCK)

    assert sparse.seen() == [(GIB, GIB)]

    sparse.plug(GIB + 512 * MIB, 128 * MIB)
    assert sparse.seen() == [(GIB, GIB)]


def test_the_last_range_ends_with_the_region(sparse: Sparse) -> None:
    sparse.plug(5 * GIB, BLOCK)

    assert sparse.seen() == [(5 * GIB, 512 * MIB)]


def test_a_plug_across_ranges_brings_every_one(sparse: Sparse) -> None:
    sparse.plug(2 * GIB - BLOCK, GIB + 2 * BLOCK)

    assert sparse.seen() == [(GIB, GIB), (2 * GIB, GIB), (3 * GIB, GIB)]


def test_the_memslot_goes_with_the_last_block_and_not_before(sparse: Sparse) -> None:
    sparse.plug(0, 4 * BLOCK)
    sparse.plug(GIB, BLOCK)

    sparse.unplug(0, BLOCK)
    sparse.unplug(2 * BLOCK, 2 * BLOCK)
    assert sparse.seen() == [(0, GIB), (GIB, GIB)]

    sparse.unplug(BLOCK, BLOCK)
    assert sparse.seen() == [(GIB, GIB)]
    sparse.unplug(GIB, BLOCK)
    assert sparse.seen() == []


class Clock:
    """Errands.later for tests: time passes when they say so."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        self.due.append((seconds, look))

    def pass_by(self) -> None:
        """As long as the only errand is for."""
        ((seconds, look),) = self.due
        assert seconds == LINGER
        self.due.clear()
        look()


@pytest.fixture
def clock(sparse: Sparse) -> Clock:
    made = Clock()
    sparse.slots.later = made.later
    return made


def test_memslots_linger_until_nothing_has_changed_for_a_while(
    sparse: Sparse, clock: Clock
) -> None:
    sparse.plug(0, 2 * GIB)
    sparse.unplug(0, GIB)
    sparse.unplug(GIB, GIB)
    assert sparse.seen() == [(0, GIB), (GIB, GIB)]

    clock.pass_by()
    assert sparse.seen() == [(0, GIB), (GIB, GIB)], "there was an unplug since"

    clock.pass_by()
    assert sparse.seen() == []
    assert clock.due == [], "nothing wakes the host any more"


def test_a_lingering_memslot_is_used_again(sparse: Sparse, clock: Clock) -> None:
    sparse.plug(0, BLOCK)
    (number,) = sparse.vm.slots
    sparse.unplug(0, BLOCK)
    sparse.plug(BLOCK, BLOCK)

    clock.pass_by()
    clock.pass_by()

    assert set(sparse.vm.slots) == {number}
    assert clock.due == []


def test_nothing_waits_while_every_memslot_is_in_use(sparse: Sparse, clock: Clock) -> None:
    sparse.plug(0, 4 * BLOCK)
    sparse.unplug(0, BLOCK)

    assert clock.due == []


def test_lingering_memslots_make_room_when_kvm_has_no_more() -> None:
    sparse = Sparse(limit=4, size=4 * GIB)
    sparse.slots.later = Clock().later
    assert sparse.slots.range_size == 2 * GIB
    sparse.plug(0, BLOCK)
    hide = [sparse.slots.show(0x1000 * at, 0x1000, 0x7000_0000) for at in range(3)]
    sparse.unplug(0, BLOCK)

    sparse.plug(2 * GIB, BLOCK)

    assert sparse.slots.count == 4
    assert sparse.seen() == [(2 * GIB, 2 * GIB)]
    for undo in hide:
        undo()
    sparse.memory.close()


def test_narrowing_does_not_spare_what_lingers(sparse: Sparse, clock: Clock) -> None:
    sparse.plug(0, BLOCK)
    sparse.plug(GIB, BLOCK)
    sparse.unplug(0, BLOCK)

    assert sparse.slots.narrow({"vmem0"}) is True

    assert sparse.seen() == [(GIB, BLOCK)]


def test_memslots_of_guarded_regions_do_not_linger() -> None:
    sparse = Sparse(guarded={"vmem0"})
    clock = Clock()
    sparse.slots.later = clock.later
    sparse.plug(0, BLOCK)

    sparse.unplug(0, BLOCK)

    assert sparse.seen() == []
    assert clock.due == []
    sparse.memory.close()


def test_a_readable_range_keeps_its_memslot_until_it_is_not(sparse: Sparse) -> None:
    sparse.occupancy.readable = GIB + BLOCK
    for at in (0, GIB, 2 * GIB):
        sparse.plug(at, BLOCK)
        sparse.unplug(at, BLOCK)
    assert sparse.seen() == [(0, GIB), (GIB, GIB)]

    sparse.occupancy.readable = 0
    sparse.memory.readable_changed(sparse.slot)

    assert sparse.seen() == []


def test_what_was_plugged_before_a_subscription_is_mapped() -> None:
    vm, memory = FakeVm(), GuestMemory()
    occupancy = FakeOccupancy((BLOCK, BLOCK))
    memory.add(BASE, Region(2 * GIB), name="vmem0", occupancy=occupancy)

    memory.subscribe(Memslots(vm, 32))

    assert [(s.gpa, s.size) for s in vm.slots.values()] == [(BASE, GIB)]
    memory.close()


def test_narrowing_leaves_exactly_what_is_plugged(sparse: Sparse) -> None:
    sparse.plug(0, BLOCK)
    sparse.plug(3 * BLOCK, 2 * BLOCK)
    sparse.plug(GIB, GIB)
    kept = {number for number, known in sparse.vm.slots.items() if known.gpa == BASE + GIB}

    assert sparse.slots.narrow({"vmem0"}) is True

    assert sparse.seen() == [(0, BLOCK), (3 * BLOCK, 2 * BLOCK), (GIB, GIB)]
    assert kept < set(sparse.vm.slots), "a full range needs no change"
    assert sparse.slots.narrow({"vmem0"}) is False


def test_narrowing_takes_away_what_is_only_readable(sparse: Sparse) -> None:
    sparse.occupancy.readable = GIB
    sparse.plug(0, BLOCK)
    sparse.unplug(0, BLOCK)

    assert sparse.slots.narrow({"vmem0"}) is True
    assert sparse.seen() == []


def test_only_named_regions_are_narrowed(sparse: Sparse) -> None:
    sparse.plug(0, BLOCK)

    assert sparse.slots.narrow({"other"}) is False
    assert sparse.seen() == [(0, GIB)]


def test_after_narrowing_plugs_add_just_what_is_missing(sparse: Sparse) -> None:
    sparse.plug(2 * BLOCK, BLOCK)
    sparse.slots.narrow({"vmem0"})

    sparse.plug(0, BLOCK)
    sparse.plug(GIB - BLOCK, 2 * BLOCK)

    assert sparse.seen() == [
        (0, BLOCK),
        (2 * BLOCK, BLOCK),
        (GIB - BLOCK, BLOCK),
        (GIB, GIB),
    ]


def test_after_narrowing_partly_unplugged_pieces_stay_until_the_next(sparse: Sparse) -> None:
    sparse.plug(0, 4 * BLOCK)
    sparse.slots.narrow({"vmem0"})

    sparse.unplug(BLOCK, BLOCK)
    assert sparse.seen() == [(0, 4 * BLOCK)]
    sparse.plug(BLOCK, BLOCK)
    assert sparse.seen() == [(0, 4 * BLOCK)]

    sparse.unplug(BLOCK, BLOCK)
    assert sparse.slots.narrow({"vmem0"}) is True
    assert sparse.seen() == [(0, BLOCK), (2 * BLOCK, 2 * BLOCK)]

    sparse.unplug(0, BLOCK)
    assert sparse.seen() == [(2 * BLOCK, 2 * BLOCK)]
    sparse.unplug(2 * BLOCK, 2 * BLOCK)
    assert sparse.seen() == []


def test_a_refused_plug_changes_nothing(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> None:
    accept = sparse.vm.set_memory_region

    def refuse_the_third(slot: int, gpa: int, size: int, hva: int, **options: bool) -> None:
        if gpa == BASE + 2 * GIB and size:
            raise HostError("no memory")
        accept(slot, gpa, size, hva, **options)

    monkeypatch.setattr(sparse.vm, "set_memory_region", refuse_the_third)

    with pytest.raises(HostError, match="no memory"):
        sparse.plug(0, 3 * GIB)

    assert (sparse.slots.count, sparse.seen()) == (0, [])
    sparse.plug(0, 2 * GIB)
    assert sparse.seen() == [(0, GIB), (GIB, GIB)]


def test_too_few_memslots_refuse_a_plug_with_the_reason() -> None:
    sparse = Sparse(limit=8)
    for at in range(0, 12, 2):
        sparse.plug(at * BLOCK, BLOCK)
    sparse.slots.narrow({"vmem0"})
    sparse.plug(12 * BLOCK, BLOCK)
    sparse.plug(14 * BLOCK, BLOCK)

    with pytest.raises(HostError, match=r"vmem0: no memslot is left .* \(KVM has 8\)"):
        sparse.plug(GIB - BLOCK, 2 * BLOCK)

    assert sparse.slots.count == 8
    sparse.unplug(0, BLOCK)
    sparse.plug(16 * BLOCK, BLOCK)
    assert sparse.slots.count == 8
    sparse.memory.close()


def test_too_many_pieces_refuse_narrowing_and_change_nothing() -> None:
    sparse = Sparse(limit=8)
    for at in range(0, 18, 2):
        sparse.plug(at * BLOCK, BLOCK)

    with pytest.raises(HostError, match=r"more pieces than KVM has memslots \(8\)"):
        sparse.slots.narrow({"vmem0"})

    assert sparse.seen() == [(0, GIB)]
    sparse.unplug(0, BLOCK)
    assert sparse.slots.narrow({"vmem0"}) is True
    assert sparse.slots.count == 8
    sparse.memory.close()


def test_a_memslot_that_kvm_will_not_delete_stays_and_is_used_again(
    sparse: Sparse, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse.plug(0, BLOCK)

    def refuse(*args: Any, **options: Any) -> None:
        raise HostError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(sparse.vm, "set_memory_region", refuse)
        sparse.unplug(0, BLOCK)

    assert sparse.seen() == [(0, GIB)]
    sparse.plug(BLOCK, BLOCK)
    assert sparse.seen() == [(0, GIB)]
    sparse.unplug(BLOCK, BLOCK)
    assert sparse.seen() == []


@pytest.mark.parametrize(
    ("sparse", "block", "limit", "expected"),
    [
        (0, 0, 32764, GIB),
        (TIB, 2 * MIB, 32764, GIB),
        (16 * TIB, 2 * MIB, 32764, GIB),
        (32 * TIB, 2 * MIB, 32764, 2 * GIB),
        (8 * GIB, 4 * GIB, 32764, 4 * GIB),
        (TIB, 2 * MIB, 509, 4 * GIB),
        (16 * TIB, 2 * MIB, 32, TIB),
    ],
)
def test_ranges_fit_the_memslots_of_kvm(sparse: int, block: int, limit: int, expected: int) -> None:
    assert range_size(sparse, block, limit) == expected


def test_random_plugs_unplugs_and_narrowings_keep_every_plugged_byte_mapped() -> None:
    rng = random.Random(3)
    sparse = Sparse(limit=4096)
    blocks = sparse.region.size // BLOCK
    state = [False] * blocks
    for _ in range(600):
        first = rng.randrange(blocks)
        count = min(rng.choice((1, 2, 64, 700)), blocks - first)
        chosen = state[first : first + count]
        if not any(chosen):
            sparse.plug(first * BLOCK, count * BLOCK)
            state[first : first + count] = [True] * count
        elif all(chosen):
            sparse.unplug(first * BLOCK, count * BLOCK)
            state[first : first + count] = [False] * count
        if rng.random() < 0.05:
            sparse.slots.narrow({"vmem0"})
            assert merged(sparse.seen()) == sparse.occupancy.plugged
        seen = merged(sparse.seen())
        for start, size in sparse.occupancy.plugged:
            assert any(at <= start and start + size <= at + length for at, length in seen)
        for at, length in sparse.seen():
            assert any(sparse.occupancy.plugged_ranges(at, length)), "a memslot without a purpose"
        assert sparse.slots.count == len(sparse.vm.slots)
    sparse.memory.close()


def test_memory_of_a_device_has_a_memslot_while_it_is_shown() -> None:
    vm = FakeVm()
    slots = Memslots(vm, 2)
    hide = slots.show(0xC000_0000, 0x1000, 0x7000_0000)
    slots.show(0xC000_1000, 0x1000, 0x7000_1000)

    with pytest.raises(HostError, match="device memory: no memslot is left for 4K at 0xc0002000"):
        slots.show(0xC000_2000, 0x1000, 0x7000_2000)
    hide()
    slots.show(0xC000_2000, 0x1000, 0x7000_2000)

    assert slots.count == 2
    assert sorted(one.gpa for one in vm.slots.values()) == [0xC000_1000, 0xC000_2000]
