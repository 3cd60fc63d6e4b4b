"""A ring full of anything: the device answers or breaks, never raises, and works after reset."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.testing.driver import DeviceBench
from minivmm.testing.echo import EchoDevice
from minivmm.trace import Event
from minivmm.units import MIB

SIZE = 8
RAM_END = 16 * MIB
SCRATCH = 0x8000

PARTS = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

addresses = st.one_of(
    st.integers(SCRATCH, SCRATCH + 0x400),
    st.sampled_from([0, RAM_END - 8, RAM_END, 0xFEE00000, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
lengths = st.one_of(
    st.sampled_from([0, 1, 8, 16, 32, 160]), st.integers(0, 64), st.integers(0, (1 << 32) - 1)
)
flags = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF))
indices = st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF))
descriptors = st.lists(st.tuples(addresses, lengths, flags, indices), max_size=SIZE)
heads = st.lists(indices, max_size=SIZE)


@pytest.fixture
def bench() -> Iterator[DeviceBench]:
    with DeviceBench(EchoDevice()) as made:
        made.trace.follow(refuse_bugs)
        yield made


def refuse_bugs(event: Event) -> None:
    """A device may break because of the driver, but not because of an exception of ours."""
    assert "traceback" not in event.fields, event.fields["traceback"]


def check_that_it_recovers(bench: DeviceBench) -> None:
    bench.driver.start()
    assert bench.driver.request(0, b"still alive", 11) == b"still alive"
    assert DeviceStatus.NEEDS_RESET not in bench.driver.status


@PARTS
@given(
    table=descriptors,
    scratch=st.binary(max_size=256),
    offered=heads,
    jump=st.one_of(st.none(), st.integers(0, 0xFFFF)),
    event_idx=st.booleans(),
)
def test_hostile_rings_never_raise(
    bench: DeviceBench,
    table: list[tuple[int, int, int, int]],
    scratch: bytes,
    offered: list[int],
    jump: int | None,
    event_idx: bool,
) -> None:
    features = Feature.VERSION_1.mask | Feature.INDIRECT_DESC.mask
    features |= Feature.EVENT_IDX.mask if event_idx else 0
    bench.driver.start(features, size=SIZE)
    ring = bench.driver.queues[0]
    bench.memory.write(SCRATCH, scratch)
    for index, fields in enumerate(table):
        ring.set_descriptor(index, *fields)
    for head in offered:
        ring.offer(head)
    if jump is not None:
        ring.set_avail_idx(jump)
    bench.driver.kick(0)
    bench.driver.kick(0)
    check_that_it_recovers(bench)


@PARTS
@given(
    table=st.lists(
        st.tuples(st.integers(SCRATCH, SCRATCH + 0x400), st.integers(0, 64), st.booleans()),
        min_size=1,
        max_size=SIZE,
    ),
    direct=st.integers(0, SIZE),
)
def test_any_framing_of_a_proper_chain_is_echoed(
    bench: DeviceBench, table: list[tuple[int, int, bool]], direct: int
) -> None:
    readable = [
        bytes([n % 256]) * size for n, (_, size, writable) in enumerate(table) if not writable
    ]
    writable = [size for _, size, is_writable in table if is_writable]
    bench.driver.start(size=16)
    ring = bench.driver.queues[0]
    ring.add(readable, writable, direct=min(direct, len(table) - 1))
    bench.driver.kick(0)
    (used,) = ring.collect()
    assert used.data == b"".join(readable)[: sum(writable)]
