"""An Ordeal of the memory device: its requests as descriptors, for drivers that misplace them."""

from __future__ import annotations

from minivmm.spec.virtio import DescriptorFlags
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.testing.ordeal import Ordeal, Outcome
from minivmm.testing.raw_ring import Raw
from minivmm.units import GIB, MIB

REGION, BLOCK = 4 * GIB, 2 * MIB
"""Where the region is, and its blocks, in bytes; 32 blocks may be plugged."""
UNPLUGGED = MemResponse(type=0, state=1).build()
"""What is answered if nobody plugged a block."""


class MemOrdeal(Ordeal):
    """Arguments are those of Ordeal."""

    def question(self, kind: int = RequestType.STATE, block: int = 0, count: int = 1) -> Raw:
        """A request as a readable buffer."""
        request = MemRequest(type=kind, addr=REGION + block * BLOCK, nb_blocks=count)
        return Raw(self.put(request.build()), MemRequest.SIZE)

    def room(self, size: int = MemResponse.SIZE) -> Raw:
        """A writable buffer of `size` bytes."""
        return Raw(self.put(b"\xee" * size), size, DescriptorFlags.WRITE)

    def plug(self, block: int, count: int) -> None:
        """By a proper request, behind which the ring is a new one."""
        request = MemRequest(
            type=RequestType.PLUG, addr=REGION + block * BLOCK, nb_blocks=count
        ).build()
        assert self.driver.request(0, request, MemResponse.SIZE) == bytes(MemResponse.SIZE)
        self.restart()

    def offer_table(self, *entries: Raw, flags: int = DescriptorFlags.INDIRECT) -> None:
        """A chain that is an indirect table of `entries`."""
        table = self.raw.table(*entries)
        self.raw.grant(*entries)
        self.raw.offer(Raw(self.put(table), len(table), flags))

    def expect_answer(
        self, reply: Raw, answer: bytes = UNPLUGGED, *, changes: bool = False
    ) -> None:
        """check() that exactly one request was answered, by `answer` at `reply`."""
        used = self.check(Outcome.ANSWERED, changes=changes)
        assert [length for _, length in used] == [MemResponse.SIZE]
        assert self.bench.memory.read(reply.gpa, MemResponse.SIZE) == answer
