"""What a huge, empty region costs at start: `minivmm boot` with 1T beside 1G, time and memory.

Two guests: one whose first instruction ends it, which every /dev/kvm that opens can do; and, where
KVM runs Linux, a Debian kernel until it is ready for a command. Regions are as large as the CPU's
addresses allow: 1T needs 41 bits. `scripts/bench start` runs it here and, if need be, in the lab.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from minivmm.accel import probe
from minivmm.guest.kernels import find
from minivmm.testing.start_cost import compare, largest_region
from minivmm.testing.tiny_kernel import INVALID, bzimage
from minivmm.units import GIB, MIB, TIB, format_size

MOST_MEMORY = 64 * MIB
MOST_SECONDS = 0.1
"""What the larger region may cost more (issue 3)."""


def show(title: str, words: Sequence[str], *, runs: int, ends: Sequence[int]) -> None:
    """Print a table, if the runs end with one of the statuses `ends`."""
    sizes = (GIB, largest_region(TIB))
    device = "virtio-mem-pci,id=vmem0,size="
    commands = {
        format_size(size): [*words, "--device", f"{device}{size}", "--", "true"] for size in sizes
    }
    small, large = compare(commands, runs=runs).values()
    if small.status not in ends or large.status not in ends:
        raise SystemExit(f"start: minivmm boot ended with {small.status} and {large.status}")
    print(f"{title}; {runs} runs each in turns, from exec to exit; medians")
    print(f"{'size=':<10}" + "".join(f"{name:>10}" for name in (*commands, "more", "at most")))
    for name, one, other, most in (
        ("seconds", small.seconds, large.seconds, MOST_SECONDS),
        ("(least)", small.least, large.least, MOST_SECONDS),
        ("peak MiB", small.peak / MIB, large.peak / MIB, MOST_MEMORY / MIB),
    ):
        row = (one, other, other - one, most)
        print(f"{name:<10}" + "".join(f"{value:10.2f}" for value in row), flush=True)


def main() -> None:
    """Print both tables."""
    common = ["boot", "--accel", "kvm", "--quiet", "-m", "512M"]
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory, "image")
        image.write_bytes(bzimage(INVALID))
        # A guest's failure, or the host's if its KVM is known not to run Linux.
        show("to the first instruction", [*common, "-k", str(image)], runs=5, ends=(134, 125))
    if probe().usable:
        kernel = find("6.12")
        title = f"Linux {kernel.release} ready and a command run in it"
        show(title, [*common, "-k", str(kernel.image)], runs=3, ends=(0,))


if __name__ == "__main__":
    main()
