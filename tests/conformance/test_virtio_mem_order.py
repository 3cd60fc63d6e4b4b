"""Requests to which several rows of the answer table (reference A.7) apply: the first one decides.

Framing comes before everything (A.7-1), an unknown type before the range (A.7-2), and so on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from minivmm.errors import DeviceBroken
from minivmm.spec.virtio_mem import BlockState, MemRequest, MemResponse, RequestType, ResponseType
from minivmm.testing.fake_queue import FakeChain, FakeQueue
from minivmm.testing.mem_bench import MemBench
from minivmm.units import GIB, MIB

ACK, NACK = ResponseType.ACK, ResponseType.NACK
BUSY, ERROR = ResponseType.BUSY, ResponseType.ERROR
PLUG, UNPLUG, STATE = RequestType.PLUG, RequestType.UNPLUG, RequestType.STATE

BASE = 4 * GIB
MOST = 65535
"""Most blocks that a request can name."""

PLUG_ROWS = ("A.7-3 outside", "A.7-4 beyond", "A.7-5 plugged", "A.7-6 host")


def conditions(*rows: str) -> pytest.MarkDecorator:
    """Every combination of `rows`; each case is the set of those that hold."""
    cases = [
        frozenset(row for row, holds in zip(rows, choice, strict=True) if holds)
        for choice in product((False, True), repeat=len(rows))
    ]
    names = [" and ".join(row for row in rows if row in case) or "A.7-7" for case in cases]
    return pytest.mark.parametrize("hold", cases, ids=names)


def first_of(hold: frozenset[str], answers: dict[str, ResponseType]) -> ResponseType:
    return next((answer for row, answer in answers.items() if row in hold), ACK)


@pytest.fixture
def small() -> Iterator[MemBench]:
    """512 blocks of 2 MiB; target 16 blocks, 4 are plugged. Work of the host can be refused."""
    with MemBench(size=GIB, requested_size=32 * MIB, prealloc=True) as bench:
        bench.driver.plug(0, 4)
        yield bench


@pytest.mark.rule("MEM-D-26", "MEM-D-27", "MEM-D-28", "MEM-D-29")
@conditions(*PLUG_ROWS)
def test_plug_is_judged_in_the_order_of_the_table(small: MemBench, hold: frozenset[str]) -> None:
    if "A.7-4 beyond" in hold:
        small.device.set_requested_size(8 * MIB)
    if "A.7-6 host" in hold:
        small.host_refuses("populate")
    addr = small.driver.address(3 if "A.7-5 plugged" in hold else 4)
    addr += "A.7-3 outside" in hold

    expected = first_of(hold, dict(zip(PLUG_ROWS, (ERROR, NACK, ERROR, BUSY), strict=True)))
    assert small.driver.request(PLUG, addr, 2).type == expected
    assert small.plugged == [(0, 6 if expected is ACK else 4)]


@pytest.mark.rule("MEM-D-32", "MEM-D-33", "MEM-D-34", "MEM-D-35")
@conditions("A.7-3 outside", "A.7-5 unplugged", "A.7-6 host")
def test_unplug_is_judged_in_the_order_of_the_table(small: MemBench, hold: frozenset[str]) -> None:
    if "A.7-6 host" in hold:
        small.host_refuses("discard")
    addr = small.driver.address(3 if "A.7-5 unplugged" in hold else 2)
    addr += "A.7-3 outside" in hold

    rows = {"A.7-3 outside": ERROR, "A.7-5 unplugged": ERROR, "A.7-6 host": BUSY}
    expected = first_of(hold, rows)
    assert small.driver.request(UNPLUG, addr, 2).type == expected
    assert small.plugged == [(0, 2 if expected is ACK else 4)]


@pytest.mark.rule("MEM-D-36", "MEM-D-38", "MEM-D-39")
@conditions("A.7-6 host", "nothing plugged", "nonsense as address")
def test_unplug_all_is_busy_only_if_there_is_something_to_do(
    small: MemBench, hold: frozenset[str]
) -> None:
    """MEM-D-36, MEM-D-38, MEM-D-39, MEM-D-40: its address and count mean nothing."""
    if "nothing plugged" in hold:
        small.driver.unplug(0, 4)
    if "A.7-6 host" in hold:
        small.host_refuses("discard")
    addr, count = (0xDEAD_BEEF, MOST) if "nonsense as address" in hold else (0, 0)

    busy = "A.7-6 host" in hold and "nothing plugged" not in hold
    assert small.driver.request(RequestType.UNPLUG_ALL, addr, count).type == (BUSY if busy else ACK)
    assert small.plugged == ([(0, 4)] if busy else [])


@pytest.mark.rule("MEM-D-44", "MEM-D-45", "MEM-D-46")
@conditions("A.7-3 outside", "A.7-4 beyond", "A.7-6 host")
def test_state_depends_on_nothing_but_the_range(small: MemBench, hold: frozenset[str]) -> None:
    """MEM-D-44, MEM-D-45, MEM-D-46: it is never BUSY."""
    if "A.7-4 beyond" in hold:
        small.device.set_requested_size(0)
    if "A.7-6 host" in hold:
        small.host_refuses("populate", "discard")
    addr = small.driver.address(3) + ("A.7-3 outside" in hold)

    answer = small.driver.request(STATE, addr, 2)

    rejected = "A.7-3 outside" in hold
    state = 0 if rejected else BlockState.MIXED
    assert answer == MemResponse(type=ERROR if rejected else ACK, state=state)


@pytest.mark.parametrize("kind", [*RequestType, 4, 0xFFFF])
@pytest.mark.parametrize(("readable", "writable"), [(23, 10), (24, 9)])
def test_framing_comes_first_whatever_the_request(
    small: MemBench, kind: int, readable: int, writable: int
) -> None:
    """Reference A.7-1, A.8-1: one byte short breaks the device and changes nothing."""
    request = MemRequest(type=kind, addr=BASE, nb_blocks=1).build()[:readable]

    with pytest.raises(DeviceBroken):
        small.device.handle_queue(0, FakeQueue(FakeChain(request, writable)))

    assert small.plugged == [(0, 4)]


@pytest.mark.parametrize("kind", [4, 0x100, 0xFFFF])
def test_unknown_requests_get_an_error_wherever_they_point(small: MemBench, kind: int) -> None:
    """Reference A.7-2, A.8-2."""
    for addr, count in ((BASE, 1), (BASE + 1, 0), ((1 << 64) - 1, MOST)):
        assert small.driver.request(kind, addr, count) == MemResponse(type=ERROR)


@pytest.mark.rule(
    "MEM-D-24", "MEM-D-25", "MEM-D-30", "MEM-D-31", "MEM-D-37", "MEM-D-42", "MEM-D-43"
)
@pytest.mark.parametrize(
    ("kind", "ids"),
    [(PLUG, "MEM-D-25"), (UNPLUG, "MEM-D-31"), (RequestType.UNPLUG_ALL, "MEM-D-37"),
     (STATE, "MEM-D-43")],
)  # fmt: skip
def test_padding_is_ignored(small: MemBench, kind: RequestType, ids: str) -> None:
    """MEM-D-25, MEM-D-31, MEM-D-37, MEM-D-43; MEM-D-24 and its kin: only type and payload count."""
    block = 4 if kind is PLUG else 0
    request = bytearray(MemRequest(type=kind, addr=BASE + block * 2 * MIB, nb_blocks=2).build())
    request[2:8] = request[18:24] = b"\xff" * 6
    chain = FakeChain(bytes(request) + b"more", MemResponse.SIZE)

    small.device.handle_queue(0, FakeQueue(chain))

    assert MemResponse.parse(chain.written).type == ACK
