"""Work on host memory: order, roll-back, BUSY, retries, and requests that take long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.pace import LEAST
from minivmm.errors import GuestAddressError, HostError
from minivmm.memory.guest import GuestMemory, Slot
from minivmm.memory.region import Access
from minivmm.spec.virtio_mem import BlockState, MemRequest, MemResponse, RequestType, ResponseType
from minivmm.testing.fake_queue import FakeChain, FakeQueue, FakeSignals
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import MIB

Make = Callable[..., VirtioMem]
BLOCK = 2 * MIB
ACK, BUSY = ResponseType.ACK, ResponseType.BUSY
MANY = LEAST // BLOCK + 1
"""Blocks whose host work is done aside."""


class Log:
    """Replaces the region's calls to the host, and is a listener; `fails` names what refuses."""

    def __init__(self, device: VirtioMem, memory: GuestMemory) -> None:
        self.events: list[tuple[object, ...]] = []
        self.fails: set[str] = set()
        self._device = device
        for name in ("populate", "discard", "protect"):
            self._wrap(name)
        memory.subscribe(self)

    def _wrap(self, name: str) -> None:
        real = getattr(self._device.region, name)

        def call(*arguments: object) -> None:
            self._note(name, *arguments)
            real(*arguments)

        setattr(self._device.region, name, call)

    def _note(self, name: str, *arguments: object) -> None:
        self.events.append((name, *arguments))
        if name in self.fails:
            raise OSError(f"{name} refused")

    def on_map(self, slot: Slot) -> None:
        pass

    def on_plug(self, slot: Slot, offset: int, length: int) -> None:
        self._note("show", offset, length)

    def on_unplug(self, slot: Slot, offset: int, length: int) -> None:
        self._note("hide", offset, length)

    def on_readable(self, slot: Slot) -> None:
        assert slot.occupancy
        self._note("readable", slot.occupancy.readable)


class Later:
    """Errands that are done when the test says so."""

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None
        self.over = False
        self.error: BaseException | None = None
        self.looks: list[tuple[float, Callable[[], None]]] = []

    def aside(self, work: Callable[[], None], done: Callable[[], None]) -> Later:
        self.work, self.done, self.over, self.error = work, done, False, None
        return self

    def wait(self) -> None:
        if not self.over:
            self.finish()

    def finish(self) -> None:
        assert self.work
        try:
            self.work()
        except OSError as error:
            self.error = error
        self.over = True

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        self.looks.append((seconds, look))

    def pass_time(self) -> float:
        seconds, look = self.looks.pop(0)
        look()
        return seconds


@pytest.fixture
def careful(make: Make) -> VirtioMem:
    return make(prealloc=True, protect="report")


@pytest.fixture
def log(careful: VirtioMem, memory: GuestMemory) -> Log:
    log = Log(careful, memory)
    log.events.clear()
    return log


def test_plug_allows_populates_and_shows(careful: VirtioMem, log: Log) -> None:
    assert MemDriver(careful).plug(1, 2) is ACK

    assert log.events == [
        ("protect", BLOCK, 2 * BLOCK, Access.ALL),
        ("populate", BLOCK, 2 * BLOCK),
        ("show", BLOCK, 2 * BLOCK),
    ]
    assert careful.region.resident_in(BLOCK, 2 * BLOCK) == 2 * BLOCK


def test_unplug_hides_and_forbids_before_it_discards(careful: VirtioMem, log: Log) -> None:
    """So that the guest cannot populate again what was just given back."""
    driver = MemDriver(careful)
    driver.plug(0, 4)
    log.events.clear()

    assert driver.unplug(1, 2) is ACK

    assert log.events == [
        ("hide", BLOCK, 2 * BLOCK),
        ("protect", BLOCK, 2 * BLOCK, Access.NONE),
        ("discard", BLOCK, 2 * BLOCK),
    ]
    assert careful.region.resident_in(BLOCK, 2 * BLOCK) == 0


@pytest.mark.rule("MEM-D-28")
@pytest.mark.parametrize("step", ["protect", "populate", "show"])
def test_plug_that_the_host_refuses_is_busy_and_leaves_nothing(
    careful: VirtioMem, log: Log, step: str
) -> None:
    """MEM-D-28; reference A.7: all or nothing."""
    driver = MemDriver(careful)
    log.fails = {step}

    assert driver.plug(0, 4) is BUSY

    log.fails.clear()
    assert careful.plugged_size == 0
    assert driver.state(0, 4) is BlockState.UNPLUGGED
    assert careful.region.resident_in(0, 4 * BLOCK) == 0
    assert driver.plug(0, 4) is ACK


