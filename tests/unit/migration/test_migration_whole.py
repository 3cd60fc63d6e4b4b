"""A machine moves from one process's place to another's: what is the same, and who runs when."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from minivmm.errors import Refused
from minivmm.spec.virtio_mem import BlockState, RequestType, ResponseType
from minivmm.testing.fake_queue import FakeQueue
from minivmm.testing.slow_host import SlowHost
from minivmm.units import KIB, MIB


def test_memory_sizes_and_state_arrive(source: Any, target: Any, moved: Any) -> None:
    before = source.memory()

    moved()

    assert target.ends == [None]
    assert source.machine.state == "postmigrate"
    assert target.machine.state == "running"
    assert target.runs()
    assert source.memory() == before
    assert target.device.plugged_size == source.device.plugged_size == 42 * MIB
    assert target.device.requested_size == 256 * MIB
    there = dict(target.memory())
    there[0] = there[0][:0x5000] + bytes(8) + there[0][0x5008:]  # what runs() wrote
    assert there == dict(before)


def test_events_tell_how_it_goes(source: Any, target: Any, moved: Any) -> None:
    moved()

    assert source.statuses() == ["setup", "active", "completed"]
    assert target.statuses() == ["setup", "completed"]
    assert source.names()[-4:] == ["MIGRATION_PASS", "STOP", "MIGRATION_PASS", "MIGRATION"]


def test_progress_counts_what_was_sent(source: Any, target: Any, moved: Any) -> None:
    moved()
    progress = source.migration.progress

    assert progress.status == "completed"
    assert progress.total == (64 + 42) * MIB
    assert progress.data + progress.zeroes == progress.total
    assert 0 < progress.data <= progress.sent < 1 * MIB
    assert progress.remaining == 0
    assert 0 < progress.downtime < progress.seconds


def test_the_driver_is_told_on_the_target(source: Any, target: Any, moved: Any) -> None:
    """A driver that got BUSY waits for a configuration interrupt."""
    moved()

    assert target.kicks == ["running"]


@pytest.fixture
def slow(source: Any, target: Any, uri: str, wait: Any) -> Callable[[], None]:
    """The migration is in its first round, and stays there until the function is called."""
    parameters = source.migration.parameters
    at = source.device.window.base + 3 * source.device.block_size
    noise = bytes(range(256)) * 4096
    source.world.call(lambda: source.machine.board.memory.write(at, noise * 4))
    parameters.max_bandwidth = 256 * KIB
    source.go(target.expect(uri))
    wait(lambda: source.migration.progress.data)

    def go_on() -> None:
        parameters.max_bandwidth = 0
        wait(lambda: source.migration.progress.over and target.ends, 20.0)

    return go_on


def test_blocks_are_busy_on_the_way_and_state_answers(
    source: Any, target: Any, slow: Callable[[], None]
) -> None:
    driver, call = source.driver(), source.world.call

    assert call(lambda: driver.plug(60)) is ResponseType.BUSY
    assert call(lambda: driver.unplug(3)) is ResponseType.BUSY
    assert call(driver.unplug_all) is ResponseType.BUSY
    assert call(lambda: driver.state(3)) is BlockState.PLUGGED
    assert call(lambda: driver.state(3, 30)) is BlockState.MIXED
    assert call(lambda: driver.plug(3)) is ResponseType.ERROR
    assert call(lambda: driver.request(RequestType.PLUG, 1, 1)).type == ResponseType.ERROR
    slow()

    assert target.ends == [None]
    assert target.device.plugged_size == 42 * MIB
    assert call(lambda: target.driver().plug(60)) is ResponseType.ACK
    assert call(lambda: target.driver().unplug_all()) is ResponseType.ACK


def test_a_guest_that_reboots_on_the_way_keeps_its_blocks(
    source: Any, target: Any, slow: Callable[[], None], wait: Any
) -> None:
    """The guide's one exception: the next driver finds them plugged, and does UNPLUG_ALL."""
    boot = source.machine.board.address_map.ram[0].base
    source.write(boot + 0x1000000 + 0x200000, 0x1234)  # gone with the reset
    kept = source.memory()[1:]

    source.world.call(source.machine.request_reset)
    wait(lambda: "RESET" in source.names())
    after = source.memory()
    slow()

    assert target.ends == [None]
    assert after[1:] == kept == target.memory()[1:]
    assert target.device.plugged_size == source.device.plugged_size == 42 * MIB
    assert target.memory() == after
    assert source.world.call(target.driver().unplug_all) is ResponseType.ACK


