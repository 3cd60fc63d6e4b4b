"""The block device, driven over both ring formats (virtio-spec 5.2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.devices.virtio_blk import disk as disk_module
from minivmm.devices.virtio_blk.device import VirtioBlk
from minivmm.devices.virtio_blk.requests import HEADER
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio import Feature as RingFeature
from minivmm.spec.virtio_blk import (
    SECTOR,
    BlkConfig,
    Feature,
    RequestHeader,
    RequestType,
    Segment,
    Status,
)
from minivmm.testing.driver import DeviceBench
from minivmm.units import MIB
from minivmm.virtio.errands import Job

SIZE = MIB
SECTORS = SIZE // SECTOR

Make = Callable[..., DeviceBench]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(number.to_bytes(2, "little") * 256 for number in range(SECTORS)))
    return path


@pytest.fixture
def make(file: Path) -> Iterator[Make]:
    """A running bench; keywords are options of the device, and `features` those of the driver."""
    benches: list[DeviceBench] = []

    def make(features: int | None = None, **options: object) -> DeviceBench:
        bench = DeviceBench(VirtioBlk(VirtioBlkSpec(file=str(file), **options)))  # type: ignore[arg-type]
        benches.append(bench)
        bench.driver.start(features)
        return bench

    yield make
    for bench in benches:
        bench.device.close()
        bench.close()


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def bench(request: pytest.FixtureRequest, make: Make) -> DeviceBench:
    return make(packed=request.param)


def ask(
    bench: DeviceBench, kind: int, sector: int = 0, *data: bytes, room: tuple[int, ...] = ()
) -> tuple[int, bytes]:
    """(status, what was read) of one request."""
    header = RequestHeader(kind, 0, sector).build()
    (used,) = bench.driver.submit(0, header, *data, writable=(*room, 1))
    assert used.written in (0, len(used.buffer)), "used.len counts from the start, without holes"
    return used.buffer[-1], used.buffer[:-1]


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    return Segment(sector, count, flags).build()


def sector(number: int) -> bytes:
    return number.to_bytes(2, "little") * 256


# -- configuration ---------------------------------------------------------------------------------


def test_identity_features_and_configuration(bench: DeviceBench) -> None:
    config = BlkConfig.parse(bench.driver.read_config(BlkConfig.SIZE))

    assert bench.driver.read_pci(0, 4) == 0x1042_1AF4
    offered = Feature(bench.driver.offered_features() & 0xFF_FFFF)
    assert Feature.FLUSH in offered and Feature.RO not in offered
    assert (config.capacity, config.blk_size, config.seg_max) == (SECTORS, SECTOR, 126)
    assert (config.writeback, config.num_queues) == (1, 1)
    assert (config.unused0, config.unused1) == (0, bytes(3))
    assert config.max_discard_seg and config.max_write_zeroes_seg
    assert config.write_zeroes_may_unmap == 1


def test_a_read_only_disk_offers_no_way_to_write(make: Make) -> None:
    offered = Feature(make(readonly=True).driver.offered_features() & 0xFF_FFFF)

    assert Feature.RO in offered and Feature.FLUSH in offered
    assert not offered & (Feature.DISCARD | Feature.WRITE_ZEROES | Feature.CONFIG_WCE)


def test_discard_and_write_zeroes_can_be_switched_off(make: Make) -> None:
    bench = make(discard=False, write_zeroes=False)
    config = BlkConfig.parse(bench.driver.read_config(BlkConfig.SIZE))

    assert not bench.driver.offered_features() & (Feature.DISCARD | Feature.WRITE_ZEROES)
    assert (config.max_discard_sectors, config.max_write_zeroes_sectors) == (0, 0)
    assert ask(bench, RequestType.DISCARD, 0, segment(0, 8))[0] == Status.UNSUPP
    assert ask(bench, RequestType.WRITE_ZEROES, 0, segment(0, 8))[0] == Status.UNSUPP


def test_the_hot_path_reads_headers_as_they_are_declared() -> None:
    header = RequestHeader(0x01020304, 0xFFFF_FFFF, 0x1122334455667788).build()

    assert HEADER.size == RequestHeader.SIZE
    assert HEADER.unpack(header) == (0x01020304, 0x1122334455667788)


# -- reading and writing ---------------------------------------------------------------------------


def test_sectors_are_read_from_the_file(bench: DeviceBench) -> None:
    status, data = ask(bench, RequestType.IN, 7, room=(2 * SECTOR,))

    assert (status, data) == (Status.OK, sector(7) + sector(8))


def test_any_framing_is_fine(bench: DeviceBench, file: Path) -> None:
    header = RequestHeader(RequestType.OUT, 0, 3).build()
    data = os.urandom(SECTOR)

    (wrote,) = bench.driver.submit(0, header[:5], header[5:] + data[:99], data[99:], writable=(1,))
    status, read = ask(bench, RequestType.IN, 3, room=(100, 1, SECTOR - 101))

    assert wrote.buffer == b"\0"
    assert (status, read) == (Status.OK, data)
    assert file.read_bytes()[3 * SECTOR : 4 * SECTOR] == data


def test_status_in_the_last_byte_of_the_data_buffer(bench: DeviceBench) -> None:
    header = RequestHeader(RequestType.IN, 0, 1).build()

    (used,) = bench.driver.submit(0, header, writable=(SECTOR + 1,))

    assert used.buffer == sector(1) + b"\0"
    assert used.written == SECTOR + 1


def test_requests_of_one_kick_are_answered_in_one_batch(bench: DeviceBench) -> None:
    ring = bench.driver.queues[0]
    for number in range(20):
        ring.add([RequestHeader(RequestType.IN, 0, number).build()], [SECTOR, 1])
    bench.irq.take()

    bench.driver.kick(0)

    assert [used.buffer[:-1] for used in ring.collect()] == [sector(n) for n in range(20)]
    assert bench.irq.take() == [1]


@pytest.mark.parametrize("first", [SECTORS, SECTORS - 1, 2**55, 2**64 - 1])
def test_what_is_not_on_the_disk_is_an_error(bench: DeviceBench, first: int, file: Path) -> None:
    before = file.read_bytes()
    size = 2 * SECTOR

    assert ask(bench, RequestType.IN, first, room=(size,))[0] == Status.IOERR
    assert ask(bench, RequestType.OUT, first, bytes(size))[0] == Status.IOERR
    assert ask(bench, RequestType.DISCARD, 0, segment(first, 2))[0] == Status.IOERR
    assert file.read_bytes() == before


def test_parts_of_sectors_are_an_error(bench: DeviceBench, file: Path) -> None:
    before = file.read_bytes()

    assert ask(bench, RequestType.IN, 0, room=(SECTOR + 1,))[0] == Status.IOERR
    assert ask(bench, RequestType.OUT, 0, bytes(SECTOR - 1))[0] == Status.IOERR
    assert file.read_bytes() == before


def test_writing_to_a_read_only_disk_is_an_error_and_writes_nothing(make: Make, file: Path) -> None:
    bench, before = make(readonly=True), file.read_bytes()

    assert ask(bench, RequestType.OUT, 0, bytes(SECTOR))[0] == Status.IOERR
    assert ask(bench, RequestType.WRITE_ZEROES, 0, segment(0, 1))[0] == Status.IOERR
    assert ask(bench, RequestType.DISCARD, 0, segment(0, 1))[0] == Status.IOERR
    assert ask(bench, RequestType.FLUSH)[0] == Status.OK
    assert file.read_bytes() == before


def test_a_file_that_got_shorter_is_an_error_of_the_request(bench: DeviceBench, file: Path) -> None:
    os.truncate(file, SECTOR)

    assert ask(bench, RequestType.IN, 1, room=(SECTOR,))[0] == Status.IOERR
    assert ask(bench, RequestType.IN, 0, room=(SECTOR,)) == (Status.OK, sector(0))
    assert bench.events("failed")[0].fields["answer"] == "IOERR"


def test_unknown_requests_are_not_supported(bench: DeviceBench) -> None:
    assert ask(bench, 4711)[0] == Status.UNSUPP


def test_the_serial_number_is_told(make: Make) -> None:
    bench = make(serial="MINI-1")

    assert ask(bench, RequestType.GET_ID, room=(20,)) == (Status.OK, b"MINI-1".ljust(20, b"\0"))
    assert ask(bench, RequestType.GET_ID, room=(4,)) == (Status.OK, b"MINI")


# -- discard and write zeroes ----------------------------------------------------------------------


def test_discarded_sectors_are_freed(bench: DeviceBench, file: Path) -> None:
    before = file.stat().st_blocks

    answer = ask(bench, RequestType.DISCARD, 0, segment(0, 512) + segment(1024, 512))

    assert answer[0] == Status.OK
    assert file.stat().st_blocks <= before - 1024
    assert file.read_bytes()[512 * SECTOR : 513 * SECTOR] == sector(512)


@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize("supported", [True, False])
def test_zeroed_sectors_are_zeroes(
    bench: DeviceBench, file: Path, flags: int, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supported:
        for name in ("punch_hole", "zero_range"):
            monkeypatch.setattr(disk_module.libc, name, _unsupported)

    status, _ = ask(bench, RequestType.WRITE_ZEROES, 0, segment(3, 9, flags))

    content = file.read_bytes()
    assert status == Status.OK
    assert content[: 3 * SECTOR] == sector(0) + sector(1) + sector(2)
    assert content[3 * SECTOR : 12 * SECTOR] == bytes(9 * SECTOR)
    assert content[12 * SECTOR : 13 * SECTOR] == sector(12)


def _unsupported(fd: int, offset: int, length: int) -> None:
    raise OSError(errno.EOPNOTSUPP, "not here")


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        (RequestType.DISCARD, segment(0, 8, 1), Status.UNSUPP),
        (RequestType.DISCARD, segment(0, 8, 2), Status.UNSUPP),
        (RequestType.WRITE_ZEROES, segment(0, 8, 2), Status.UNSUPP),
        (RequestType.DISCARD, segment(0, 8)[:-1], Status.IOERR),
        (RequestType.DISCARD, b"", Status.IOERR),
        (RequestType.DISCARD, segment(0, 1) * 17, Status.IOERR),
        (RequestType.WRITE_ZEROES, segment(0, 2**32 - 1), Status.IOERR),
        (RequestType.WRITE_ZEROES, segment(0, 1) + segment(1, 1), Status.IOERR),
        (RequestType.DISCARD, segment(0, 1) + segment(SECTORS, 1), Status.IOERR),
    ],
)
def test_bad_segments_change_nothing(
    bench: DeviceBench, file: Path, kind: int, data: bytes, status: Status
) -> None:
    before = file.read_bytes()

    assert ask(bench, kind, 0, data)[0] == status
    assert file.read_bytes() == before


# -- stable storage --------------------------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each fdatasync."""
    seen: list[int] = []
    monkeypatch.setattr(os, "fdatasync", seen.append)
    return seen


