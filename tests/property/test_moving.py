"""Machines that go on in another process, at any moment of any life: drivers cannot tell.

Each move compares what the new machine would save with what it was given (testing/moving.py), and
the fuzzer's checks go on behind it.
"""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.errors import BadState, HostError
from minivmm.testing import fuzz_setups, fuzz_steps
from minivmm.testing.fuzz_case import Case, run, take
from minivmm.testing.fuzz_guest import FuzzGuest
from minivmm.testing.fuzz_steps import Step
from minivmm.testing.fuzz_world import BLOCK, DEVICES, Setup, World
from minivmm.testing.moving import go_on, load, parts, save, still

MOST_TRIED = 200
"""Places at which a section is damaged; most of a console's are like others."""
MOVE: Step = ("move",)
RECOVERIES: tuple[Step, ...] = (("recover", 0, 0, 1), ("recover", 1, 2, 0))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=5, deadline=None)
@given(rng=st.randoms(use_true_random=True))
def test_no_driver_can_tell(device: str, packed: bool, rng: Random) -> None:
    setup = fuzz_setups.setup(rng, device, packed=packed)
    steps = fuzz_steps.steps(rng, setup, 50)
    for _ in range(4):
        steps.insert(rng.randrange(1, len(steps)), MOVE)

    case = Case(setup, (*steps, MOVE, *RECOVERIES))
    finding = run(case)

    assert finding is None, f"{finding.text}\n{case.to_text()}"


def busy(device: str, seed: int) -> World:
    """A machine in the middle of its life, which stands still."""
    rng = Random(f"{device}/{seed}")
    setup = Setup(device, {"packed": bool(seed % 2)}, memory={"requested_size": 16 * BLOCK})
    world = World(setup)
    guests = [FuzzGuest(world, function, n) for n, function in enumerate(world.functions)]
    for step in [
        ("begin", 0, (1 << 64) - 1, 0xFF, 8, 0, 1),
        ("begin", 1, (1 << 64) - 1, 0xFF, 8, 0, 1),
        *(("chain", 1, 0, (plug(n),), (10,), None, 1) for n in (0, 1, 5)),
        *(step for step in fuzz_steps.steps(rng, setup, 60) if step[0] == "chain"),
        ("wish", 2, 40),
    ]:
        take(world, guests, step)
    still(world)
    return world


def plug(block: int) -> bytes:
    return bytes(8) + (BLOCK * 4096 + block * BLOCK).to_bytes(8, "little") + b"\1" + bytes(7)


@pytest.mark.parametrize("device", DEVICES)
def test_damaged_state_is_refused_or_harmless(device: str) -> None:
    """A flipped bit in every few bytes; what passes is a state that a driver can make, too.

    Such a machine is let go: whatever its rings are said to be, only its device breaks.
    """
    rng = Random(device)
    world = busy(device, 0)
    sections = save(world, 0.0)
    try:
        for name, data in sections.items():
            for at in range(0, len(data), 1 + len(data) // MOST_TRIED):
                damaged = bytearray(data)
                damaged[at] ^= 1 << rng.randrange(8)
                try:
                    load(world, {**sections, name: bytes(damaged)}, 0.0)
                except (BadState, HostError) as error:
                    assert "\n" not in str(error)
                else:
                    go_on(world)
                    world.calm()
                    still(world)
                assert world.bugs == [], (name, at)
    finally:
        world.close()


@pytest.mark.parametrize("device", DEVICES)
def test_state_that_is_cut_short_or_too_long_is_refused(device: str) -> None:
    world = busy(device, 1)
    sections = save(world, 0.0)
    try:
        for name, part in parts(world).items():
            data = sections[name]
            for end in range(len(data)):
                with pytest.raises(BadState):
                    part.load_state(data[:end])
            with pytest.raises(BadState):
                part.load_state(data + b"\0")
    finally:
        world.close()


def test_state_of_another_device_is_refused() -> None:
    worlds = [World(Setup(device, {"packed": False})) for device in DEVICES]
    try:
        for mine, theirs in permutations((world.functions[0] for world in worlds), 2):
            for part, data in (
                (mine, theirs.save_state()),
                (mine.device, theirs.device.save_state()),
            ):
                with pytest.raises(BadState):
                    part.load_state(data)
    finally:
        for world in worlds:
            world.close()
