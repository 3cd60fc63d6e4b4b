"""What a real driver asked is asked again of the device model alone, and told the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import DEVICE
from harness import Guest

from minivmm.testing.recording import conversations
from minivmm.testing.replay import replay
from minivmm.tracing.reader import read_file

GIB = 1 << 30


@pytest.mark.parametrize("kernel", ["6.12"])  # both would say the same
def test_a_recorded_driver_is_told_the_same_without_its_guest(kernel: str, tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    with Guest("-k", kernel, "-m", "512M", "--record", str(path), "--device", DEVICE) as guest:
        guest.resize(GIB)
        guest.resize(0)
        guest.qmp.execute("quit")
        assert guest.wait() is not None

    (found,) = conversations(read_file(path))
    began = time.monotonic()
    deviation = replay(found)
    seconds = time.monotonic() - began
    print(f"{kernel}: {found.counts()} {path.stat().st_size} bytes {seconds:.2f} s")

    assert deviation is None, str(deviation)
    assert found.counts()["request"] >= 16
    assert found.counts()["config-read"] > 20
    assert seconds < 30  # the lab is some 15 times slower than its host
