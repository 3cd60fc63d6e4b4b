"""The saved state of a virtio-mem device, loaded into another one of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minivmm.devices.virtio_mem.activity import Activity
from minivmm.devices.virtio_mem.saved import NEVER
from minivmm.devices.virtio_mem.saved_forms import MEM, RUN
from minivmm.errors import BadState, HostError
from minivmm.memory.region import Access
from minivmm.spec.virtio_mem import Feature, RequestType, ResponseType
from minivmm.testing.mem_bench import MemBench
from minivmm.units import GIB, MIB

NOW = 1000.0
Make = Callable[..., MemBench]


@pytest.fixture
def make() -> Iterator[Make]:
    benches: list[MemBench] = []

    def make(**fields: object) -> MemBench:
        options = {"size": GIB, "block_size": 2 * MIB, "requested_size": 64 * MIB} | fields
        benches.append(MemBench(**options))
        benches[-1].device.activity.clock = lambda: NOW
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def copy(source: MemBench, target: MemBench) -> bytes:
    data = source.device.save_state()
    target.device.load_state(data)
    assert target.device.save_state() == data
    return data


def changed(bench: MemBench, **changes: Any) -> bytes:
    saved = MEM.parse(bench.device.save_state())
    saved.update(changes)
    return bytes(MEM.build(saved))


def test_sizes_blocks_and_answers_are_the_same(make: Make) -> None:
    old, new = make(), make(requested_size=0)
    old.driver.plug(0, 4)
    old.driver.plug(9, 2)
    old.driver.plug(0)
    old.device.set_requested_size(128 * MIB)

    copy(old, new)

    assert new.plugged == [(0, 4), (9, 2)]
    assert new.driver.config() == old.driver.config()
    assert new.device.inspect()["answers"] == {"PLUG": {"ACK": 2, "ERROR": 1}}
    assert new.driver.unplug(2, 2) is ResponseType.ACK
    assert new.driver.plug(20, 3) is ResponseType.ACK
    assert new.device.plugged_size == 14 * MIB


def test_plugged_blocks_are_shown_to_those_who_follow(make: Make) -> None:
    """Memslots and DMA mappings come by the same way as at a request."""
    told: list[tuple[int, int]] = []

    class Listener:
        def on_map(self, slot: object) -> None: ...
        def on_plug(self, slot: object, offset: int, length: int) -> None:
            told.append((offset, length))

        def on_unplug(self, slot: object, offset: int, length: int) -> None:
            told.remove((offset, length))

        def on_readable(self, slot: object) -> None: ...

    old, new = make(), make()
    old.driver.plug(0, 4)
    old.driver.plug(9, 2)
    new.memory.subscribe(Listener())

    copy(old, new)
    new.device.load_state(changed(old, runs=[(0, 4)]))

    assert told == [(0, 8 * MIB)]
    new.memory.view(new.driver.address(0), 8 * MIB)


def test_content_stays_where_blocks_stay_plugged(make: Make) -> None:
    """Loaded early, filled, and loaded again: only what is not plugged any more is gone."""
    old, new = make(), make()
    old.driver.plug(0, 4)
    new.device.load_state(old.device.save_state())
    for block in range(4):
        new.memory.write(new.driver.address(block), b"here")
    old.driver.unplug(1, 2)
    old.driver.plug(8)

    copy(old, new)
    new.device.load_state(changed(old, runs=[(0, 4), (8, 1)]))

    contents = [new.memory.read(new.driver.address(block), 4) for block in (0, 1, 2, 3, 8)]
    assert contents == [b"here", bytes(4), bytes(4), b"here", bytes(4)]


def test_target_is_that_of_the_old_process_whatever_was_asked_for_at_boot(make: Make) -> None:
    old, new = make(requested_size=0), make(requested_size=GIB)

    copy(old, new)

    assert (new.device.requested_size, new.device.usable_region_size) == (0, 0)
    assert new.driver.plug(0) is ResponseType.ERROR


def test_times_go_on(make: Make) -> None:
    old, new = make(), make()
    old.driver.plug(0)
    old.device.activity.clock = lambda: NOW + 7
    old.driver.plug(9999)

    data = old.device.save_state()
    new.device.load_state(data)

    activity, run = new.device.activity, new.device.activity.run
    assert activity.plug_at == pytest.approx(NOW)
    assert activity.progress_at == pytest.approx(NOW - 7)
    assert activity.config_at is None
    assert run is not None
    assert (run.answer, run.times) == (ResponseType.ERROR, 1)
    assert activity.answers == old.device.activity.answers


def test_unplugged_long_ago_is_still_known_when_it_is_touched(make: Make) -> None:
    old, new = make(), make()
    old.driver.plug(0)
    old.driver.unplug(0)
    old.device.intruders.read(64, 8)
    copy(old, new)

    new.device.intruders.read(64, 8)

    assert new.device.intruders.count == 2
    assert new.device.intruders.recent[-1].age is not None


def test_protection_is_as_it_was(make: Make) -> None:
    old, new = (make(protect="report", unplugged_inaccessible="on") for _ in range(2))
    seen: list[tuple[int, int, Access]] = []
    real = new.region.protect

    def protect(offset: int, length: int, access: Access) -> None:
        seen.append((offset, length, access))
        real(offset, length, access)

    new.region.protect = protect  # type: ignore[method-assign]
    old.device.accept_features(Feature.ACPI_PXM | Feature.UNPLUGGED_INACCESSIBLE)
    old.driver.plug(3, 2)

    copy(old, new)

    assert (6 * MIB, 4 * MIB, Access.ALL) in seen
    new.memory.view(new.driver.address(3), 4 * MIB)[:1] = b"x"


def test_driver_that_did_not_promise_may_read_in_the_new_process_too(make: Make) -> None:
    old, new = make(), make()
    old.device.accept_features(Feature.ACPI_PXM)

    copy(old, new)

    assert new.device.state.readable == new.device.usable_region_size > 0


def test_driver_that_waits_for_memory_is_told_when_there_is_some(make: Make) -> None:
    old, new = make(prealloc=True), make(prealloc=True)
    old.host_refuses("populate")
    assert old.driver.plug(0) is ResponseType.BUSY
    looks: list[Callable[[], None]] = []
    new.device.shortage.later = lambda _seconds, look: looks.append(look)

    copy(old, new)
    told = len(new.signals.config_changes)
    (look,) = looks
    look()

    assert len(new.signals.config_changes) == told + 1


@pytest.mark.parametrize("call", ["populate", "protect"])
def test_host_that_cannot_plug_as_much_says_so(make: Make, call: str) -> None:
    old, new = (make(prealloc=True, protect="report") for _ in range(2))
    old.driver.plug(0, 4)
    new.host_refuses(call)

    with pytest.raises(HostError, match=r"vmem0: the host cannot plug .* refused by the host"):
        new.device.load_state(old.device.save_state())


def test_host_memory_is_taken_beforehand_if_it_was_asked_for(make: Make) -> None:
    old, new = make(), make(prealloc=True)
    old.driver.plug(0, 4)

    new.device.load_state(old.device.save_state())

    assert new.region.usage().resident >= 8 * MIB


BLOCKS = GIB // (2 * MIB)
REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "requested beyond the region": ("requested-size", {"requested_size": GIB + 2 * MIB}),
    "requested not in blocks": ("requested-size", {"requested_size": MIB}),
    "usable beyond the region": ("usable-region-size", {"usable_region_size": GIB + 2 * MIB}),
    "usable not in blocks": ("usable-region-size", {"usable_region_size": 512 * MIB + 1}),
    "usable below what is requested": ("usable-region-size", {"usable_region_size": 64 * MIB}),
    "plugged beyond the region": ("plugged blocks", {"runs": [(BLOCKS, 1)]}),
    "plugged beyond all": ("plugged blocks", {"runs": [(0xFFFF_FFFF, 0xFFFF_FFFF)]}),
    "no blocks": ("plugged blocks", {"runs": [(1, 0)]}),
    "twice": ("plugged blocks", {"runs": [(1, 2), (2, 1)]}),
    "one run in two": ("plugged blocks", {"runs": [(1, 2), (3, 1)]}),
    "descending": ("plugged blocks", {"runs": [(8, 1), (2, 1)]}),
    "promised and not": ("features", {"features": 2, "unpromised": True}),
    "shortage of more than there is": ("shortage", {"short_of": GIB + 1}),
    "an answer that does not exist": (
        "answers",
        {"counts": [{"asked": "PLUG", "answer": "PERHAPS", "times": 1}]},
    ),
    "a request that does not exist": (
        "answers",
        {"counts": [{"asked": "GRAB", "answer": "ACK", "times": 1}]},
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_driver_can_cause_is_refused(make: Make, what: str) -> None:
    bench = make()
    field, changes = REFUSED[what]

    with pytest.raises(BadState, match="saved state of vmem0: ") as caught:
        bench.device.load_state(changed(bench, **changes))

    assert caught.value.field == field
    assert bench.plugged == []


def test_plugged_beyond_what_is_usable_is_refused(make: Make) -> None:
    bench = make(size=16 * GIB)
    usable = bench.device.usable_region_size // (2 * MIB)
    assert usable < 16 * GIB // (2 * MIB)

    with pytest.raises(BadState, match="usable blocks"):
        bench.device.load_state(changed(bench, runs=[(usable - 1, 2)]))


@pytest.mark.parametrize("change", [{"features": 1}, {"unpromised": True}])
def test_device_that_insists_takes_no_driver_that_did_not_promise(
    make: Make, change: dict[str, object]
) -> None:
    bench = make(unplugged_inaccessible="on")

    with pytest.raises(BadState, match="UNPLUGGED_INACCESSIBLE"):
        bench.device.load_state(changed(bench, **change))


@pytest.mark.parametrize(
    "change",
    [{"answer": 9}, {"request": 7}, {"began": NEVER}],
    ids=lambda change: next(iter(change)),
)
def test_latest_answer_must_be_one(make: Make, change: dict[str, int]) -> None:
    bench = make()
    bench.driver.plug(0)
    saved = MEM.parse(bench.device.save_state())
    saved.activity.run.update(change)

    with pytest.raises(BadState, match="latest answer"):
        bench.device.load_state(MEM.build(saved))


def test_runs_agree_with_their_form(make: Make) -> None:
    bench = make()
    bench.driver.plug(3, 4)
    data = bench.device.save_state()

    assert RUN.build({"first": 3, "count": 4}) in data


def test_region_in_many_pieces_takes_little_time(make: Make) -> None:
    """A run for every other block of 1 TiB: half a million."""
    size = 1 << 40
    bench = make(size=size, requested_size=size, prealloc=False)
    blocks = bench.device.blocks
    for block in range(0, 1000, 2):
        blocks.plug(block, 1)

    data = bench.device.save_state()

    assert len(data) < 1000 + 500 * RUN.sizeof()


def test_age_survives_any_number_of_moves(make: Make) -> None:
    benches = [make() for _ in range(5)]
    benches[0].driver.plug(0)
    benches[0].device.activity.clock = lambda: NOW + 1 / 3
    first = benches[0].device.save_state()
    for bench in benches[1:]:
        bench.device.activity.clock = lambda: 123_456.789
        bench.device.load_state(first)
        assert bench.device.save_state() == first


def test_fields_of_activity_are_all_saved() -> None:
    """A time that is added must be saved, too."""
    names = {name for name in vars(Activity()) if name.endswith("_at")}
    saved = {str(field.name) for field in MEM.activity.subcons}

    assert names <= saved
    assert {"answers", "moved", "run", "missing_features", "target"} <= saved


def test_requests_are_named_as_ever() -> None:
    """Names are part of the form."""
    assert [kind.name for kind in RequestType] == ["PLUG", "UNPLUG", "UNPLUG_ALL", "STATE"]
    assert [kind.name for kind in ResponseType] == ["ACK", "NACK", "BUSY", "ERROR"]
