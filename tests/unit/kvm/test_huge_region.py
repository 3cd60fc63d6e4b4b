"""`minivmm boot` with a region of 1 TiB starts as it does with 1 GiB, on whatever KVM opens here.

The guest's first instruction ends it. In a CPU of 40 address bits, as the lab's, 960 GiB must do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from minivmm.cli.main import run
from minivmm.kvm.system import System
from minivmm.testing.start_cost import Cost, compare, largest_region
from minivmm.testing.tiny_kernel import INVALID, bzimage
from minivmm.units import GIB, MIB, TIB

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(180)]

ATTEMPTS = 5
"""Other work on the machine disturbs times; so often in a row it does not."""


@pytest.fixture
def costs(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], tuple[Cost, Cost]]]:
    """Medians for a small and a huge region. Forked: a fresh Python needs seconds in the lab."""
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path))
    image, log = tmp_path / "image", tmp_path / "log"
    image.write_bytes(bzimage(INVALID))

    def start(words: Sequence[str]) -> int:
        pid = os.fork()
        if pid == 0:
            out = log.open("a")
            sys.stdout = sys.stderr = out
            status = run(words)
            out.flush()
            os._exit(status)
        return pid

    def measure() -> tuple[Cost, Cost]:
        words = ["boot", "--accel=kvm", "-k", str(image), "-m", "512M"]
        device = "--device=virtio-mem-pci,id=vmem0,size="
        commands = {
            str(size): [*words, device + str(size), "--", "true"]
            for size in (GIB, largest_region(TIB))
        }
        small, huge = compare(commands, runs=3, start=start).values()
        return small, huge

    yield measure
    lines = log.read_text().splitlines()
    assert lines and all("the guest triple-faulted: cpu0 rip=" in one for one in lines)


def test_a_huge_region_costs_neither_time_nor_memory_at_start(
    costs: Callable[[], tuple[Cost, Cost]],
) -> None:
    more: list[float] = []
    while not more or (min(more) >= 0.1 and len(more) < ATTEMPTS):
        small, huge = costs()
        assert huge.peak - small.peak < 64 * MIB
        more.append(huge.seconds - small.seconds)

    assert min(more) < 0.1, f"s more than for 1 GiB: {more}"
