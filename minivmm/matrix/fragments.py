"""A stated fragmentation of the guest's memory, made the same way each time.

Two file systems in memory are filled in turn, a big file and a small one, again and again; then all
the big ones are deleted. What is left are small pieces at even distances:

    ramfs   128 KiB every 4 MiB, in an eighth of the amount. The kernel takes such pages from zones
            for itself, and cannot move them.
    tmpfs   256 KiB every 8 MiB, in a quarter of it. Such pages may be anywhere, and can be moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minivmm.matrix.guest import Guest
from minivmm.units import KIB, MIB

FIXED_KEPT, FIXED_PERIOD = 128 * KIB, 4 * MIB
MOVABLE_KEPT, MOVABLE_PERIOD = 256 * KIB, 8 * MIB
SHARE = 32 * MIB
"""Bytes of the amount for each pair of files."""

_FILL = """
mkdir -p /tmp/fixed /tmp/movable
mount -t ramfs fixed /tmp/fixed
mount -t tmpfs -o size=90% movable /tmp/movable
fill() {{ dd if=/dev/zero of="$1" bs="$2" count=1 2>/dev/null; }}
i=0
while [ $i -lt {pairs} ]; do
    i=$((i + 1))
    fill /tmp/fixed/gap$i {fixed_gap} && fill /tmp/fixed/kept$i {fixed_kept} &&
        fill /tmp/movable/gap$i {movable_gap} && fill /tmp/movable/kept$i {movable_kept} || exit 1
done
rm /tmp/fixed/gap* /tmp/movable/gap*
"""


def script(amount: int) -> str:
    """What the guest runs when it has been grown by `amount` bytes."""
    return _FILL.format(
        pairs=amount // SHARE,
        fixed_gap=FIXED_PERIOD - FIXED_KEPT,
        fixed_kept=FIXED_KEPT,
        movable_gap=MOVABLE_PERIOD - MOVABLE_KEPT,
        movable_kept=MOVABLE_KEPT,
    )


@contextmanager
def fragmented(guest: Guest, amount: int) -> Iterator[None]:
    """The guest's memory is so, inside the block."""
    guest.shell(script(amount))
    try:
        yield
    finally:
        guest.run("umount /tmp/fixed /tmp/movable")
