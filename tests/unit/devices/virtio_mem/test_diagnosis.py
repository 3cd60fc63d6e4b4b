"""Every kind of diagnosis from a real device, its transport and a driver played by the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.diagnosis import Diagnosis, GuestFacts, Kind, diagnose, observe
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.devices.virtio_mem.view import Surroundings
from minivmm.errors import HostError
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_mem import MemResponse, RequestType, ResponseType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB

BLOCK = 2 * MIB
BASE = 4 * GIB
VERSION_1 = 1 << 32
ACK, NACK, BUSY, ERROR = ResponseType


class Refuser:
    """A listener of guest memory that refuses what is plugged while `why` is set."""

    why = ""

    def on_map(self, slot: object) -> None: ...

    def on_unplug(self, slot: object, offset: int, length: int) -> None: ...

    def on_readable(self, slot: object) -> None: ...

    def on_plug(self, slot: object, offset: int, length: int) -> None:
        if self.why:
            raise HostError(self.why)


class Case:
    """A device of `fields` at `base`, a driver that can do anything, and a clock of our own."""

    def __init__(self, base: int = BASE, **fields: object) -> None:
        spec = VirtioMemSpec(**({"size": 8 * GIB} | fields))  # type: ignore[arg-type]
        self.device = VirtioMem(spec, Window(base, spec.size), Region(spec.size))
        self.now = 0.0
        self.device.activity.clock = lambda: self.now
        self.device.activity.target_at = 0.0
        self.bench = DeviceBench(self.device)
        self.host = Refuser()
        self.bench.memory.subscribe(self.host)  # type: ignore[arg-type]
        self.driver = MemDriver(
            self.device, lambda data: self.bench.driver.request(0, data, MemResponse.SIZE)
        )
        self.phys_bits = 46
        self.boot_end = 512 * MIB
        self.online: str | None = None
        self.running = True

    def ask(self, size: int) -> None:
        """The host requests `size` bytes."""
        self.device.set_requested_size(size)

    def plug_to(self, size: int) -> None:
        """The driver plugs from what it has on, a memory block of 128 MiB at a time."""
        have, want = self.device.plugged_size // BLOCK, size // BLOCK
        while have < want:
            count = min(64, want - have)
            assert self.driver.plug(have, count) is ACK
            have += count

    def why(self, inside: GuestFacts | None = None, *, after: float = 0.0) -> Diagnosis:
        """The diagnosis, `after` seconds later."""
        self.now += after
        transport = self.bench.function.transport
        around = Surroundings(
            status=transport.status,
            trouble=transport.trouble,
            phys_bits=self.phys_bits,
            boot_end=self.boot_end,
            online=self.online,
            running=self.running,
        )
        return diagnose(observe(self.device, around), inside)


@pytest.fixture
def case() -> Iterator[Case]:
    """An 8 GiB device whose driver is up."""
    case = Case()
    case.bench.driver.start()
    yield case
    case.bench.close()


def said(found: Diagnosis) -> str:
    return "\n".join((found.summary, *found.evidence, found.remedy))


# -- the driver ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (DeviceStatus(0), "not touched"),
        (DeviceStatus.ACKNOWLEDGE, "no driver is bound"),
        (DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER, "not finished"),
    ],
)
def test_no_driver_by_how_far_one_got(status: DeviceStatus, words: str) -> None:
    case = Case(requested_size=GIB)
    with case.bench:
        case.bench.driver.probe()
        case.bench.driver.set("device_status", status)

        found = case.why(after=60)

    assert (found.kind, found.certain) == (Kind.NO_DRIVER, True)
    assert words in found.summary


def test_no_driver_after_an_unbind_and_the_remedy_fits_what_the_guest_says(case: Case) -> None:
    case.bench.driver.reset()
    case.bench.driver.add_status(DeviceStatus.ACKNOWLEDGE)

    assert case.why().kind is Kind.NO_DRIVER  # though the sizes agree
    assert "modprobe" in case.why(GuestFacts(driver="missing")).remedy
    assert "bind" in case.why(GuestFacts(driver="unbound")).remedy
    assert "modprobe" not in case.why(GuestFacts(driver="unbound")).remedy


def test_a_driver_without_a_needed_feature_is_named() -> None:
    case = Case(unplugged_inaccessible="on", requested_size=GIB)
    with case.bench:
        driver = case.bench.driver.probe()
        assert not driver.negotiate(VERSION_1)
        refused = case.why()
        driver.add_status(DeviceStatus.FAILED)
        failed = case.why()
        driver.reset()
        assert driver.negotiate()
        better = case.why()

    assert refused.kind is failed.kind is Kind.FEATURE_REFUSED
    assert "UNPLUGGED_INACCESSIBLE" in failed.summary
    assert "5.16" in failed.remedy
    assert better.kind is Kind.NO_DRIVER


def test_a_region_beyond_the_address_bits() -> None:
    case = Case(base=1 << 36, requested_size=GIB)
    with case.bench:
        case.phys_bits = 36
        case.bench.driver.probe().add_status(DeviceStatus.FAILED)

        found = case.why()
        case.phys_bits = 37
        other = case.why()

    assert (found.kind, found.certain) == (Kind.NOT_ADDRESSABLE, True)
    assert "all of the region is beyond the 36 address bits" in found.summary
    assert "0x1000000000" in said(found)
    assert other.kind is Kind.BROKEN


def test_a_region_that_is_partly_beyond() -> None:
    case = Case(base=(1 << 36) - GIB, requested_size=2 * GIB)
    with case.bench:
        case.phys_bits = 36
        waiting = case.why()
        case.bench.driver.start()  # a driver that uses what it can
        started = case.why()
        case.plug_to(GIB)
        full = case.why()

    assert waiting.kind is full.kind is Kind.NOT_ADDRESSABLE
    assert "all but 1G" in full.summary
    assert started.kind is Kind.WORKING


def test_a_driver_that_failed_its_probe(case: Case) -> None:
    case.bench.driver.add_status(DeviceStatus.FAILED)

    assert case.why().kind is Kind.BROKEN
    assert "dmesg" in case.why().remedy


def test_a_device_that_needs_reset_says_why(case: Case) -> None:
    case.bench.driver.submit(0, b"short", writable=(10,))

    found = case.why()
    case.bench.driver.start()

    assert found.kind is Kind.BROKEN
    assert "needs a reset" in found.summary
    assert "5" in found.evidence[0]
    assert case.why().kind is Kind.DONE


def test_a_driver_that_was_told_error_is_broken_until_it_asks_again(case: Case) -> None:
    case.ask(GIB)
    assert case.driver.request(RequestType.PLUG, BASE + 1, 1).type == ERROR

    found = case.why(after=1)
    sure = case.why(
        GuestFacts(log=("virtio_mem virtio3: unknown error, marking device broken: 5",))
    )
    assert case.driver.plug(0) is ACK

    assert (found.kind, found.certain) == (Kind.BROKEN, False)
    assert "PLUG was answered ERROR" in said(found)
    assert sure.certain
    assert case.why().kind is Kind.WORKING


def test_a_new_driver_is_not_blamed_for_the_last_ones_error(case: Case) -> None:
    case.ask(GIB)
    case.driver.request(RequestType.PLUG, BASE + 1, 1)
    case.bench.driver.start()

    assert case.why().kind is Kind.WORKING


# -- progress --------------------------------------------------------------------------------------


def test_done_when_sizes_agree_at_any_time(case: Case) -> None:
    assert case.why(after=1e6).kind is Kind.DONE
    case.ask(GIB)
    case.plug_to(GIB)

    found = case.why(after=1e6)

    assert (found.kind, found.remedy) == (Kind.DONE, "")
    assert "1G" in found.summary


def test_working_as_long_as_something_happens(case: Case) -> None:
    case.ask(2 * GIB)
    asked = case.why(after=4.9)
    case.plug_to(512 * MIB)
    going = case.why(after=4.9)
    silent = case.why(after=0.2)

    assert asked.kind is going.kind is Kind.WORKING
    assert "plugging" in going.summary
    assert silent.kind is Kind.STALLED
    assert not silent.certain


def test_a_paused_machine_is_not_the_guests_fault(case: Case) -> None:
    case.ask(GIB)
    case.running = False

    assert case.why(after=60).kind is Kind.PAUSED


def test_nacks_without_end(case: Case) -> None:
    case.ask(GIB)
    case.plug_to(GIB)
    for _ in range(9):
        assert case.driver.plug(512) is NACK
    early = case.why()
    assert case.driver.plug(512) is NACK

    assert early.kind is Kind.DONE
    assert case.why().kind is Kind.NACK_LOOP
    assert "kick" in case.why().remedy
    assert case.why(after=6).kind is Kind.DONE  # it stopped


def test_busy_is_a_retry_wait_until_a_kick(case: Case) -> None:
    case.host.why = "no memslots left"
    case.ask(GIB)
    case.now += 1
    assert case.driver.plug(0, 64) is BUSY

    waiting = case.why(after=49)
    case.now += 1
    case.device.kick()
    kicked = case.why()
    case.host.why = ""
    case.plug_to(GIB)

    assert waiting.kind is Kind.RETRY_WAIT
    assert "PLUG of 128M, got BUSY 49 s ago: no memslots left" in said(waiting)
    assert "kick" in waiting.remedy
    assert kicked.kind is Kind.WORKING
    assert case.why().kind is Kind.DONE


def test_a_retry_wait_does_not_last_longer_than_linux_waits(case: Case) -> None:
    case.host.why = "busy"
    case.ask(GIB)
    case.now += 1
    case.driver.plug(0)

    assert case.why(after=299).kind is Kind.RETRY_WAIT
    assert case.why(after=10).kind is Kind.STALLED


def test_busy_while_the_host_has_no_room_is_its_shortage(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Region, "room_for", lambda region, length: False)
    case.host.why = "Cannot allocate memory"
    case.ask(GIB)
    case.now += 1
    case.driver.plug(0)

    found = case.why(after=20)

    assert found.kind is Kind.HOST_SHORTAGE
    assert "Cannot allocate memory" in said(found)
    assert "huge pages" in found.remedy


@pytest.mark.parametrize("size", [64 * MIB, 126 * MIB])
def test_no_whole_memory_block_at_all(size: int) -> None:
    case = Case(size=size, requested_size=size)
    with case.bench:
        case.bench.driver.start()
        found = case.why()

    assert (found.kind, found.certain) == (Kind.NO_WHOLE_BLOCK, True)
    assert "nothing of the usable region" in found.summary
    assert "128M" in said(found)


def test_all_whole_memory_blocks_are_used_up() -> None:
    case = Case(size=200 * MIB, requested_size=200 * MIB)
    with case.bench:
        case.bench.driver.start()
        before = case.why()
        case.plug_to(128 * MIB)
        found = case.why()
        case.ask(128 * MIB)

        assert before.kind is Kind.WORKING
        assert found.kind is Kind.NO_WHOLE_BLOCK
        assert "or request 128M" in found.remedy
        assert case.why().kind is Kind.DONE


@pytest.mark.parametrize(
    ("boot_end", "inside", "unit"),
    [
        (64 * GIB, None, "2G"),
        (65 * GIB, None, "1G"),
        (63 * GIB, GuestFacts(memory_block=2 * GIB), "2G"),
    ],
)
def test_guests_with_large_memory_blocks(
    boot_end: int, inside: GuestFacts | None, unit: str
) -> None:
    case = Case(base=128 * GIB + 512 * MIB, size=GIB, requested_size=GIB)
    with case.bench:
        case.bench.driver.start()
        case.boot_end = boot_end
        found = case.why(inside)

    assert found.kind is Kind.NO_WHOLE_BLOCK
    assert f"aligned blocks of {unit}" in said(found)


def test_a_remainder_smaller_than_linux_plugs() -> None:
    case = Case(block_size=MIB, requested_size=129 * MIB)
    with case.bench:
        case.bench.driver.start()
        assert case.driver.plug(0, 128) is ACK
        found = case.why(after=6)
        case.ask(131 * MIB)
        unsure = case.why(after=6)

    assert (found.kind, found.certain) == (Kind.REMAINDER, True)
    assert "multiple of 2M" in found.remedy
    assert (unsure.kind, unsure.certain) == (Kind.REMAINDER, False)


def test_not_onlined_is_guessed_at_the_threshold_and_known_with_facts(case: Case) -> None:
    case.ask(3 * GIB)
    case.plug_to(GIB)
    offline = GuestFacts(memory_block=128 * MIB, online=0, offline=8, policy="offline")
    online = GuestFacts(memory_block=128 * MIB, online=8, offline=0, policy="online")

    guess, sure, other = case.why(after=6), case.why(offline), case.why(online)

    assert (guess.kind, guess.certain) == (Kind.NOT_ONLINED, False)
    assert (sure.kind, sure.certain) == (Kind.NOT_ONLINED, True)
    assert "8 memory blocks of 128M are offline" in said(sure)
    assert "auto_online_blocks" in sure.remedy
    assert other.kind is Kind.STALLED


def test_not_onlined_later_on_counts_from_the_last_target(case: Case) -> None:
    case.ask(GIB)
    case.plug_to(GIB)
    case.ask(4 * GIB)
    case.plug_to(2 * GIB)

    assert case.why(after=6).kind is Kind.NOT_ONLINED


def test_the_machines_own_policy_is_a_hint(case: Case) -> None:
    case.ask(GIB // 2)
    case.plug_to(GIB // 2)
    case.ask(4 * GIB)
    case.plug_to(GIB + 128 * MIB)
    without = case.why(after=6)
    case.online = "offline"

    assert without.kind is Kind.STALLED
    assert case.why().kind is Kind.NOT_ONLINED


def test_unmovable_when_a_shrink_gets_stuck(case: Case) -> None:
    case.ask(GIB)
    case.plug_to(GIB)
    case.ask(0)
    assert case.why(after=1).kind is Kind.WORKING
    untouched = case.why(after=5)
    assert case.driver.unplug(448, 64) is ACK
    partly = case.why(after=6)
    pinned = GuestFacts(kernel_zone=7, available=100 * MIB, online=7, offline=0)
    sure = case.why(pinned, after=10)

    assert untouched.kind is partly.kind is sure.kind is Kind.UNMOVABLE
    assert "has not unplugged anything" in said(untouched)
    assert "unplugged 128M since" in said(partly)
    assert "896M" in partly.summary
    assert "kick" in partly.remedy
    assert (partly.certain, sure.certain) == (False, True)
    assert "7 memory blocks are in a zone for kernel memory" in said(sure)
    assert "online_movable" in sure.remedy


def test_memory_that_cannot_be_added_shows_as_plug_and_unplug(case: Case) -> None:
    case.ask(2 * GIB)
    assert case.driver.plug(0, 64) is ACK
    assert case.driver.unplug(0, 64) is ACK

    found = case.why(after=6)

    assert (found.kind, found.certain) == (Kind.STALLED, False)
    assert "just plugged" in said(found)


def test_a_kernel_that_cannot_map_the_region_says_so_in_its_log(case: Case) -> None:
    line = "virtio_mem virtio1: Some device memory is not addressable/pluggable."
    case.ask(2 * GIB)

    found = case.why(GuestFacts(log=(line,)), after=6)

    assert found.kind is Kind.NOT_ADDRESSABLE
    assert f"guest's log: {line}" in found.evidence


def test_evidence_always_has_sizes_status_and_requests(case: Case) -> None:
    case.ask(GIB)
    case.plug_to(128 * MIB)

    evidence = "\n".join(case.why(after=2).evidence)

    assert "requested 1G, plugged 128M, usable 4G of 8G" in evidence
    assert "DRIVER_OK" in evidence
    assert "last request: 2.0 s ago; since the size was requested: 1 PLUG ACK" in evidence


def test_a_diagnosis_as_json_has_plain_types(case: Case) -> None:
    data = case.why().to_json()

    assert data["kind"] == "done"
    assert type(data["kind"]) is str
    assert data["certain"] is True
    assert isinstance(data["evidence"], list)
