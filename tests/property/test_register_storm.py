"""Random accesses to everything a guest can reach: nothing raises, and a restart cures all."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.spec import pci
from minivmm.spec.platform import ECAM_BASE
from minivmm.testing.driver import DeviceBench
from minivmm.testing.echo import EchoDevice

WIDTHS = (1, 2, 4, 8)
CONFIG = ECAM_BASE + (1 << 15)


def places(bench: DeviceBench) -> list[tuple[int, int]]:
    """(base, size) of what the guest can write now."""
    bars = [(bar.mapped, bar.size) for bar in bench.function.bars if bar.mapped is not None]
    return [(CONFIG, 0x100), (ECAM_BASE, 0x9000), *bars, *[(base, 0x40) for base, _ in bars]]


def restart(bench: DeviceBench) -> None:
    bench.function.system_reset()
    bench.host.reset()
    bench.host.assign_bars()
    bench.driver.start()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_accesses_never_raise(seed: int) -> None:
    rng = random.Random(seed)
    with DeviceBench(EchoDevice()) as bench:
        bench.driver.start()
        for _ in range(300):
            base, size = rng.choice(places(bench))
            address, width = base + rng.randrange(size), rng.choice(WIDTHS)
            if rng.random() < 0.5:
                assert 0 <= bench.mmio.read(address, width) < 1 << 8 * width
            else:
                value = rng.choice((0, 1, rng.getrandbits(8 * width), (1 << 8 * width) - 1))
                bench.mmio.write(address, width, value)
            if rng.random() < 0.02:
                bench.driver.write_pci(pci.COMMAND, 2, 6)
        bench.defer.run()
        for event in bench.events("broken"):
            assert "traceback" not in event.fields, event.fields["traceback"]
        restart(bench)
        assert bench.driver.request(0, b"still alive", 11) == b"still alive"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0xCF0, 0xD08), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)),
        max_size=40,
    )
)
def test_random_port_accesses_never_raise(accesses: list[tuple[int, int, int]]) -> None:
    with DeviceBench(EchoDevice()) as bench:
        for port, width, value in accesses:
            bench.pio.write(port, width, value & (1 << 8 * width) - 1)
            assert 0 <= bench.pio.read(port, width) < 1 << 8 * width
        restart(bench)
        assert bench.driver.request(0, b"ok", 2) == b"ok"


@pytest.mark.rule("PCI-D-11")
@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["change", "read"]), max_size=600))
def test_generation_differs_whenever_something_changed_in_between(steps: list[str]) -> None:
    with DeviceBench(EchoDevice()) as bench:
        transport = bench.function.transport
        last, changed = transport.generation.read(), False
        for step in steps:
            if step == "change":
                transport.config(notify=False)
                changed = True
            else:
                now = transport.generation.read()
                assert (now != last) == changed
                last, changed = now, False