def test_what_the_guest_writes_on_the_way_arrives(
    source: Any, target: Any, slow: Callable[[], None]
) -> None:
    base = source.device.window.base + 40 * source.device.block_size
    for step in range(50):
        source.write(base + step * 8192, step + 1)
        source.write(0x8000 + step * 4096, step + 1)
    source.write(base + 8192, 0)  # a page that was sent, and is zeroes now
    slow()

    assert target.ends == [None]
    assert target.memory() == source.memory()
    assert source.migration.progress.rounds >= 2


def test_what_the_host_is_at_work_on_ends_first(
    source: Any, target: Any, uri: str, wait: Any
) -> None:
    host, call, driver = SlowHost(), source.world.call, source.driver()
    source.device.service.errands = host
    with pytest.raises(AssertionError, match=r"used\.len"):  # it has no answer yet
        call(lambda: driver.unplug(3, 20))
    assert source.device.at_work

    source.go(target.expect(uri))
    wait(lambda: source.device.migrating)
    assert source.statuses() == ["setup"], "nothing is sent before it is over"
    call(host.finish)
    call(lambda: source.device.handle_queue(0, FakeQueue()))
    wait(lambda: source.migration.progress.over and target.ends)

    assert target.ends == [None]
    assert target.device.plugged_size == source.device.plugged_size == 2 * MIB
    assert target.memory() == source.memory()


def test_the_requested_size_may_change_on_the_way(
    source: Any, target: Any, slow: Callable[[], None]
) -> None:
    source.world.call(lambda: source.device.set_requested_size(512 * MIB))
    slow()

    assert target.device.requested_size == 512 * MIB
    assert target.device.usable_region_size == source.device.usable_region_size


def test_the_bandwidth_is_kept_while_the_guest_runs(source: Any, target: Any, moved: Any) -> None:
    noise = bytes(range(256)) * 4096
    source.world.call(lambda: source.machine.board.memory.write(0x2000000, noise))
    source.migration.parameters.max_bandwidth = 2 * MIB

    moved()

    assert source.migration.progress.seconds > 0.4
    assert target.memory() == source.memory()


def test_a_guest_that_writes_too_fast_is_not_stopped_before_the_limit_allows(
    source: Any, target: Any, uri: str, wait: Any
) -> None:
    memory, parameters = source.machine.board.memory, source.migration.parameters
    enough = threading.Event()

    def write() -> None:
        for step in itertools.count():
            if enough.wait(0.001):
                return
            noise = (bytes(range(256)) + bytes([step % 251])) * 4096
            with source.world.loop.lock:
                if source.machine.state == "running":
                    memory.write(0x2000000, noise[: 1 * MIB])

    writer = threading.Thread(target=write)
    writer.start()
    parameters.downtime_limit, parameters.max_bandwidth = 0, 64 * MIB
    source.go(target.expect(uri))
    progress = source.migration.progress
    wait(lambda: progress.rounds > 4, 20.0)
    assert source.machine.state == "running"
    assert progress.dirty_rate > 0

    parameters.downtime_limit = 2_000_000
    wait(lambda: progress.over and target.ends, 20.0)
    enough.set()
    writer.join()

    assert target.ends == [None]
    assert progress.downtime < progress.seconds
    assert target.memory() == source.memory()


