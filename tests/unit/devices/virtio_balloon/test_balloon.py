"""The memory balloon, driven over both ring formats (virtio-spec 5.5)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_balloon.statistics import UNKNOWN
from minivmm.errors import UsageError
from minivmm.memory.region import Region
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio import Feature as RingFeature
from minivmm.spec.virtio_balloon import BalloonConfig, Feature, Queue, Stat, StatTag
from minivmm.testing.driver import DeviceBench
from minivmm.units import GIB, MIB
from minivmm.virtio.errands import Inline

PAGE = 4096
POOL = 8 * MIB
"""Guest memory from here on belongs to the tests."""

Bench = tuple[VirtioBalloon, DeviceBench]


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    balloon = VirtioBalloon(
        VirtioBalloonSpec(packed=request.param, deflate_on_oom=True, free_page_reporting=True)
    )
    with DeviceBench(balloon) as bench:
        bench.driver.start()
        yield balloon, bench


def fill(bench: DeviceBench, gpa: int, length: int) -> None:
    bench.memory.write(gpa, b"\xaa" * length)


def inflate(bench: DeviceBench, *pages: int, queue: int = Queue.INFLATE) -> None:
    used = bench.driver.submit(queue, struct.pack(f"<{len(pages)}I", *pages))
    assert [one.written for one in used] == [0]


def report(bench: DeviceBench, *ranges: tuple[int, int], queue: int = Queue.REPORTING) -> bool:
    """Report free memory; was it acknowledged?"""
    ring = bench.driver.queues[queue]
    ring.add_at(ranges)
    bench.driver.kick(queue)
    return len(ring.collect()) == 1


def test_identity_features_and_configuration(bench: Bench) -> None:
    balloon, b = bench

    offered = Feature(b.driver.offered_features() & 0xFF)
    balloon.set_target(3 * MIB)

    assert b.driver.read_pci(0, 4) == 0x1045_1AF4
    assert offered == (
        Feature.STATS_VQ | Feature.DEFLATE_ON_OOM | Feature.PAGE_REPORTING | Feature.PAGE_POISON
    )
    assert BalloonConfig.parse(b.driver.read_config(16)) == BalloonConfig(num_pages=768)
    assert b.irq.take() == [0]


def test_by_default_only_statistics_are_offered() -> None:
    assert VirtioBalloon(VirtioBalloonSpec()).offered_features() == Feature.STATS_VQ


def test_inflated_pages_are_given_back_and_their_neighbours_are_not(bench: Bench) -> None:
    balloon, b = bench
    fill(b, POOL, 8 * PAGE)
    first = POOL // PAGE

    inflate(b, first + 5, first + 1, first + 2, first + 1)

    found = [b.memory.read(POOL + n * PAGE, PAGE).count(0xAA) // PAGE for n in range(8)]
    assert found == [1, 0, 0, 1, 1, 0, 1, 1]
    assert balloon.pages.inspect() == {"freed": 3 * PAGE, "kept": 0, "refused": 0}


def test_deflating_is_acknowledged_and_changes_nothing(bench: Bench) -> None:
    balloon, b = bench
    fill(b, POOL, PAGE)

    inflate(b, POOL // PAGE, queue=Queue.DEFLATE)

    assert b.memory.read(POOL, PAGE) == b"\xaa" * PAGE
    assert balloon.pages.freed == 0


def test_what_is_no_ram_is_refused_and_the_rest_is_done(bench: Bench) -> None:
    balloon, b = bench
    fill(b, 16 * MIB - PAGE, PAGE)
    last = 16 * MIB // PAGE - 1

    inflate(b, last, last + 1, 0xFFFF_FFFF)

    assert b.memory.read(16 * MIB - PAGE, PAGE) == bytes(PAGE)
    assert balloon.pages.inspect() == {"freed": PAGE, "kept": 0, "refused": 2 * PAGE}
    assert len(b.events("refused")) == 2
    assert DeviceStatus.NEEDS_RESET not in b.driver.status


def test_a_page_number_cut_short_is_ignored(bench: Bench) -> None:
    balloon, b = bench

    b.driver.submit(Queue.INFLATE, struct.pack("<I", POOL // PAGE) + b"\1\2\3")

    assert balloon.pages.inspect() == {"freed": PAGE, "kept": 0, "refused": 0}


def test_the_driver_tells_how_much_is_in_the_balloon(bench: Bench) -> None:
    balloon, b = bench
    seen: list[int] = []
    balloon.on_change = lambda: seen.append(balloon.size)
    at = BalloonConfig.OFFSETS["actual"]

    b.driver.write(4, at, 4, 512)
    b.driver.write(4, at, 4, 512)
    b.driver.write(4, BalloonConfig.OFFSETS["num_pages"], 4, 7)
    b.driver.reset()

    assert seen == [2 * MIB, 0]
    assert balloon.num_pages == 0


def test_the_target_survives_a_reset(bench: Bench) -> None:
    balloon, b = bench
    balloon.set_target(MIB)

    b.driver.start()

    assert BalloonConfig.parse(b.driver.read_config(16)).num_pages == 256


# -- statistics ------------------------------------------------------------------------------------


class Reminders(Inline):
    """Errands whose reminders a test brings about."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        self.waiting.append((seconds, look))


