"""Requests at the boundaries of the answer table (reference A.7), for all sizes of blocks.

Each test names the statements of the specification that it holds the device to. What happens if
several rows of the table apply is test_virtio_mem_order.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pytest

from minivmm.spec.virtio_mem import BlockState, MemResponse, RequestType, ResponseType
from minivmm.testing.mem_bench import MemBench
from minivmm.units import GIB, MIB, TIB, format_size

ACK, NACK = ResponseType.ACK, ResponseType.NACK
ERROR = ResponseType.ERROR
PLUG, UNPLUG, STATE = RequestType.PLUG, RequestType.UNPLUG, RequestType.STATE

BASE = 4 * GIB
MOST = 65535
"""Most blocks that a request can name."""


@dataclass(frozen=True)
class Geometry:
    """Bytes; a third of the usable blocks is plugged, the target leaves room for one more."""

    block: int
    region: int

    @property
    def requested(self) -> int:
        return min(self.region // 2, 4 * GIB)

    @property
    def usable(self) -> int:
        """What the device makes of the target (reference D.3)."""
        return min(self.region, self.requested + 2 * GIB)

    @property
    def end(self) -> int:
        return BASE + self.usable

    @property
    def blocks(self) -> int:
        return self.usable // self.block

    @property
    def plugged(self) -> int:
        return max(1, self.requested // self.block // 2)

    def __str__(self) -> str:
        return f"{format_size(self.block)}-of-{format_size(self.region)}"


GEOMETRIES = [
    Geometry(block, region)
    for block, region in product((MIB, 2 * MIB, GIB), (64 * MIB, 4 * GIB, 16 * TIB))
    if block <= region
]


def outside(at: Geometry) -> dict[str, tuple[int, int]]:
    """Requests (addr, nb_blocks) that are not whole blocks inside the usable region."""
    block = at.block
    last = at.end - block
    top = (1 << 64) - block
    found = {
        "no-blocks": (BASE, 0),
        "no-blocks-at-usable-end": (at.end, 0),
        "one-byte-up": (BASE + 1, 1),
        "half-a-block-up": (BASE + block // 2, 1),
        "one-byte-below-a-block": (BASE + block - 1, 1),
        "last-block-one-byte-down": (last - 1, 1),
        "last-block-one-byte-up": (last + 1, 1),
        "last-block-half-a-block-up": (last + block // 2, 1),
        "block-before": (BASE - block, 1),
        "straddles-start": (BASE - block, 2),
        "encloses-the-region": (BASE - block, MOST),
        "address-zero": (0, 1),
        "at-usable-end": (at.end, 1),
        "straddles-usable-end": (last, 2),
        "one-block-too-many": (BASE, at.blocks + 1),
        "most-blocks": (BASE, MOST),
        "behind-the-region": (BASE + at.region, 1),
        "ends-at-2-to-64": (top, 1),
        "wraps-to-zero": (top, 2),
        "wraps-to-the-first-block": (top, 2 + BASE // block),
        "last-byte-of-2-to-64": ((1 << 64) - 1, MOST),
    }
    if at.usable < at.region:
        found["last-block-of-region"] = (BASE + at.region - block, 1)
    return found


@pytest.fixture(params=GEOMETRIES, ids=str, scope="module")
def at(request: pytest.FixtureRequest) -> Geometry:
    found: Geometry = request.param
    return found


@pytest.fixture(scope="module")
def bench(at: Geometry) -> Iterator[MemBench]:
    """Shared by the tests of requests that change nothing."""
    with MemBench(size=at.region, block_size=at.block, requested_size=at.requested) as bench:
        assert bench.device.usable_region_size == at.usable
        assert bench.driver.plug(0, at.plugged) is ACK
        yield bench


@pytest.fixture
def full(at: Geometry) -> Iterator[MemBench]:
    """A device of which everything may be plugged."""
    with MemBench(size=at.region, block_size=at.block, requested_size=at.region) as bench:
        yield bench


@pytest.mark.rule("MEM-D-26", "MEM-D-32", "MEM-D-44")
@pytest.mark.parametrize(
    ("at", "where"),
    [(at, where) for at in GEOMETRIES for where in outside(at)],
    indirect=["at"],
    ids=str,
)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(PLUG, id="MEM-D-26"),
        pytest.param(UNPLUG, id="MEM-D-32"),
        pytest.param(STATE, id="MEM-D-44"),
    ],
)
def test_error_for_what_is_not_whole_blocks_in_the_usable_region(
    bench: MemBench, at: Geometry, kind: RequestType, where: str
) -> None:
    """MEM-D-26, MEM-D-32, MEM-D-44: and nothing changes."""
    before = bench.driver.config()

    answer = bench.driver.request(kind, *outside(at)[where])

    assert answer == MemResponse(type=ERROR)
    assert bench.driver.config() == before
    assert bench.plugged == [(0, at.plugged)]


@pytest.mark.rule("MEM-D-26", "MEM-D-32", "MEM-D-44")
@pytest.mark.parametrize("kind", [PLUG, UNPLUG, STATE])
def test_error_for_everything_without_a_target(at: Geometry, kind: RequestType) -> None:
    """MEM-D-26, MEM-D-32, MEM-D-44: with nothing usable even the first block is outside."""
    with MemBench(size=at.region, block_size=at.block) as bench:
        assert bench.driver.config().usable_region_size == 0
        assert bench.driver.request(kind, BASE, 1).type == ERROR


@pytest.mark.rule("MEM-D-29", "MEM-D-35", "MEM-D-45", "MEM-D-46")
def test_ack_for_the_first_the_last_and_as_many_blocks_as_possible(
    full: MemBench, at: Geometry
) -> None:
    """MEM-D-29, MEM-D-35, MEM-D-45, MEM-D-46: what lies inside is served, up to 65535 blocks."""
    driver, count = full.driver, at.region // at.block
    some = min(count, MOST)
    for first, blocks in {(0, 1), (count - 1, 1), (0, some), (count - some, some)}:
        assert driver.state(first, blocks) is BlockState.UNPLUGGED
        assert driver.plug(first, blocks) is ACK
        assert driver.config().plugged_size == blocks * at.block
        assert full.plugged == [(first, blocks)]
        assert driver.state(first, blocks) is BlockState.PLUGGED
        assert driver.unplug(first, blocks) is ACK
        assert driver.config().plugged_size == 0


def test_nack_one_block_beyond_the_target_and_ack_up_to_it(at: Geometry) -> None:
    """Reference A.7-4: never ERROR, which Linux takes for good (A.8-3)."""
    with MemBench(size=at.region, block_size=at.block, requested_size=at.requested) as bench:
        wanted = at.requested // at.block

        assert bench.driver.plug(0, wanted + 1) is (NACK if wanted < at.blocks else ERROR)
        assert bench.driver.plug(0, wanted) is ACK
        assert bench.driver.plug(at.blocks - 1) is NACK
        assert bench.driver.plug(0) is NACK

        bench.device.set_requested_size(0)
        assert bench.driver.plug(at.blocks - 1) is NACK
        assert bench.driver.unplug(0, wanted) is ACK
        assert bench.driver.config().usable_region_size == at.usable


@pytest.mark.rule("MEM-D-27", "MEM-D-33")
@pytest.mark.parametrize("edge", ["first", "last", "all but one"])
def test_error_if_a_block_is_in_that_state_already(full: MemBench, at: Geometry, edge: str) -> None:
    """MEM-D-27, MEM-D-33: one block is enough, be it the first or the last; nothing changes."""
    driver, count = full.driver, min(at.region // at.block // 2, MOST)
    plugged = {"first": (0, 1), "last": (count - 1, 1), "all but one": (1, count - 1)}[edge]
    driver.plug(*plugged)

    assert driver.state(0, count) is BlockState.MIXED
    assert driver.plug(0, count) is ERROR
    assert driver.unplug(0, count) is ERROR
    assert full.plugged == [plugged]