@pytest.mark.rule("MEM-D-18", "MEM-D-34")
def test_unplug_that_the_host_refuses_is_busy_and_the_blocks_stay(
    careful: VirtioMem, log: Log, memory: GuestMemory
) -> None:
    """MEM-D-34, and plugged memory keeps its content (MEM-D-18)."""
    driver = MemDriver(careful)
    driver.plug(0, 4)
    memory.write(driver.address(1), b"kept")
    log.fails = {"discard"}

    assert driver.unplug(0, 4) is BUSY

    log.fails.clear()
    assert careful.plugged_size == 4 * BLOCK
    assert memory.read(driver.address(1), 4) == b"kept"
    assert log.events[-2:] == [
        ("protect", 0, 4 * BLOCK, Access.ALL),
        ("show", 0, 4 * BLOCK),
    ]


def test_host_that_refuses_the_way_back_as_well_is_busy_and_said(
    careful: VirtioMem, log: Log, signals: FakeSignals
) -> None:
    """The device is not broken for it: the driver may try again."""
    driver = MemDriver(careful)
    driver.plug(0, 4)
    log.fails = {"discard", "show"}

    assert driver.unplug(0, 4) is BUSY

    assert careful.plugged_size == 4 * BLOCK
    assert ("not-undone", {"why": "show refused"}) in signals.events


def test_unplug_all_hides_every_run_and_discards_once(careful: VirtioMem, log: Log) -> None:
    driver = MemDriver(careful)
    driver.plug(0, 2)
    driver.plug(8, 2)
    log.events.clear()

    assert driver.unplug_all() is ACK

    assert [event[0] for event in log.events] == ["hide", "hide", "protect", "protect", "discard"]
    assert careful.plugged_size == 0


def test_listener_that_cannot_is_a_busy_too(device: VirtioMem, memory: GuestMemory) -> None:
    class Full(Log):
        def on_plug(self, slot: Slot, offset: int, length: int) -> None:
            raise HostError("no mapping left")

    Full(device, memory)

    assert MemDriver(device).plug(0) is BUSY


def test_unplugged_memory_cannot_be_touched_when_protected(
    careful: VirtioMem, memory: GuestMemory
) -> None:
    """As the host sees it: the mapping itself refuses."""
    driver = MemDriver(careful)
    driver.plug(1)

    maps = protections(careful)

    assert maps == [(0, BLOCK, "---"), (BLOCK, BLOCK, "rw-"), (2 * BLOCK, 510 * BLOCK, "---")]
    driver.unplug(1)
    assert protections(careful) == [(0, careful.region_size, "---")]


@pytest.mark.rule("MEM-D-20")
def test_a_driver_without_the_promise_may_read_what_is_usable(careful: VirtioMem) -> None:
    """MEM-D-20: reads of unplugged blocks inside the usable region work."""
    driver = MemDriver(careful)

    assert careful.accept_features(0)
    driver.plug(0)
    assert [kind for *_, kind in protections(careful)] == ["rw-", "r--"]

    assert careful.accept_features(1 << 1)
    assert [kind for *_, kind in protections(careful)] == ["rw-", "---"]


def protections(device: VirtioMem) -> list[tuple[int, int, str]]:
    """(offset, length, rwx) of the region's mappings, neighbours with equal rights as one."""
    base, found = device.region.hva, list[tuple[int, int, str]]()
    with Path("/proc/self/maps").open(encoding="ascii") as lines:
        for line in lines:
            span, rights = line.split()[:2]
            first, end = (int(part, 16) for part in span.split("-"))
            first, end = max(first, base), min(end, base + device.region_size)
            if first >= end:
                continue
            if found and found[-1][2] == rights[:3]:
                found[-1] = (found[-1][0], found[-1][1] + end - first, rights[:3])
            else:
                found.append((first - base, end - first, rights[:3]))
    return found


# -- requests that take long ---------------------------------------------------------------------


