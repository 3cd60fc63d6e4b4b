"""A machine with passed-on devices starts: is the host fit for them? Then DMA follows its memory.

The rules are in dma_limits.py, the mappings in dma.py.
"""

from __future__ import annotations

from collections.abc import Callable

from minivmm.board import Board
from minivmm.dma import DmaMappings
from minivmm.dma_limits import (
    SparseRegion,
    check_container,
    check_locked,
    lockable,
    why_no_memory,
)
from minivmm.errors import HostError
from minivmm.memory.guest import Slot
from minivmm.memory.region import HUGE_ALIGNMENT
from minivmm.vfio.container import Container


def follow_memory(
    board: Board, container: Container | None, warn: Callable[[str], None]
) -> DmaMappings | None:
    """Map memory of `board` in `container` from now on: RAM at once, blocks as they are plugged.

    Nothing is done without a container. `warn` gets a line if not all memory could be mapped.
    Raises HostError.
    """
    if container is None:
        return None
    memory, address_map = board.memory, board.address_map
    devices = [device.spec for device in board.memory_devices.values()]
    regions = [SparseRegion(one.id, address_map.regions[one.id], one.block_size) for one in devices]
    check_container(container, address_map.ram, regions)
    limit = lockable()
    ram = sum(window.size for window in address_map.ram)
    needed = ram + sum(one.requested_size for one in devices)
    warning = check_locked(needed, ram + sum(one.size for one in devices), limit)
    if warning:
        warn(warning)
    for slot in memory.slots:
        if slot.region.backing.kind == "file":
            _try_pinning(container, slot)
    mappings = DmaMappings(
        container, {one.name: one.block for one in regions}, lambda: why_no_memory(limit)
    )
    memory.subscribe(mappings, pins=True)
    return mappings


def _try_pinning(container: Container, slot: Slot) -> None:
    """Raises HostError if the host pins no memory of that file: most file systems allow it not.

    It is tried with a huge page, as file systems may allocate no less.
    """
    least = container.page_sizes & -container.page_sizes
    size = min(slot.region.size, max(HUGE_ALIGNMENT, least))
    try:
        slot.region.populate(0, size)
        container.map(slot.gpa, slot.region.hva, size)
        container.unmap(slot.gpa, size)
        slot.region.discard(0, size)
    except OSError as error:
        raise HostError(
            f"{slot.name}: the host does not let devices use memory of {slot.region.backing.path}"
            f" ({error.strerror or error}): use a file in a tmpfs, or another backing="
        ) from error
