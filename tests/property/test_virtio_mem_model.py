"""The whole device against a naive model written from the specification.

The driver is hostile, and the host may refuse any of its services at any time.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from minivmm.errors import GuestAddressError, UsageError
from minivmm.memory.region import Access
from minivmm.spec.virtio_mem import Feature, MemConfig
from minivmm.testing.flaky_region import FlakyRegion
from minivmm.testing.mem_bench import Mappings, MemBench
from minivmm.units import GIB

BLOCK = GIB  # few and huge blocks: the usable region of a small target is less than the region
COUNT = 12
BASE = 4 * GIB
ACK, NACK, BUSY, ERROR = 0, 1, 2, 3
PLUG, UNPLUG, UNPLUG_ALL, STATE = 0, 1, 2, 3
PLUGGED, UNPLUGGED, MIXED = 0, 1, 2
PAGE = 4096

numbers = st.integers(0, COUNT - 1)
blocks = st.integers(-2, COUNT + 2)
counts = st.integers(1, 4) | st.integers(0, COUNT + 2) | st.just(65535)
skews = st.sampled_from([0, 0, 0, 0, 0, 0, 1, BLOCK // 2, -1])
mostly = st.sampled_from([True, True, True, False])
targets = st.integers(0, COUNT) | st.integers(COUNT // 2, COUNT)
too_much = st.integers(1, BLOCK - 1) | st.just((COUNT + 1) * BLOCK)
refusals = st.sampled_from(["", "listener", "populate", "discard", "protect"])

STEPS = {
    "plug": (mostly, blocks, counts, skews),
    "unplug": (mostly, blocks, counts, skews),
    "look": (blocks, counts, skews, st.integers(4, 65535)),
    "store": (numbers, st.integers(1, 255)),
    "the_host_refuses": (refusals, numbers),
    "request_size": (targets, too_much),
    "another_driver": (st.booleans(),),
    "begin_anew": (st.integers(0, 3),),
}
"""Names of methods of the model, and their arguments."""

OFTEN = ["plug"] * 4 + ["unplug"] * 3 + ["store", "the_host_refuses", "request_size"]

steps = st.sampled_from([*STEPS, *OFTEN]).flatmap(
    lambda name: st.tuples(st.just(name), *STEPS[name])
)


def run(numbers: list[int], which: int, most: int) -> set[int]:
    """At most so many consecutive ones of `numbers`, which ascend."""
    first = numbers[which % len(numbers)]
    count = 1
    while count < most and first + count in numbers:
        count += 1
    return set(range(first, first + count))


class DeviceAgainstModel(RuleBasedStateMachine):
    """`plugged` maps block numbers to the byte that the guest stored in them."""

    fields: ClassVar[dict[str, object]] = {}
    """Of the device's spec, besides its sizes."""
    answers: ClassVar[Counter[tuple[int, int]]] = Counter()
    """How often a request that the host must agree to got which answer."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = MemBench(
            lambda size, backing: FlakyRegion(size, backing, COUNT),
            size=COUNT * BLOCK,
            requested_size=2 * BLOCK,
            block_size=BLOCK,
            thp="off",
            **self.fields,
        )
        self.device, self.memory = self.bench.device, self.bench.memory
        self.signals, self.driver = self.bench.signals, self.bench.driver
        assert isinstance(self.bench.region, FlakyRegion)
        self.region = self.bench.region
        self.listeners = [Mappings(BLOCK) for _ in range(3)]
        for listener in self.listeners:
            self.memory.subscribe(listener)
        self.device.on_size_change = self.on_size_change
        self.plugged: dict[int, int] = {}
        self.requested = 2
        self.usable = 4
        self.reported = 0

    def teardown(self) -> None:
        self.memory.close()

    def on_size_change(self, size: int) -> None:
        assert size != self.reported, "told of a change that is none"
        self.reported = size

    @rule(step=steps)
    def take(self, step: tuple[str, ...]) -> None:
        name, *arguments = step
        getattr(self, name)(*arguments)

    # -- the guest -------------------------------------------------------------------------------

    def covered(self, block: int, count: int, skew: int) -> set[int] | None:
        """Block numbers of a request, or None if it is misaligned, empty or out of bounds."""
        if skew or count == 0 or block < 0 or block + count > self.usable:
            return None
        return set(range(block, block + count))

    def ask(self, kind: int, block: int, count: int, skew: int) -> tuple[int, int]:
        response = self.driver.request(kind, BASE + block * BLOCK + skew, count)
        return response.type, response.state

    def host_does(self, kind: int, block: int, count: int) -> bool:
        """Was this request, which only the host can refuse, acknowledged, or was it BUSY?

        After ACK something may still have failed: protecting what was not part of the request.
        """
        failures, failed_protects = self.failures, self.region.failed_protects
        answer, state = self.ask(kind, block, count, 0)
        assert answer in (ACK, BUSY) and not state
        if self.region.failed_protects == failed_protects:
            assert answer == (BUSY if self.failures > failures else ACK)
        self.answers[kind, answer] += 1
        return answer == ACK

    def plug(self, proper: bool, block: int, count: int, skew: int) -> None:
        wanted = self.covered(block, count, skew)
        if proper and len(self.plugged) < min(self.requested, self.usable):
            free = [number for number in range(self.usable) if number not in self.plugged]
            wanted = run(free, block, min(count, self.requested - len(self.plugged)))
        elif wanted is None:
            assert self.ask(PLUG, block, count, skew) == (ERROR, 0)
            return
        elif len(self.plugged) + count > self.requested:
            assert self.ask(PLUG, block, count, skew) == (NACK, 0)
            return
        elif wanted & self.plugged.keys():
            assert self.ask(PLUG, block, count, skew) == (ERROR, 0)
            return
        if self.host_does(PLUG, min(wanted), len(wanted)):
            self.plugged |= dict.fromkeys(wanted, 0)

    def unplug(self, proper: bool, block: int, count: int, skew: int) -> None:
        wanted = self.covered(block, count, skew)
        if proper and self.plugged:
            wanted = run(sorted(self.plugged), block, count)
        elif wanted is None or wanted - self.plugged.keys():
            assert self.ask(UNPLUG, block, count, skew) == (ERROR, 0)
            return
        if self.host_does(UNPLUG, min(wanted), len(wanted)):
            for number in wanted:
                del self.plugged[number]

    def unplug_all(self) -> None:
        before = len(self.signals.config_changes)
        nothing_to_do = not self.plugged
        done = self.host_does(UNPLUG_ALL, 0, 0)
        assert done or not nothing_to_do
        if done:
            self.plugged.clear()
            self.usable = self.wanted_usable()
        assert True not in self.signals.config_changes[before:]

    def look(self, block: int, count: int, skew: int, unknown: int) -> None:
        assert self.ask(unknown, block, count, skew) == (ERROR, 0)
        wanted = self.covered(block, count, skew)
        if wanted is None:
            expected = (ERROR, 0)
        else:
            have = len(wanted & self.plugged.keys())
            expected = (ACK, PLUGGED if have == count else MIXED if have else UNPLUGGED)
        assert self.ask(STATE, block, count, skew) == expected

    def store(self, block: int, value: int) -> None:
        """Through GuestMemory, hence possible in plugged blocks only."""
        try:
            self.memory.write(BASE + block * BLOCK, bytes([value]))
        except GuestAddressError:
            assert block not in self.plugged
        else:
            assert block in self.plugged
            self.plugged[block] = value

    # -- the host --------------------------------------------------------------------------------

    def wanted_usable(self) -> int:
        """In blocks of 1 GiB: two above the target rounded up to two, at most the region."""
        return min(COUNT, (self.requested + 1) // 2 * 2 + 2) if self.requested else 0

    @property
    def guarded(self) -> bool:
        return self.device.spec.protect != "off"

    @property
    def failures(self) -> int:
        return self.region.failures + sum(listener.refusals for listener in self.listeners)

    def the_host_refuses(self, what: str, calls: int) -> None:
        """Until further notice; one thing at a time, as nothing can be rolled back otherwise.

        Protecting fails once, some calls later: putting back what was there needs no new mappings.
        """
        self.region.fails = what
        self.region.protects_until_failure = calls // 3 + 1 if what == "protect" else 0
        self.listeners[1].full = what == "listener"

    def another_driver(self, promised: bool) -> None:
        """MEM-D-20: it may or may not read what is unplugged."""
        self.device.reset()
        if promised or not self.device.spec.insists:
            assert self.device.accept_features(Feature.UNPLUGGED_INACCESSIBLE if promised else 0)

    def request_size(self, size: int, impossible: int) -> None:
        with pytest.raises(UsageError):
            self.device.set_requested_size(impossible)
        self.device.set_requested_size(size * BLOCK)
        self.requested = size
        self.usable = max(self.usable, self.wanted_usable())
        assert self.signals.config_changes[-1] is True

    def begin_anew(self, what: int) -> None:
        """MEM-D-13, MEM-D-14: a device reset changes nothing; more than that is rare."""
        self.device.reset()
        if what == 2:
            self.unplug_all()
        elif what == 3:
            self.system_reset()

    def system_reset(self) -> None:
        """MEM-D-22; what the host does not take back stays plugged, for the driver to unplug."""
        self.signals.events.clear()
        self.device.system_reset()
        refused = any(name == "system-reset" for name, _ in self.signals.events)
        if self.region.fails == "discard":
            assert refused
        if not refused:
            self.plugged.clear()
            self.usable = self.wanted_usable()

    # -- always ----------------------------------------------------------------------------------

    @invariant()
    def configuration_is_that_of_the_model(self) -> None:
        """MEM-D-2, MEM-D-3, MEM-D-8 and, with the model's own rules, MEM-D-4 to MEM-D-6."""
        assert self.driver.config() == MemConfig(
            block_size=BLOCK,
            node_id=0,
            addr=BASE,
            region_size=COUNT * BLOCK,
            usable_region_size=self.usable * BLOCK,
            plugged_size=len(self.plugged) * BLOCK,
            requested_size=self.requested * BLOCK,
        )
        assert self.requested <= self.usable <= COUNT

    @invariant()
    def host_knows_the_plugged_size(self) -> None:
        assert self.reported == len(self.plugged) * BLOCK

    @invariant()
    def listeners_know_what_is_plugged(self) -> None:
        for listener in self.listeners:
            assert listener.units == self.plugged.keys()

    @invariant()
    def plugged_blocks_keep_their_content(self) -> None:
        """MEM-D-18, MEM-D-19; a block that was just plugged reads as zero."""
        for number, value in self.plugged.items():
            assert self.region.access[number] is Access.ALL
            assert self.memory.read(BASE + number * BLOCK, 1) == bytes([value])

    @invariant()
    def unplugged_blocks_occupy_no_host_memory(self) -> None:
        for number in set(range(COUNT)) - self.plugged.keys():
            assert self.region.resident_in(number * BLOCK, PAGE) == 0

    @invariant()
    def unplugged_blocks_are_guarded(self) -> None:
        if self.guarded and not self.region.failed_protects:
            for number in set(range(COUNT)) - self.plugged.keys():
                readable = number < self.usable and self.device.state.unpromised
                assert self.region.access[number] is (Access.READ if readable else Access.NONE)


@pytest.mark.rule(
    "MEM-D-1",
    "MEM-D-2",
    "MEM-D-3",
    "MEM-D-4",
    "MEM-D-8",
    "MEM-D-13",
    "MEM-D-14",
    "MEM-D-18",
    "MEM-D-19",
    "MEM-D-22",
)
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="lazy"),
        pytest.param({"prealloc": True, "protect": "report"}, id="careful"),
        pytest.param({"prealloc": True, "backing": "memfd", "protect": "kill"}, id="shared"),
    ],
)
def test_device_agrees_with_its_model_whatever_the_host_refuses(fields: dict[str, object]) -> None:
    answers: Counter[tuple[int, int]] = Counter()
    machine = type("Machine", (DeviceAgainstModel,), {"fields": fields, "answers": answers})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=50,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

    changes = [(kind, answer) for kind in (PLUG, UNPLUG) for answer in (ACK, BUSY)]
    assert all(answers[change] for change in [*changes, (UNPLUG_ALL, ACK)]), "not tried at all"
