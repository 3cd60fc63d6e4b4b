"""diagnose() has an answer to every state a device can be in, in lines that people can read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minivmm.control.facts import parse_facts
from minivmm.devices.virtio_mem.activity import Run
from minivmm.devices.virtio_mem.diagnosis import Kind, diagnose
from minivmm.devices.virtio_mem.view import GuestFacts, Surroundings, View
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_mem import RequestType, ResponseType
from minivmm.units import GIB, MIB

BLOCKS = 4096
SECONDS = st.sampled_from((0.0, 1.0, 4.9, 5.1, 60.0, 1e6))
EVER = st.none() | SECONDS
SIZES = st.integers(0, BLOCKS)
COUNTS = st.none() | st.integers(0, 1 << 40)

RUNS = st.none() | st.builds(
    Run,
    answer=st.sampled_from(ResponseType),
    times=st.integers(1, 1000),
    began=st.just(0.0),
    request=st.sampled_from((RequestType.PLUG, RequestType.UNPLUG, RequestType.UNPLUG_ALL)),
    blocks=st.integers(0, 65535),
    why=st.sampled_from(("", "no memory")),
)

SURROUNDINGS = st.builds(
    Surroundings,
    status=st.integers(0, 255).map(DeviceStatus),
    trouble=st.sampled_from(("", "short buffer")),
    phys_bits=st.integers(36, 52),
    boot_end=st.sampled_from((64 * MIB, 3 * GIB, 64 * GIB, 65 * GIB, 100 * GIB + 128 * MIB)),
    online=st.sampled_from((None, "offline", "online_movable")),
    running=st.booleans(),
)

FACTS = st.builds(
    GuestFacts,
    memory_block=st.none() | st.integers(0, 40).map(lambda bit: 1 << bit),
    policy=st.sampled_from((None, "offline", "?")),  # parse_facts leaves nothing unprintable
    driver=st.sampled_from((None, "bound", "unbound", "missing")),
    online=COUNTS,
    offline=COUNTS,
    kernel_zone=COUNTS,
    available=COUNTS,
    log=st.lists(
        st.sampled_from(("not addressable", "marking device broken: -22", "x")), max_size=4
    ).map(tuple),
)


@st.composite
def views(draw: st.DrawFn) -> View:
    block = draw(st.sampled_from((MIB, 2 * MIB, 128 * MIB, GIB)))
    region, plugged = draw(st.integers(1, BLOCKS)), draw(SIZES)
    return View(
        id="vmem0",
        base=draw(st.integers(2, 1 << 12)) * 2 * GIB,
        region_size=region * block,
        usable=draw(st.integers(0, region)) * block,
        requested=draw(st.integers(0, region)) * block,
        plugged=min(plugged, region) * block,
        block_size=block,
        around=draw(SURROUNDINGS),
        answers={("PLUG", "ACK"): draw(st.integers(1, 9))} if draw(st.booleans()) else {},
        moved=draw(st.integers(-BLOCKS, BLOCKS)) * block,
        run=draw(RUNS),
        run_seconds=draw(SECONDS),
        since_target=draw(SECONDS),
        since_config=draw(EVER),
        since_request=draw(EVER),
        since_progress=draw(EVER),
        since_change=draw(EVER),
        missing_features=draw(st.sampled_from((0, 2))),
        has_room=draw(st.sampled_from((None, True, False))),
        at_work=draw(st.booleans()),
    )


@given(view=views(), facts=st.none() | FACTS)
def test_there_is_always_a_diagnosis_with_a_remedy(view: View, facts: GuestFacts | None) -> None:
    found = diagnose(view, facts)

    lines = (found.summary, *found.evidence, found.remedy)
    assert found.summary
    assert bool(found.remedy) == (found.kind is not Kind.DONE)
    assert not any("\n" in line for line in lines)
    if found.kind is Kind.DONE:
        assert view.live and view.plugged == view.requested


@given(text=st.text(max_size=500) | st.text("device online offline block 0123\n", max_size=500))
def test_no_text_from_the_guest_upsets_the_reader(text: str) -> None:
    for facts in parse_facts(text).values():
        assert facts.memory_block is None or facts.memory_block > 0
        assert all(line.isprintable() or not line for line in facts.log)