def test_a_flush_reaches_the_host(bench: DeviceBench, syncs: list[int]) -> None:
    ask(bench, RequestType.OUT, 0, bytes(SECTOR))
    assert len(syncs) == 0

    assert ask(bench, RequestType.FLUSH)[0] == Status.OK
    assert len(syncs) == 1


def test_without_flush_every_write_is_stable_when_it_is_answered(
    make: Make, syncs: list[int]
) -> None:
    bench = make(RingFeature.VERSION_1.mask)

    ask(bench, RequestType.IN, 0, room=(SECTOR,))
    assert len(syncs) == 0
    ask(bench, RequestType.OUT, 0, bytes(SECTOR))
    assert len(syncs) == 1


def test_the_driver_switches_the_cache_off_and_a_reset_on_again(
    bench: DeviceBench, syncs: list[int]
) -> None:
    at = BlkConfig.OFFSETS["writeback"]
    bench.driver.write(4, at, 1, 0)
    ask(bench, RequestType.OUT, 0, bytes(SECTOR))
    off = BlkConfig.parse(bench.driver.read_config(BlkConfig.SIZE)).writeback

    bench.driver.reset()
    on = BlkConfig.parse(bench.driver.read_config(BlkConfig.SIZE)).writeback

    assert (off, on) == (0, 1)
    assert len(syncs) == 1