def stats(*pairs: tuple[int, int]) -> bytes:
    return b"".join(Stat(tag, value).build() for tag, value in pairs)


def test_statistics_are_asked_for_by_using_the_buffer(bench: Bench) -> None:
    balloon, b = bench
    reminders = Reminders()
    balloon.use(reminders)
    first = b.driver.submit(Queue.STATS, stats((StatTag.MEMFREE, 5)))

    balloon.statistics.poll_every(3)
    asked = b.driver.queues[Queue.STATS].collect()
    again = b.driver.submit(Queue.STATS, stats((99, 1), (StatTag.MEMTOT, GIB)))
    told = balloon.statistics.to_json()["stats"]
    ((seconds, poll),) = reminders.waiting
    poll()

    assert (first, again, seconds) == ([], [], 3)
    assert len(asked) == 1
    assert isinstance(told, dict)
    assert told["stat-total-memory"] == GIB
    assert told["stat-free-memory"] == UNKNOWN
    assert balloon.statistics.last_update > 0
    assert len(b.driver.queues[Queue.STATS].collect()) == 1


def test_an_interval_of_zero_ends_the_questions(bench: Bench) -> None:
    balloon, b = bench
    reminders = Reminders()
    balloon.use(reminders)
    balloon.statistics.poll_every(3)
    b.driver.submit(Queue.STATS, stats())
    b.driver.submit(Queue.STATS, stats())
    balloon.statistics.poll_every(0)
    b.driver.queues[Queue.STATS].collect()

    reminders.waiting[0][1]()

    assert b.driver.queues[Queue.STATS].collect() == []
    assert len(reminders.waiting) == 1


def test_a_driver_that_comes_back_is_asked_again() -> None:
    balloon = VirtioBalloon(VirtioBalloonSpec(guest_stats_polling_interval=60))
    with DeviceBench(balloon) as bench:
        for _ in range(2):
            bench.driver.start()
            (used,) = bench.driver.submit(Queue.STATS, stats())
            assert used.written == 0


def test_a_second_buffer_gives_the_first_one_back(bench: Bench) -> None:
    _, b = bench
    b.driver.submit(Queue.STATS, stats((StatTag.AVAIL, 1)))

    returned = b.driver.submit(Queue.STATS, stats((StatTag.AVAIL, 2)))

    assert len(returned) == 1


# -- free page reporting ---------------------------------------------------------------------------


def test_reported_pages_are_given_back(bench: Bench) -> None:
    balloon, b = bench
    fill(b, POOL, 3 * MIB)

    assert report(b, (POOL, MIB), (POOL + 2 * MIB, MIB))

    assert b.memory.read(POOL, MIB) == bytes(MIB)
    assert b.memory.read(POOL + MIB, MIB) == b"\xaa" * MIB
    assert b.memory.read(POOL + 2 * MIB, MIB) == bytes(MIB)
    assert balloon.pages.freed == 2 * MIB


def test_parts_of_pages_stay(bench: Bench) -> None:
    balloon, b = bench
    fill(b, POOL, 3 * PAGE)

    assert report(b, (POOL + 1, 2 * PAGE))

    assert balloon.pages.inspect() == {"freed": PAGE, "kept": PAGE, "refused": 0}
    assert b.memory.read(POOL + PAGE - 1, PAGE + 2) == b"\xaa" + bytes(PAGE) + b"\xaa"