def plug_request(device: VirtioMem, block: int, count: int) -> FakeChain:
    addr = device.window.base + block * BLOCK
    request = MemRequest(type=RequestType.PLUG, addr=addr, nb_blocks=count)
    return FakeChain(request.build(), MemResponse.SIZE)


def answer(chain: FakeChain) -> ResponseType:
    return ResponseType(MemResponse.parse(chain.written).type)


@pytest.fixture
def later(careful: VirtioMem) -> Later:
    later = Later()
    careful.use(later)
    return later


def test_long_work_is_answered_when_it_is_over(
    careful: VirtioMem, later: Later, signals: FakeSignals
) -> None:
    first, second = plug_request(careful, 0, MANY), plug_request(careful, MANY, 1)
    queue = FakeQueue(first, second)

    careful.handle_queue(0, queue)
    assert first.used is None
    careful.handle_queue(0, queue)  # a kick in between changes nothing
    assert first.used is None and careful.plugged_size == 0

    later.finish()
    later.done()
    assert signals.kicks == [0]
    careful.handle_queue(0, queue)

    assert [answer(first), answer(second)] == [ACK, ACK]
    assert careful.plugged_size == (MANY + 1) * BLOCK


def test_long_work_that_fails_is_busy(careful: VirtioMem, later: Later) -> None:
    chain = plug_request(careful, 0, MANY)
    queue = FakeQueue(chain)
    careful.handle_queue(0, queue)
    later.over, later.error = True, OSError("no pages")

    careful.handle_queue(0, queue)

    assert answer(chain) is BUSY
    assert careful.plugged_size == 0


def test_device_reset_waits_for_the_work_and_keeps_what_it_did(
    careful: VirtioMem, later: Later
) -> None:
    """GEN-D-5: after the reset nothing goes on; MEM-D-13: what was plugged stays."""
    careful.handle_queue(0, FakeQueue(plug_request(careful, 0, MANY)))

    careful.reset()

    assert later.over
    assert careful.plugged_size == MANY * BLOCK


def test_memory_that_is_being_taken_back_is_not_ram(
    careful: VirtioMem, later: Later, memory: GuestMemory
) -> None:
    driver = MemDriver(careful)
    for block in range(MANY):
        driver.plug(block)
    request = MemRequest(type=RequestType.UNPLUG, addr=careful.window.base, nb_blocks=MANY)
    queue = FakeQueue(FakeChain(request.build(), MemResponse.SIZE))

    careful.handle_queue(0, queue)

    with pytest.raises(GuestAddressError):
        memory.view(careful.window.base, 1)
    later.finish()
    careful.handle_queue(0, queue)
    assert careful.region.resident_in(0, MANY * BLOCK) == 0
    assert careful.plugged_size == 0


# -- after BUSY ----------------------------------------------------------------------------------


def test_the_driver_is_told_when_the_host_has_room_again(
    careful: VirtioMem, later: Later, log: Log, signals: FakeSignals
) -> None:
    """Reference H-3: otherwise it waits for 50 to 300 s."""
    room = [False]
    careful.shortage._room_for = lambda _length: room[0]
    driver = MemDriver(careful)
    log.fails = {"populate"}
    assert driver.plug(0) is BUSY
    signals.config_changes.clear()

    later.pass_time()
    assert signals.config_changes == []
    room[0] = True
    later.pass_time()

    assert signals.config_changes == [True]
    assert later.looks == []


def test_retries_get_rarer_until_one_succeeds(careful: VirtioMem, later: Later, log: Log) -> None:
    careful.shortage._room_for = lambda _length: True
    driver = MemDriver(careful)
    log.fails = {"populate"}
    waits = []
    for _ in range(7):
        assert driver.plug(0) is BUSY
        waits.append(later.pass_time())

    assert waits == [1, 2, 4, 8, 16, 30, 30]
    log.fails.clear()
    assert driver.plug(0) is ACK
    log.fails = {"populate"}
    assert driver.plug(1) is BUSY
    assert later.pass_time() == 1


def test_a_new_target_ends_the_shortage(
    careful: VirtioMem, later: Later, log: Log, signals: FakeSignals
) -> None:
    log.fails = {"populate"}
    assert MemDriver(careful).plug(0) is BUSY
    careful.set_requested_size(0)
    signals.config_changes.clear()

    later.pass_time()

    assert signals.config_changes == []
    assert careful.inspect()["short-of"] == 0