def test_a_sync_that_fails_is_an_error_of_the_writes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(RingFeature.VERSION_1.mask)
    monkeypatch.setattr(os, "fdatasync", _no_space)

    assert ask(bench, RequestType.OUT, 0, bytes(SECTOR))[0] == Status.IOERR
    assert ask(bench, RequestType.IN, 0, room=(SECTOR,))[0] == Status.OK


def _no_space(fd: int) -> None:
    raise OSError(errno.ENOSPC, "full")


# -- work aside of the lock ------------------------------------------------------------------------


class Held:
    """Errands whose work is done when a test says so, or when somebody waits for it."""

    def __init__(self) -> None:
        self.jobs: list[Held.Work] = []

    class Work:
        error: BaseException | None = None

        def __init__(self, work: Callable[[], None], done: Callable[[], None]) -> None:
            self.over = False
            self._work, self._done = work, done

        def wait(self) -> None:
            if not self.over:
                self._work()
                self.over = True

        def end(self) -> None:
            self.wait()
            self._done()

    def aside(self, work: Callable[[], None], done: Callable[[], None]) -> Job:
        self.jobs.append(Held.Work(work, done))
        return self.jobs[-1]

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        raise AssertionError("a disk needs no reminders")


def test_requests_wait_while_a_batch_is_at_work(bench: DeviceBench) -> None:
    held, ring = Held(), bench.driver.queues[0]
    bench.device.use(held)
    for number in (1, 2, 3):
        ring.add([RequestHeader(RequestType.IN, 0, number).build()], [SECTOR, 1])
        bench.driver.kick(0)
    before = ring.collect()

    held.jobs[0].end()
    first = ring.collect()
    held.jobs[1].end()
    others = ring.collect()

    assert before == []
    assert [used.buffer[:-1] for used in first] == [sector(1)]
    assert [used.buffer[:-1] for used in others] == [sector(2), sector(3)]
    assert len(held.jobs) == 2