def test_it_can_be_cancelled(source: Any, target: Any, slow: Callable[[], None], wait: Any) -> None:
    source.world.call(source.migration.cancel)
    wait(lambda: source.migration.progress.over and target.ends)

    assert source.migration.progress.status == "cancelled"
    assert source.statuses() == ["setup", "active", "cancelling", "cancelled"]
    assert "cancelled" in str(target.ends[0])
    assert target.machine.state == "inmigrate"
    assert source.runs()
    assert source.kicks == ["running"], "a driver that got BUSY is told"
    assert source.world.call(lambda: source.driver().plug(60)) is ResponseType.ACK


def test_a_target_that_hangs_can_be_left(source: Any, wait: Any) -> None:
    source.go("exec:sleep 100")
    wait(lambda: source.migration.progress.status == "setup")

    source.world.call(source.migration.cancel)
    wait(lambda: source.migration.progress.over)

    assert source.statuses() == ["setup", "cancelling", "cancelled"]
    assert source.runs()


def test_a_second_one_is_refused(source: Any, slow: Callable[[], None], uri: str) -> None:
    with pytest.raises(Refused, match="in progress"):
        source.go(uri)
    slow()


def test_a_machine_that_ends_on_the_way_takes_the_migration_along(
    source: Any, target: Any, slow: Callable[[], None], wait: Any
) -> None:
    source.world.call(source.machine.request_quit)
    wait(lambda: source.migration.progress.over and target.ends)

    assert source.migration.progress.status in ("cancelled", "failed")
    assert target.ends[0] is not None
    assert target.machine.state == "inmigrate"


def test_a_target_that_ends_leaves_the_source_running(
    source: Any, target: Any, slow: Callable[[], None], wait: Any
) -> None:
    target.world.call(target.machine.request_quit)
    wait(lambda: source.migration.progress.over and target.ends)

    assert source.migration.progress.status == "failed"
    assert source.runs()


def test_a_paused_machine_arrives_paused(source: Any, target: Any, moved: Any) -> None:
    source.world.call(source.machine.pause)

    moved()

    assert target.machine.state == "paused"
    target.world.call(target.machine.resume)
    assert target.runs()


def test_one_that_was_handed_over_runs_here_again_only_if_told_so(
    source: Any, target: Any, moved: Any
) -> None:
    moved()
    with pytest.raises(Refused, match="postmigrate"):
        source.go("unix:/nowhere")

    source.world.call(source.machine.resume)

    assert source.runs()
    assert source.world.call(lambda: source.driver().plug(60)) is ResponseType.ACK


def test_it_can_go_on_to_a_third(
    world: Any, source: Any, target: Any, moved: Any, wait: Any, uri: str
) -> None:
    moved()
    third = world.party(empty=True)

    target.go(third.expect(uri + "3"))
    wait(lambda: target.migration.progress.over and third.ends)

    assert third.ends == [None]
    assert third.memory() == target.memory()
    assert third.runs()


def test_compressed_memory_is_the_same(source: Any, target: Any, moved: Any) -> None:
    source.migration.parameters.compress_level = 1

    moved()

    assert target.memory() == source.memory()
    assert source.migration.progress.sent < source.migration.progress.data


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"cpus": 2}, "cpus"),
        ({"memory": 128 * MIB}, "memory"),
        ({"devices": ()}, "devices"),
    ],
)
def test_another_machine_is_refused_before_anything_moves(
    world: Any, source: Any, wait: Any, uri: str, changed: dict[str, Any], field: str
) -> None:
    target = world.party(empty=True, **changed)

    source.go(target.expect(uri))
    wait(lambda: source.migration.progress.over and target.ends)

    assert source.migration.progress.status == "failed"
    assert source.statuses() == ["setup", "failed"], "it was never active"
    assert field in source.migration.progress.error
    assert "\n" not in source.migration.progress.error
    assert "the machines differ" in str(target.ends[0])
    assert source.kicks == []
    assert source.runs()


def test_nobody_listens(source: Any, wait: Any, tmp_path: Any) -> None:
    source.go(f"unix:{tmp_path}/nobody")
    wait(lambda: source.migration.progress.over)

    assert "no target listens" in source.migration.progress.error
    assert source.runs()
