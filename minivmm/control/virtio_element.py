"""x-query-virtio-queue-element: one entry of a split ring and its descriptors, read from the guest.

For people who debug drivers: it looks at whatever is there, live chain or leftover, as QEMU does.
To look is no access of the device: unplugged memory is not read, and nobody is blamed for it.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from minivmm.control.commands import command
from minivmm.control.face import Context
from minivmm.control.virtio_commands import check_queue, find, live_queue
from minivmm.errors import Refused
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio import Descriptor, DescriptorFlags, RingHeader
from minivmm.virtio.queue_registers import Part, QueueRegisters

SHOWN = 1024
"""Most descriptors of an answer: leftovers may be a loop."""

_FLAGS: dict[DescriptorFlags, Literal["next", "write", "indirect"]] = {
    DescriptorFlags.NEXT: "next",
    DescriptorFlags.WRITE: "write",
    DescriptorFlags.INDIRECT: "indirect",
}


class Described(TypedDict):
    """VirtioRingDesc: a buffer of `len` bytes at guest physical address `addr`."""

    addr: int
    len: int
    flags: list[Literal["next", "write", "indirect"]]


class Avail(TypedDict):
    """VirtioRingAvail; `ring` is the head of the chain."""

    flags: int
    idx: int
    ring: int


class Used(TypedDict):
    """VirtioRingUsed."""

    flags: int
    idx: int


class Element(TypedDict):
    """VirtioQueueElement."""

    name: str
    index: int
    descs: list[Described]
    avail: Avail
    used: Used


@command("x-query-virtio-queue-element")
def query_virtio_queue_element(
    context: Context, path: str, queue: int, index: int | None = None
) -> Element:
    """Entry `index` of the available ring; without, the one that the device looks at next."""
    function = find(context, path)
    transport, memory = function.transport, function.device.memory
    check_queue(transport, queue)
    registers = transport.queue_registers[queue]
    state = live_queue(transport, queue)
    if registers.packed:
        raise Refused("Packed ring not supported")
    if not state:
        raise Refused(f"Queue {queue} is not live: its driver has not set it up")
    at = (state["next-avail"] if index is None else index) % registers.size
    avail = _peek(memory, registers.address(Part.DRIVER), RingHeader.SIZE + 2 * registers.size)
    header = RingHeader.parse(avail)
    shown = RingHeader.parse(_peek(memory, registers.address(Part.DEVICE), RingHeader.SIZE))
    head = int.from_bytes(avail[RingHeader.SIZE + 2 * at :][:2], "little")
    return {
        "name": function.device.traits.name,
        "index": head,
        "descs": _chain(memory, registers, head),
        "avail": {"flags": header.flags, "idx": header.idx, "ring": head},
        "used": {"flags": shown.flags, "idx": shown.idx},
    }


def _chain(memory: GuestMemory, registers: QueueRegisters, head: int) -> list[Described]:
    """The descriptors from `head` on; those of an indirect table in place of what names it."""
    table, entries, at = registers.address(Part.DESCRIPTORS), registers.size, head
    found: list[Described] = []
    while at < entries and len(found) < SHOWN:
        one = Descriptor.parse(_peek(memory, table + Descriptor.SIZE * at, Descriptor.SIZE))
        if one.flags & DescriptorFlags.INDIRECT and table == registers.address(Part.DESCRIPTORS):
            table, entries, at = one.addr, one.len // Descriptor.SIZE, 0
            continue
        flags = [name for flag, name in _FLAGS.items() if one.flags & flag]
        found.append({"addr": one.addr, "len": one.len, "flags": flags})
        if not one.flags & DescriptorFlags.NEXT:
            break
        at = one.next
    return found


def _peek(memory: GuestMemory, gpa: int, length: int) -> bytes:
    """A copy of what lies at `gpa`. Raises Refused if that is not memory, or not plugged."""
    for slot in memory.slots:
        offset = gpa - slot.gpa
        inside = offset >= 0 and gpa + length <= slot.end
        if inside and (slot.occupancy is None or slot.occupancy.covers(offset, length)):
            return bytes(slot.region.peek(offset, length))
    raise Refused(f"{length} bytes at {gpa:#x}, where the queue leads, are no memory of the guest")
