"""Bytes of a chain to request and answer: overlays agree with the records, framing is checked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.devices.virtio_mem import messages
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.errors import DeviceBroken
from minivmm.spec.virtio_mem import BlockState, MemRequest, MemResponse, ResponseType
from minivmm.testing.fake_queue import FakeChain, FakeQueue, FakeSignals


@pytest.mark.rule("MEM-D-24", "MEM-D-25", "MEM-D-30", "MEM-D-31", "MEM-D-42", "MEM-D-43")
@given(data=st.binary(min_size=24, max_size=40))
def test_request_overlay_agrees_with_the_record_but_for_padding(data: bytes) -> None:
    """MEM-D-24, MEM-D-25: padding and bytes after the request have no influence."""
    parsed = MemRequest.parse(data)

    request = messages.read_request(FakeChain(data, 10))

    assert (request.type, request.addr, request.nb_blocks) == (
        parsed.type,
        parsed.addr,
        parsed.nb_blocks,
    )


@given(answer=st.sampled_from(ResponseType), state=st.none() | st.sampled_from(BlockState))
def test_response_overlay_agrees_with_the_record(
    answer: ResponseType, state: BlockState | None
) -> None:
    assert messages.response(answer, state) == MemResponse(type=answer, state=state or 0).build()


def test_request_is_read_once() -> None:
    chain = FakeChain(bytes(24), 10)

    messages.read_request(chain)

    assert chain.reads == 1


@pytest.mark.parametrize(
    ("readable", "writable"), [(23, 10), (0, 10), (24, 9), (24, 0), (0, 0), (23, 4096)]
)
def test_short_buffers_break_the_device(
    device: VirtioMem, signals: FakeSignals, readable: int, writable: int
) -> None:
    """Reference A.8-1: there is no room for an answer, so the transport has to say NEEDS_RESET."""
    chain = FakeChain(bytes(readable), writable)

    with pytest.raises(DeviceBroken, match=f"{readable} readable and {writable} writable"):
        device.handle_queue(0, FakeQueue(chain))

    assert chain.reads == 0
    assert chain.used is None
    assert device.plugged_size == 0
    assert signals.queue_interrupts == []


def test_answers_before_a_short_request_are_delivered(
    device: VirtioMem, signals: FakeSignals
) -> None:
    good, bad = FakeChain(MemRequest(type=2).build(), 10), FakeChain(bytes(8), 10)

    with pytest.raises(DeviceBroken):
        device.handle_queue(0, FakeQueue(good, bad))

    assert (good.written, good.used) == (bytes(10), 10)
    assert signals.queue_interrupts == [0]


def test_longer_buffers_are_fine(device: VirtioMem) -> None:
    chain = FakeChain(MemRequest(type=2).build() + b"more", 4096)

    device.handle_queue(0, FakeQueue(chain))

    assert (chain.written, chain.used) == (bytes(10), 10)


def test_several_requests_are_answered_in_order(device: VirtioMem, signals: FakeSignals) -> None:
    base, block = device.window.base, device.block_size
    requests = [
        MemRequest(type=0, addr=base, nb_blocks=2),
        MemRequest(type=1, addr=base, nb_blocks=1),
        MemRequest(type=3, addr=base, nb_blocks=2),
        MemRequest(type=9),
    ]
    chains = [FakeChain(request.build(), 10) for request in requests]

    device.handle_queue(0, FakeQueue(*chains))

    answers = [MemResponse.parse(chain.written) for chain in chains]
    assert [(item.type, item.state) for item in answers] == [(0, 0), (0, 0), (0, 2), (3, 0)]
    assert device.plugged_size == block
    assert signals.queue_interrupts == [0, 0, 0, 0]
