"""The matrix with a real guest: one cheap cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from minivmm.cli import main
from minivmm.errors import ExitStatus
from minivmm.matrix.results import read

SUITE = """
from minivmm.matrix.scenarios import idle

AMOUNT = "256M"
"""


@pytest.mark.parametrize("kernel", ["6.12"])
def test_a_cell_is_measured_and_nothing_leaks(kernel: str, tmp_path: Path) -> None:
    suite, out = tmp_path / "one.py", tmp_path / "out.json"
    suite.write_text(SUITE)

    words = ["matrix", str(suite), "--kernels", kernel, "--accel", "kvm", "--out", str(out)]
    assert main.run([*words, "--device-options", "packed=on"]) == ExitStatus.OK

    (cell,) = read(out).cells
    assert cell.figures["unplugged-fraction"] == [1.0]
    assert 0 < cell.figures["grow-seconds-per-gib"][0] < 60
    assert 0 < cell.figures["shrink-seconds-per-gib"][0] < 240
    assert cell.leaks is not None
    # What of the boot and of our looking was still open at first may be gone.
    assert cell.leaks.fds <= 0
    assert cell.leaks.threads <= 0
    assert cell.leaks.held == 0
