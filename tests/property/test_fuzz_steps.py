"""Hypothesis drives every device through the fuzzer's steps: rings and registers of any content.

The fuzzer itself (scripts/fuzz) tries far more of them; what is found here is shrunk better.
"""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.spec.virtio_pci import CommonConfig
from minivmm.testing import fuzz_setups, fuzz_steps
from minivmm.testing.fuzz_case import Case, run
from minivmm.testing.fuzz_world import BLOCK, DEVICES, Setup

FIELDS = [name for _, _, name in CommonConfig.layout()]
EVERYTHING = (1 << 64) - 1
BEGIN = ("begin", 0, EVERYTHING, EVERYTHING, 8, 0, 1)
RECOVERIES = (("recover", 0, 0, 1), ("recover", 1, 2, 0))

PARTS = settings(max_examples=80, deadline=None)

devices = st.sampled_from(DEVICES)
queues = st.integers(0, 5)
words = st.integers(0, 16) | st.integers(0, 0xFFFF)
longs = st.sampled_from([0, 1, 8, 16, 24, 4096]) | st.integers(0, (1 << 32) - 1)
switches = st.fixed_dictionaries(
    {"packed": st.booleans()},
    optional={
        name: st.booleans()
        for name in ("event_idx", "in_order", "notification_data", "ioeventfd", "flr")
    },
)
memories = st.tuples(st.just("scratch"), st.integers(0, 1024)) | st.tuples(
    st.sampled_from(["border", "end", "block", "last", "top", "ring", "used", "mmio32"]),
    st.integers(-64, 64),
)
flags = st.integers(0, 7) | words
entries = st.lists(st.tuples(memories, longs, flags, words), min_size=1, max_size=6)

ring_steps = st.one_of(
    st.tuples(st.just("descriptors"), st.just(0), queues, entries, st.just(1)),
    st.tuples(
        st.just("table"),
        st.just(0),
        queues,
        st.integers(0, 64).map(lambda at: 16 * at),
        entries,
        st.sampled_from([0, 0, 0, 1, 8, 16, -16]),
        st.sampled_from([4, 4, 4, 5, 6]),
        st.just(1),
    ),
    st.tuples(st.just("offer"), st.just(0), queues, words),
    st.tuples(st.just("jump"), st.just(0), queues, words),
    st.tuples(st.just("hush"), st.just(0), queues, words, words),
    st.tuples(
        st.just("poke"), st.just(0), queues, st.integers(0, 2), words, st.binary(max_size=16)
    ),
    st.tuples(st.just("store"), st.just(0), memories, st.binary(max_size=64)),
    st.tuples(st.just("bell"), st.just(0), queues, st.integers(0, 1), st.none(), st.none()),
    st.just(("follow",)),
    st.just(("loop", 4)),
    st.just(("work",)),
)

places = st.tuples(
    st.sampled_from(["COMMON", "ISR", "DEVICE", "NOTIFY", "msix", "config", "ecam", "mmio64"]),
    st.integers(0, 80) | st.integers(0, 0x4000),
)
widths = st.sampled_from([1, 2, 4, 8])
register_steps = st.one_of(
    st.tuples(st.just("look"), st.integers(0, 1), places, widths),
    st.tuples(st.just("change"), st.integers(0, 1), places, widths, words),
    st.tuples(st.just("field"), st.integers(0, 1), st.sampled_from(FIELDS), st.integers(0, 255)),
    st.tuples(st.just("command"), st.integers(0, 1), st.sampled_from([0, 2, 4, 6, 0x406])),
    st.tuples(
        st.just("bar"),
        st.integers(0, 1),
        st.integers(0, 1),
        st.tuples(
            st.sampled_from(["mmio64", "mmio32", "ecam", "block", "top"]),
            st.integers(-4, 8).map(lambda pages: pages * 4096),
        ),
    ),
    st.tuples(
        st.just("messages"),
        st.integers(0, 1),
        st.sampled_from([0, 0x4000, 0x8000, 0xC000]),
        st.integers(0, 8),
        st.just(0xFEE0_0000),
        st.just(1),
        st.integers(0, 1),
    ),
    st.tuples(
        st.just("window"),
        st.integers(0, 1),
        st.sampled_from([0, 2, 1, 255]),
        st.integers(0, 80) | st.integers(0x2000, 0x3010),
        st.sampled_from([1, 2, 4, 3, 0]),
        st.sampled_from([1, 2, 4]),
        st.none() | st.integers(0, 255),
    ),
    st.just(("begin", 1, EVERYTHING, EVERYTHING, 4, 0, 0)),
    st.just(("pass_time",)),
)


def check(device: str, options: dict[str, Any], steps: list[fuzz_steps.Step]) -> None:
    setup = Setup(device, options, memory={"requested_size": 8 * BLOCK})
    finding = run(Case(setup, (BEGIN, *steps, *RECOVERIES)))
    assert finding is None, finding.text


@PARTS
@given(devices, switches, st.lists(ring_steps, max_size=12))
def test_any_ring_leaves_every_device_in_a_defined_state(
    device: str, options: dict[str, Any], steps: list[fuzz_steps.Step]
) -> None:
    check(device, options, steps)


@PARTS
@given(devices, switches, st.lists(register_steps, max_size=20))
def test_any_register_accesses_leave_every_device_in_a_defined_state(
    device: str, options: dict[str, Any], steps: list[fuzz_steps.Step]
) -> None:
    check(device, options, steps)


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), devices, st.booleans())
def test_any_machine_and_any_steps(rng: Random, device: str, packed: bool) -> None:
    setup = fuzz_setups.setup(rng, device, packed=packed)
    steps = fuzz_steps.steps(rng, setup, 25)

    finding = run(Case(setup, (*steps, *RECOVERIES)))

    assert finding is None, finding.text
