"""No DMA mapping ever covers an unplugged block, whatever driver and host do."""

from __future__ import annotations

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

from minivmm.dma import DmaMappings
from minivmm.memory.region import Region
from minivmm.spec.virtio_mem import ResponseType
from minivmm.testing.dma_checks import check_mappings
from minivmm.testing.fake_container import FakeContainer
from minivmm.testing.flaky_region import FlakyRegion
from minivmm.testing.mem_bench import MemBench
from minivmm.units import GIB, MIB

BLOCK = MIB
COUNT = 24
RAM = MIB
LIMIT = 16
"""Mappings that the host allows: fewer than there are blocks."""

ACK, BUSY = ResponseType.ACK, ResponseType.BUSY

blocks = st.integers(0, COUNT - 1)
counts = st.integers(1, 6) | st.just(COUNT)
mostly = st.sampled_from([True, True, True, False])

STEPS = {
    "plug": (mostly, blocks, counts),
    "unplug": (mostly, blocks, counts),
    "unplug_all": (),
    "system_reset": (),
    "container_refuses": (st.sampled_from(["map", "unmap"]),),
    "container_refuses_later": (st.integers(1, 4),),
    "region_refuses": (st.sampled_from(["populate", "discard"]),),
    "nobody_refuses": (),
    "transfer": (blocks,),
}
"""Names of methods of the model, and their arguments."""

OFTEN = ["plug"] * 6 + ["unplug"] * 4 + ["transfer"] * 2 + ["nobody_refuses"] * 3

steps = st.sampled_from([*STEPS, *OFTEN]).flatmap(
    lambda name: st.tuples(st.just(name), *STEPS[name])
)


class DmaAgainstHost(RuleBasedStateMachine):
    """A hostile driver, a host that refuses, and a device that transfers all the time."""

    fields: ClassVar[dict[str, object]] = {}
    seen: ClassVar[set[str]] = set()
    """What has happened in any run."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = MemBench(
            lambda size, backing: FlakyRegion(size, backing, COUNT),
            size=COUNT * BLOCK,
            requested_size=COUNT * BLOCK,
            block_size=BLOCK,
            thp="off",
            **self.fields,
        )
        assert isinstance(self.bench.region, FlakyRegion)
        self.region = self.bench.region
        self.memory, self.driver = self.bench.memory, self.bench.driver
        self.memory.add(0, Region(RAM), name="low RAM")
        self.container = FakeContainer(LIMIT)
        self.dma = DmaMappings(self.container, {"vmem0": BLOCK})
        self.memory.subscribe(self.dma, pins=True)

    def teardown(self) -> None:
        self.bench.close()

    @rule(step=steps)
    def take(self, step: tuple[str, ...]) -> None:
        name, *arguments = step
        getattr(self, name)(*arguments)

    def plug(self, proper: bool, first: int, count: int) -> None:
        if self.container.fails == "unmap":
            self.nobody_refuses()  # or what the host has no mapping for could not be rolled back
        first, count = self.pick(first, count, plugged=False) if proper else (first, count)
        before = list(self.container.mappings)
        self.note("plug", self.driver.plug(first, count), before)

    def unplug(self, proper: bool, first: int, count: int) -> None:
        first, count = self.pick(first, count, plugged=True) if proper else (first, count)
        before = list(self.container.mappings)
        self.note("unplug", self.driver.unplug(first, count), before)

    def pick(self, first: int, count: int, *, plugged: bool) -> tuple[int, int]:
        """At most `count` blocks in a row that are plugged, or are not; from `first` on or so."""
        covers = self.bench.device.state.covers
        right = [covers(block * BLOCK, 1) == plugged for block in range(COUNT)]
        if True not in right:
            return first, count
        start = right.index(True, first if True in right[first:] else 0)
        end = start
        while end < COUNT and right[end] and end - start < count:
            end += 1
        return start, end - start

    def unplug_all(self) -> None:
        before = list(self.container.mappings)
        self.note("unplug-all", self.driver.unplug_all(), before)

    def system_reset(self) -> None:
        self.bench.device.system_reset()
        self.memory.clear_ram()

    def nobody_refuses(self) -> None:
        self.region.fails = self.container.fails = ""
        self.container.maps_until_failure = 0

    def container_refuses(self, call: str) -> None:
        self.nobody_refuses()
        self.container.fails = call

    def container_refuses_later(self, calls: int) -> None:
        self.nobody_refuses()
        self.container.maps_until_failure = calls

    def region_refuses(self, call: str) -> None:
        """One thing at a time: with two, not everything can be put back."""
        self.nobody_refuses()
        self.region.fails = call

    def transfer(self, block: int) -> None:
        """What a device writes is what the guest finds, and unplugged memory is out of reach."""
        gpa = 4 * GIB + block * BLOCK
        hva = self.container.translate(gpa)
        plugged = self.bench.device.state.covers(block * BLOCK, 1)
        assert (hva is not None) == plugged
        if hva is not None:
            self.region.view(hva - self.region.hva, 1)[0] = block
            assert self.memory.read(gpa, 1) == bytes([block])

    def note(self, what: str, answer: ResponseType, before: object) -> None:
        self.seen.add(f"{what} {answer.name}")
        if answer is not ACK:
            assert self.container.mappings == before

    @invariant()
    def devices_reach_ram_and_plugged_blocks_only(self) -> None:
        check_mappings(self.memory, self.container)

    @invariant()
    def every_block_can_go_alone(self) -> None:
        assert all(one.size == BLOCK for one in self.container.mappings if one.iova >= 4 * GIB)

    @invariant()
    def records_agree_with_the_host(self) -> None:
        assert self.dma.mapped() == [(one.iova, one.size) for one in self.container.mappings]
        assert self.dma.count <= LIMIT


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="anon"),
        pytest.param({"backing": "memfd", "protect": "report"}, id="shared"),
    ],
)
def test_no_mapping_ever_covers_an_unplugged_block(fields: dict[str, object]) -> None:
    seen: set[str] = set()
    machine = type("Machine", (DmaAgainstHost,), {"fields": fields, "seen": seen})

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

    requests = ("plug", "unplug", "unplug-all")
    expected = {f"{request} {answer}" for request in requests for answer in ("ACK", "BUSY")}
    assert expected <= seen, "not tried at all"