def test_pages_that_the_driver_fills_keep_their_content(bench: Bench) -> None:
    balloon, b = bench
    b.driver.write(4, BalloonConfig.OFFSETS["poison_val"], 4, 0xAAAA_AAAA)
    fill(b, POOL, PAGE)

    assert report(b, (POOL, PAGE))

    assert b.memory.read(POOL, PAGE) == b"\xaa" * PAGE
    assert balloon.pages.freed == 0


def test_a_long_report_lets_others_have_the_lock_in_between(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    balloon, b = bench
    monkeypatch.setattr("minivmm.devices.virtio_balloon.device._AT_ONCE", 2 * PAGE)
    fill(b, POOL, 5 * PAGE)
    ring = b.driver.queues[Queue.REPORTING]
    ring.add_at([(POOL, 3 * PAGE), (POOL + 3 * PAGE, 2 * PAGE)])

    steps = []
    b.function.transport.kick(Queue.REPORTING)
    while b.defer.waiting:
        steps.append(balloon.pages.freed // PAGE)
        b.defer.waiting.pop(0)()

    assert steps == [2, 4]
    assert len(ring.collect()) == 1
    assert balloon.pages.freed == 5 * PAGE


def test_a_report_that_a_reset_interrupts_is_forgotten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    balloon, b = bench
    monkeypatch.setattr("minivmm.devices.virtio_balloon.device._AT_ONCE", PAGE)
    b.driver.queues[Queue.REPORTING].add_at([(POOL, 3 * PAGE)])
    b.function.transport.kick(Queue.REPORTING)

    b.driver.reset()
    b.defer.run()

    assert balloon.pages.freed == PAGE


def test_reports_of_what_is_no_ram_break_the_device(bench: Bench) -> None:
    _, b = bench
    b.driver.queues[Queue.REPORTING].add_at([(1 << 30, PAGE)])
    b.driver.kick(Queue.REPORTING)

    assert DeviceStatus.NEEDS_RESET in b.driver.status


def test_linux_counts_only_queues_that_were_negotiated() -> None:
    """Its driver has the reports in queue 3 if hints were not negotiated; the text says 4."""
    balloon = VirtioBalloon(VirtioBalloonSpec(free_page_reporting=True))
    with DeviceBench(balloon) as bench:
        driver = bench.driver
        driver.probe()
        driver.reset()
        assert driver.negotiate()
        driver.enable_msix()
        for index in range(4):
            driver.setup_queue(index)
        driver.add_status(DeviceStatus.DRIVER_OK)
        fill(bench, POOL, PAGE)

        assert report(bench, (POOL, PAGE), queue=3)
        assert balloon.pages.freed == PAGE


def test_a_driver_without_statistics_and_reports_inflates() -> None:
    balloon = VirtioBalloon(VirtioBalloonSpec())
    with DeviceBench(balloon) as bench:
        bench.driver.start(RingFeature.VERSION_1.mask)
        inflate(bench, POOL // PAGE)
        bench.driver.submit(Queue.STATS, b"")

        assert balloon.pages.freed == PAGE
        assert bench.events("ignored")


# -- limits ----------------------------------------------------------------------------------------


def test_huge_pages_are_kept(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    balloon, b = bench
    fill(b, POOL, PAGE)
    backing = b.memory.slots[0].region.backing
    object.__setattr__(backing, "page_size", 2 * MIB)
    try:
        inflate(b, POOL // PAGE)
    finally:
        object.__setattr__(backing, "page_size", PAGE)

    assert balloon.pages.inspect() == {"freed": 0, "kept": PAGE, "refused": 0}


def test_pages_that_the_host_refuses_to_take_are_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    balloon, b = bench

    def refuse(self: Region, offset: int, length: int) -> None:
        raise OSError(12, "no memory")

    monkeypatch.setattr(Region, "discard", refuse)
    inflate(b, POOL // PAGE)

    assert balloon.pages.inspect() == {"freed": 0, "kept": PAGE, "refused": 0}
    assert b.events("kept")


def test_an_endless_interval_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"guest-stats-polling-interval 4294967296 is out of range"
    ):
        VirtioBalloonSpec(guest_stats_polling_interval=1 << 32)
