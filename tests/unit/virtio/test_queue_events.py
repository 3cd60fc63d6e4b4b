"""When queues of either format want doorbells and interrupts (reference C.5, C.6)."""

from collections.abc import Callable
from typing import Any

import pytest

from minivmm.spec.virtio import Feature
from minivmm.virtio.queue import ring
from minivmm.virtio.queue.ring import need_event

EVENT_IDX = Feature.EVENT_IDX.mask

MakePair = Callable[..., Any]


@pytest.mark.rule("SPL-D-5")
def test_driver_that_wants_no_interrupts_gets_none(make_pair: MakePair, ring_format: int) -> None:
    """SPL-D-5."""
    pair = make_pair(ring_format)
    for wanted in (True, False, True):
        pair.driver.want_interrupts(wanted)
        pair.driver.add([b"a"])
        assert pair.echo() is wanted


def test_without_event_idx_doorbells_are_never_suppressed(
    make_pair: MakePair, ring_format: int
) -> None:
    pair = make_pair(ring_format)
    for _ in range(3):
        pair.driver.add([b"a"])
        assert pair.driver.wants_kick()
        pair.echo()
        pair.driver.collect()


@pytest.mark.parametrize("size", [2, 8])
def test_event_idx_first_chain_needs_a_doorbell(
    make_pair: MakePair, ring_format: int, size: int
) -> None:
    pair = make_pair(ring_format | EVENT_IDX, size=size)
    pair.driver.add([b"a"])
    assert pair.driver.wants_kick()


def test_event_idx_asks_for_the_next_doorbell_when_the_ring_is_empty(
    make_pair: MakePair, ring_format: int
) -> None:
    pair = make_pair(ring_format | EVENT_IDX)
    for _ in range(20):  # several laps
        for _ in range(3):
            pair.driver.add([b"a"])
        assert pair.driver.wants_kick()
        pair.echo()
        pair.driver.collect()
        pair.driver.add([b"a"])
        assert pair.driver.wants_kick()
        pair.driver.add([b"a"])
        assert not pair.driver.wants_kick()
        pair.echo()
        pair.driver.collect()


@pytest.mark.parametrize("size", [1, 8])
def test_event_idx_doorbell_is_wanted_after_a_full_ring(
    make_pair: MakePair, ring_format: int, size: int
) -> None:
    pair = make_pair(ring_format | EVENT_IDX, size=size)
    for _ in range(5):
        for _ in range(size):
            pair.driver.add([b"a"])
        assert pair.driver.wants_kick()
        pair.echo()
        assert not pair.queue.interrupted
        pair.driver.collect()


@pytest.mark.rule("SPL-D-6")
def test_event_idx_interrupts_whenever_the_driver_waits_for_the_next_chain(
    make_pair: MakePair, ring_format: int
) -> None:
    """SPL-D-6 and its like, over several laps and with batches across the ring's end."""
    pair = make_pair(ring_format | EVENT_IDX)
    for count in [1, 2, 3, 5, 8, 7, 4] * 3:
        for _ in range(count):
            pair.driver.add([b"a"])
        assert pair.echo()
        assert len(pair.driver.collect()) == count


def test_event_idx_wake_up_between_look_and_request_is_not_lost(
    make_pair: MakePair, ring_format: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver adds a chain right before the device's request for a doorbell is visible (C.5)."""
    pair = make_pair(ring_format | EVENT_IDX)
    waiting = [b"late"]

    def fence_in_which_the_driver_adds() -> None:
        while waiting:
            pair.driver.add([waiting.pop()])

    monkeypatch.setattr(ring, "full_fence", fence_in_which_the_driver_adds)
    chain = pair.queue.pop()
    assert chain is not None
    assert chain.read() == b"late"


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_interrupt_that_is_switched_on_at_the_last_moment_is_not_lost(
    make_pair: MakePair, ring_format: int, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision is made behind the fence, which follows the used entries (C.6)."""
    pair = make_pair(ring_format | features)
    pair.driver.add([b"a"])
    pair.echo()
    pair.driver.collect()
    pair.driver.want_interrupts(False)
    pair.driver.add([b"b"])
    queue = pair.queue
    queue.complete(queue.pop())
    monkeypatch.setattr(ring, "full_fence", lambda: pair.driver.want_interrupts(True))
    assert queue.publish()


@pytest.mark.parametrize(
    ("event", "new", "old", "needed"),
    [
        (0, 1, 0, True),
        (1, 1, 0, False),
        (0xFFFF, 0, 0xFFFF, True),
        (0xFFFE, 1, 0xFFFF, False),
        (0, 2, 0xFFFE, True),
        (7, 7, 7, False),
    ],
)
def test_need_event_arithmetic(event: int, new: int, old: int, needed: bool) -> None:
    assert need_event(event, new, old) is needed
