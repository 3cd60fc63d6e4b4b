"""THE answer table: which request is answered with ACK, NACK, BUSY or ERROR.

The order is the specification's where it gives one and QEMU's elsewhere; it matters when several
conditions hold. ERROR makes Linux give up for good, NACK makes it read the configuration again,
BUSY makes it wait for a minute, so a plug beyond requested_size must never become an ERROR
(reference A.7, A.8, D.6).

What this table allows is then done by device.py; if the host fails to do it, the answer is BUSY
(MEM-D-28, MEM-D-34, MEM-D-38). STATE needs no host and is never BUSY (MEM-D-45).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.devices.virtio_mem.messages import Request
from minivmm.spec.virtio_mem import BlockState, RequestType, ResponseType


@dataclass(slots=True)
class Situation:
    """All that an answer depends on, besides the request. Sizes in bytes.

    Nobody changes it; but frozen, it would take twice the time to make one for every request.
    """

    blocks: Blocks
    addr: int
    """Guest physical address of the region."""
    usable_region_size: int
    requested_size: int
    migrating: bool = False
    """The machine is on its way to another process: blocks stay as they are."""

    def first_block(self, request: Request) -> int:
        """Number of the block that `request` starts with."""
        return (request.addr - self.addr) // self.blocks.block_size

    def state(self, request: Request) -> BlockState:
        """State of the blocks that `request` covers; they lie inside the region."""
        return self.blocks.state(self.first_block(request), request.nb_blocks)


@dataclass(frozen=True, slots=True)
class Refusal:
    """If `applies`, the request is answered with `answer`; `why` is for people reading a trace."""

    applies: Callable[[Request, Situation], bool]
    answer: ResponseType
    why: str


def _outside(request: Request, now: Situation) -> bool:
    """Misaligned, empty, or not entirely inside the usable region (no wrap: ints are exact)."""
    size = request.nb_blocks * now.blocks.block_size
    return (
        size == 0
        or request.addr % now.blocks.block_size != 0
        or request.addr < now.addr
        or request.addr + size > now.addr + now.usable_region_size
    )


def _beyond_target(request: Request, now: Situation) -> bool:
    size = request.nb_blocks * now.blocks.block_size
    return now.blocks.plugged_size + size > now.requested_size


def _some_plugged(request: Request, now: Situation) -> bool:
    return now.state(request) is not BlockState.UNPLUGGED


def _some_unplugged(request: Request, now: Situation) -> bool:
    return now.state(request) is not BlockState.PLUGGED


def _migrating(_: Request, now: Situation) -> bool:
    return now.migrating


def _migrating_some(_: Request, now: Situation) -> bool:
    """UNPLUG_ALL of nothing changes nothing, so it does no harm (reference A.7, row 6)."""
    return now.migrating and now.blocks.plugged_size > 0


OUTSIDE = Refusal(_outside, ResponseType.ERROR, "not whole blocks inside the usable region")
BEYOND_TARGET = Refusal(_beyond_target, ResponseType.NACK, "more than requested-size")
SOME_PLUGGED = Refusal(_some_plugged, ResponseType.ERROR, "a block is already plugged")
SOME_UNPLUGGED = Refusal(_some_unplugged, ResponseType.ERROR, "a block is already unplugged")
MIGRATING = Refusal(_migrating, ResponseType.BUSY, "the VM is being migrated")
MIGRATING_SOME = Refusal(_migrating_some, ResponseType.BUSY, MIGRATING.why)
UNKNOWN_TYPE = Refusal(lambda *_: True, ResponseType.ERROR, "unknown request type")

TABLE: dict[int, tuple[Refusal, ...]] = {
    RequestType.PLUG: (
        OUTSIDE,  # MEM-D-26
        BEYOND_TARGET,  # reference A.8-3
        SOME_PLUGGED,  # MEM-D-27
        MIGRATING,  # MEM-D-28
    ),
    RequestType.UNPLUG: (
        OUTSIDE,  # MEM-D-32
        SOME_UNPLUGGED,  # MEM-D-33; going below requested_size is fine (reference A.8-5)
        MIGRATING,  # MEM-D-34
    ),
    RequestType.UNPLUG_ALL: (  # MEM-D-39, even if nothing is plugged (reference A.8-9)
        MIGRATING_SOME,  # MEM-D-38
    ),
    RequestType.STATE: (
        OUTSIDE,  # MEM-D-44
    ),
}


def refusal(request: Request, now: Situation) -> Refusal | None:
    """The first row of the table that forbids `request`, or None: it may be done.

    A request of unknown type gets ERROR and not a broken device: the framing is sound, so the
    driver is best served with an answer (reference A.8-2).
    """
    for row in TABLE.get(request.type, (UNKNOWN_TYPE,)):
        if row.applies(request, now):
            return row
    return None
