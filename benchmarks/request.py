"""A request to virtio-mem without a guest: from the doorbell to the interrupt, in microseconds.

The whole device on a PCI bus, with its defaults and KVM's memslots faked: an in-process driver asks
as Linux does, memory is really given back to the host, and the interrupt is a write to an eventfd.
The clock runs from the kick, with which the device starts to read the ring, until that write is
done. A turn's value is the median of some requests; what else the machine does only adds to it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.figures import Figure, present
from minivmm.spec.virtio_mem import RequestType
from minivmm.testing.instructions import Cost, counted
from minivmm.testing.mem_path import MemPath
from minivmm.units import GIB, TIB, format_size

RUNS = 30
ROUNDS = 25
"""Requests of a turn."""
SIZES = (GIB, 16 * TIB)
MANY = 64
"""Blocks of a large request: as Linux asks for 128 MiB at once."""
FIRST = 64
"""The first block of requests. Another stays plugged: the range has its memslot all the time."""


@dataclass(frozen=True)
class Request:
    """A kind of request, its goal in microseconds, and what is there before it."""

    name: str
    kind: RequestType
    blocks: int
    at_most: float | None
    touched: bool = False
    """Is its block in use? If so, its huge page goes back to the host."""


KINDS = (
    Request(f"PLUG of {MANY} blocks", RequestType.PLUG, MANY, 40),
    Request("UNPLUG of a block in use", RequestType.UNPLUG, 1, 60, touched=True),
    Request("UNPLUG of an empty block", RequestType.UNPLUG, 1, None),
    Request("STATE of a block", RequestType.STATE, 1, None),
)


def prepared(path: MemPath, kind: Request) -> None:
    """Bring the blocks of a request of `kind` where it wants them."""
    if kind.kind is RequestType.UNPLUG:
        path.ask(RequestType.PLUG, FIRST, kind.blocks)
        if kind.touched:
            path.touch(FIRST)


def cleaned(path: MemPath, kind: Request) -> None:
    """Undo what such a request did."""
    if kind.kind is RequestType.PLUG:
        path.ask(RequestType.UNPLUG, FIRST, kind.blocks)


def turn(path: MemPath, kind: Request) -> float:
    """The median of some requests in a row, in microseconds."""
    taken = []
    for _ in range(ROUNDS):
        prepared(path, kind)
        taken.append(path.ask(kind.kind, FIRST, kind.blocks))
        cleaned(path, kind)
    return statistics.median(taken)


def cost(path: MemPath, kind: Request) -> dict[str, float]:
    """What one request costs the interpreter."""
    found = Cost()
    prepared(path, kind)
    path.ask(kind.kind, FIRST, kind.blocks, counted(found))
    cleaned(path, kind)
    return {"bytecode instructions": found.instructions, "calls into C": found.calls}


def measure(runs: int = RUNS) -> list[Figure]:
    """Every kind, in the smallest and in the largest region by turns."""
    figures = []
    with MemPath(SIZES[0]) as small, MemPath(SIZES[1]) as large:
        for kind in KINDS:
            pairs = [(turn(small, kind), turn(large, kind)) for _ in range(runs)]
            ours, beside = [pair[1] for pair in pairs], [pair[0] for pair in pairs]
            figures.append(
                Figure(
                    f"{kind.name}, {format_size(SIZES[1])} region",
                    "us",
                    ours,
                    beside,
                    peer_name=format_size(SIZES[0]),
                    at_most=kind.at_most,
                    ratio_at_most=1.2,
                    detail=cost(large, kind),
                )
            )
    return figures


if __name__ == "__main__":
    present(measure)
