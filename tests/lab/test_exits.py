"""What a boot costs in exits, in a lab of its own.

A lab that has run many guests is slower, and part of the count (timer ticks) grows with time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from minivmm.guest.kernels import find
from minivmm.lab.lab import MARK

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(MARK in os.environ, reason="this is the lab"),
    pytest.mark.timeout(180),
]

MAX_EXITS_TO_INIT = 6000
"""KVM's own count, up to the first line of init, for Debian's 6.12 cloud kernel with `quiet`."""


def test_exits_to_init_stay_few() -> None:
    boot = ["boot", "-k", find("6.12").release, "--accel", "kvm", "--stats", "--json", "--", "true"]
    minivmm = [sys.executable, "-m", "minivmm"]

    done = subprocess.run(
        [*minivmm, "lab", "--", *minivmm, *boot],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stderr[done.stderr.index("{") :])
    to_init = report["exits-at-milestones"]["init"]
    print(report["milestones"], to_init)
    assert 0 < to_init["kvm exits"] <= MAX_EXITS_TO_INIT, to_init
    assert list(report["milestones"]) == ["first-instruction", "init", "ready"]