def test_a_batch_has_a_bounded_amount_of_zeroes_to_write(
    bench: DeviceBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset waits for the batch, and a file system without fallocate(2) has to write them."""
    monkeypatch.setattr("minivmm.devices.virtio_blk.device.BATCH_BYTES", 64 * SECTOR)
    held, ring = Held(), bench.driver.queues[0]
    bench.device.use(held)
    header = RequestHeader(RequestType.WRITE_ZEROES, 0, 0).build()
    for _ in range(4):
        ring.add([header, segment(0, 32)], [1])
    bench.driver.kick(0)

    held.jobs[0].end()
    first = len(ring.collect())
    held.jobs[1].end()

    assert (first, len(ring.collect())) == (2, 2)


def test_a_reset_finishes_writes_and_answers_nobody(bench: DeviceBench, file: Path) -> None:
    held, ring = Held(), bench.driver.queues[0]
    bench.device.use(held)
    data = os.urandom(SECTOR)
    ring.add([RequestHeader(RequestType.OUT, 0, 5).build(), data], [1])
    bench.driver.kick(0)

    bench.driver.reset()
    held.jobs[0].end()

    assert ring.collect() == []
    assert file.read_bytes()[5 * SECTOR : 6 * SECTOR] == data
    bench.driver.start()
    assert DeviceStatus.NEEDS_RESET not in bench.driver.status


@pytest.mark.parametrize(("readable", "writable"), [(b"x" * 15, (1,)), (b"x" * 16, ())])
def test_requests_that_cannot_be_answered_break_the_device_until_it_is_reset(
    bench: DeviceBench, readable: bytes, writable: tuple[int, ...]
) -> None:
    bench.driver.submit(0, readable, writable=writable)
    broken = bench.driver.status

    bench.driver.start()

    assert DeviceStatus.NEEDS_RESET in broken
    assert ask(bench, RequestType.IN, 4, room=(SECTOR,)) == (Status.OK, sector(4))


def test_more_data_than_a_request_may_have_is_an_error(
    bench: DeviceBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivmm.devices.virtio_blk.requests.MOST_BYTES", 4 * SECTOR)

    assert ask(bench, RequestType.IN, 0, room=(5 * SECTOR,))[0] == Status.IOERR
    assert ask(bench, RequestType.OUT, 0, bytes(5 * SECTOR))[0] == Status.IOERR
    assert ask(bench, RequestType.IN, 0, room=(4 * SECTOR,))[0] == Status.OK
