"""The answer table, row by row and in its order (reference A.7).

The boundaries of a range, and all combinations of rows: tests/conformance.
"""

from __future__ import annotations

import pytest

from minivmm.devices.virtio_mem import answers
from minivmm.devices.virtio_mem.answers import (
    BEYOND_TARGET,
    OUTSIDE,
    SOME_PLUGGED,
    SOME_UNPLUGGED,
    UNKNOWN_TYPE,
    Refusal,
    Situation,
    refusal,
)
from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.devices.virtio_mem.messages import Request
from minivmm.spec.virtio_mem import RequestType, ResponseType
from minivmm.units import GIB, MIB

PLUG, UNPLUG, STATE = RequestType.PLUG, RequestType.UNPLUG, RequestType.STATE
BLOCK = 2 * MIB
ADDR = 4 * GIB
REGION = 1 * GIB
USABLE = 256 * BLOCK
END = ADDR + USABLE


def situation(*, requested: int = USABLE, plugged: tuple[tuple[int, int], ...] = ()) -> Situation:
    """512 blocks, the first 256 of them usable."""
    blocks = Blocks(BLOCK, REGION)
    for first, count in plugged:
        blocks.plug(first, count)
    return Situation(blocks, ADDR, USABLE, requested)


def judge(kind: int, addr: int, nb_blocks: int, now: Situation | None = None) -> Refusal | None:
    return refusal(Request(type=kind, addr=addr, nb_blocks=nb_blocks), now or situation())


def test_plug_up_to_the_target_is_allowed() -> None:
    now = situation(requested=8 * BLOCK, plugged=((0, 3),))

    assert judge(PLUG, ADDR + 3 * BLOCK, 5, now) is None


def test_plug_one_block_beyond_the_target_is_nacked() -> None:
    """Reference A.8-3: never ERROR, which Linux takes for good."""
    now = situation(requested=8 * BLOCK, plugged=((0, 3),))

    assert judge(PLUG, ADDR + 3 * BLOCK, 6, now) is BEYOND_TARGET
    assert BEYOND_TARGET.answer is ResponseType.NACK


def test_plug_with_a_lowered_target_is_nacked() -> None:
    assert judge(PLUG, END - BLOCK, 1, situation(requested=BLOCK, plugged=((0, 3),))) is (
        BEYOND_TARGET
    )
    assert judge(PLUG, ADDR, 1, situation(requested=0)) is BEYOND_TARGET


@pytest.mark.parametrize(("block", "count"), [(3, 1), (2, 2), (5, 2), (0, 8), (3, 3)])
def test_plug_of_plugged_blocks_is_an_error(block: int, count: int) -> None:
    """MEM-D-27: one such block among others is enough."""
    now = situation(plugged=((3, 3),))

    assert judge(PLUG, ADDR + block * BLOCK, count, now) is SOME_PLUGGED
    assert SOME_PLUGGED.answer is ResponseType.ERROR


@pytest.mark.parametrize(("block", "count"), [(0, 1), (2, 2), (5, 2), (0, 8), (255, 1)])
def test_unplug_of_unplugged_blocks_is_an_error(block: int, count: int) -> None:
    """MEM-D-33: one such block among others is enough."""
    now = situation(plugged=((3, 3),))

    assert judge(UNPLUG, ADDR + block * BLOCK, count, now) is SOME_UNPLUGGED
    assert SOME_UNPLUGGED.answer is ResponseType.ERROR


def test_unplug_below_the_target_is_allowed() -> None:
    """Reference A.8-5: drivers do it when they fail to add memory."""
    assert judge(UNPLUG, ADDR, 3, situation(requested=USABLE, plugged=((0, 3),))) is None


def test_unplug_above_a_lowered_target_is_allowed() -> None:
    assert judge(UNPLUG, ADDR, 3, situation(requested=0, plugged=((0, 3),))) is None


def test_range_comes_before_the_target() -> None:
    assert judge(PLUG, END, 1, situation(requested=0)) is OUTSIDE


def test_target_comes_before_the_state_of_blocks() -> None:
    """QEMU's order: a plug that is both too much and of a plugged block is a NACK."""
    now = situation(requested=3 * BLOCK, plugged=((0, 3),))

    assert judge(PLUG, ADDR, 1, now) is BEYOND_TARGET


def test_unplug_all_is_never_refused() -> None:
    """MEM-D-36: its address and count mean nothing."""
    for plugged in ((), ((0, 256),)):
        now = situation(plugged=plugged)
        assert judge(RequestType.UNPLUG_ALL, 0xDEAD_BEEF, 0, now) is None
        assert judge(RequestType.UNPLUG_ALL, ADDR, 65535, now) is None


def test_state_does_not_depend_on_states_or_target() -> None:
    assert judge(STATE, ADDR, 256, situation(requested=0, plugged=((3, 3),))) is None


@pytest.mark.parametrize("kind", [4, 5, 0x100, 0xFFFF])
def test_unknown_type_is_an_error(kind: int) -> None:
    """Reference A.8-2: an answer, not a broken device."""
    assert judge(kind, ADDR, 1) is UNKNOWN_TYPE
    assert UNKNOWN_TYPE.answer is ResponseType.ERROR


def test_the_table_knows_every_request() -> None:
    assert sorted(answers.TABLE) == sorted(RequestType)


def test_only_a_plug_is_ever_nacked() -> None:
    """Reference A.8-4: Linux takes a NACK of anything else for "out of memory"."""
    nacked = {kind for kind, rows in answers.TABLE.items() if BEYOND_TARGET in rows}

    assert nacked == {PLUG}
