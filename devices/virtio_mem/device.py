"""VirtioMem: serves the request queue, owns the sizes and the region's host memory.

What may be done is decided in answers.py; which blocks are plugged is kept in blocks.py.

    host sets requested_size -> config interrupt -> guest plugs or unplugs blocks -> plugged_size

Block states and contents survive a device reset (driver reload, kexec, kdump, suspend) and end with
a system reset (MEM-D-13, MEM-D-14, MEM-D-22).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

from minivmm.devices.virtio_mem import answers, messages
from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import UsageError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import LINUX_BLOCK_MAXIMUM, Window
from minivmm.memory.region import HUGE_ALIGNMENT, Region
from minivmm.spec.virtio_mem import (
    DEVICE_ID,
    BlockState,
    Feature,
    MemConfig,
    MemRequest,
    RequestType,
    ResponseType,
)
from minivmm.units import align_up
from minivmm.virtio.device import DeviceTraits, Signals, VirtioDevice
from minivmm.virtio.queue.queue import VirtQueue

_INSPECT_RANGES = 32
"""Most plugged ranges that inspect() lists."""


class VirtioMem(VirtioDevice):
    """`region` is host memory of `spec.size` bytes, seen by the guest at `window`."""

    traits = DeviceTraits(
        device_id=DEVICE_ID, name="virtio-mem", queue_sizes=(128,), config_size=MemConfig.SIZE
    )

    def __init__(self, spec: VirtioMemSpec, window: Window, region: Region) -> None:
        super().__init__(spec.id)
        self.spec = spec
        self.window = window
        """Guest physical addresses of the region."""
        self.region = region
        self.blocks = Blocks(spec.block_size, spec.size)
        self.requested_size = spec.requested_size
        """Bytes that the host wants the guest to have plugged."""
        self.usable_region_size = self._wanted_usable()
        """Bytes at the start of the region in which the guest may plug blocks."""
        self.on_size_change: Callable[[int], None] = lambda _size: None
        """Called with the new plugged_size whenever it changed."""
        self.answered: Counter[tuple[str, str]] = Counter()
        """How often a request of some kind got some answer: ("PLUG", "ACK") -> 3."""
        if spec.block_size < HUGE_ALIGNMENT:
            # A huge page would populate the unplugged neighbours of a plugged block.
            region.forbid_huge_pages()

    @property
    def block_size(self) -> int:
        """Bytes in a block."""
        return self.spec.block_size

    @property
    def region_size(self) -> int:
        """Bytes in the region: the most that can ever be plugged."""
        return self.spec.size

    @property
    def plugged_size(self) -> int:
        """Bytes that the guest has plugged."""
        return self.blocks.plugged_size

    # -- host side -------------------------------------------------------------------------------

    def set_requested_size(self, size: int) -> None:
        """Publish a new target in bytes. Raises UsageError, worded as QEMU words it.

        The guest is notified even if nothing changed (MEM-D-11): that pokes a driver which waits
        after BUSY, or which gave up for want of a free block (reference D.6).
        """
        if size < 0 or size % self.block_size:
            raise UsageError(
                f"'requested-size' has to be multiples of 'block-size' ({self.block_size:#x})"
            )
        if size > self.region_size:
            raise UsageError(
                f"'requested-size' cannot exceed the memory backend size({self.region_size:#x})"
            )
        self.requested_size = size
        self.usable_region_size = max(self.usable_region_size, self._wanted_usable())
        self.signals.trace("resize", requested=size, usable=self.usable_region_size)
        self.signals.config()

    def resident(self) -> int:
        """Bytes of host memory that the region occupies (Region.resident; walks the region)."""
        return self.region.resident()

    def inspect(self) -> dict[str, object]:
        """Sizes in bytes, plugged address ranges (the first few), and answers by request type."""
        answered: dict[str, dict[str, int]] = {}
        for (asked, answer), times in sorted(self.answered.items()):
            answered.setdefault(asked, {})[answer] = times
        return super().inspect() | {
            "memaddr": f"{self.window.base:#x}",
            "node": self.spec.node,
            "block-size": self.block_size,
            "region-size": self.region_size,
            "usable-region-size": self.usable_region_size,
            "requested-size": self.requested_size,
            "plugged-size": self.plugged_size,
            "plugged": [
                str(Window(self.window.base + first * self.block_size, count * self.block_size))
                for first, count in islice(self.blocks.plugged_ranges(), _INSPECT_RANGES)
            ],
            "answers": answered,
        }

    # -- Occupancy: what guest memory asks -------------------------------------------------------

    def covers(self, offset: int, length: int) -> bool:
        """Are [offset, offset + length) bytes of the region plugged, all of them? (MEM-D-17)"""
        first = offset // self.block_size
        count = (offset + length - 1) // self.block_size - first + 1
        return count < 1 or self.blocks.state(first, count) is BlockState.PLUGGED

    def plugged_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset, length) in bytes of plugged runs; `offset` and `length` are in whole blocks."""
        size = self.block_size
        for first, count in self.blocks.plugged_ranges(offset // size, length // size):
            yield first * size, count * size

    @property
    def readable(self) -> int:
        """Bytes that a driver may read unplugged, as it did not promise otherwise (MEM-D-20)."""
        return self.usable_region_size

    # -- transport side --------------------------------------------------------------------------

    def attach(self, memory: GuestMemory, signals: Signals) -> None:
        """Put the region into guest memory; only plugged blocks of it count as RAM for us."""
        super().attach(memory, signals)
        memory.add(self.window.base, self.region, name=self.identifier, occupancy=self)

    def offered_features(self) -> int:
        """ACPI_PXM (the SRAT always tells our node) and, unless off, UNPLUGGED_INACCESSIBLE.

        Private anonymous memory is safe to read when unplugged (MEM-D-20), so the latter is only
        insisted upon if the user says on; "auto" offers it so that drivers which can, keep away.
        PERSISTENT_SUSPEND is not offered: this machine has no suspend to RAM (MEM-D-15).
        """
        if self.spec.unplugged_inaccessible == "off":
            return Feature.ACPI_PXM
        return Feature.ACPI_PXM | Feature.UNPLUGGED_INACCESSIBLE

    def accept_features(self, features: int) -> bool:
        """False for drivers without UNPLUGGED_INACCESSIBLE if the user insists (MEM-D-12)."""
        insist = self.spec.unplugged_inaccessible == "on"
        if insist and not features & Feature.UNPLUGGED_INACCESSIBLE:
            self.signals.trace("refused", why="driver lacks UNPLUGGED_INACCESSIBLE")
            return False
        return super().accept_features(features)

    def config_space(self) -> bytes:
        """struct virtio_mem_config as of now."""
        return MemConfig(
            block_size=self.block_size,
            node_id=self.spec.node,
            addr=self.window.base,
            region_size=self.region_size,
            usable_region_size=self.usable_region_size,
            plugged_size=self.plugged_size,
            requested_size=self.requested_size,
        ).build()

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        """Answer every waiting request, each with an interrupt decision of its own.

        Raises DeviceBroken for buffers too short for a request or its answer.
        """
        for chain in queue.chains():
            response = self._answer(messages.read_request(chain))
            chain.write(response)
            queue.complete(chain, len(response))
            if queue.publish():
                self.signals.queue(index)

    def system_reset(self) -> None:
        """Unplug everything and shrink the usable region; the target stays (MEM-D-8, MEM-D-22).

        If the host refuses, blocks stay plugged and the next driver has to unplug them.
        """
        try:
            self._unplug_all(discard=self.region_size)
        except OSError as error:
            self.signals.trace("system-reset", why=str(error))

    # -- requests --------------------------------------------------------------------------------

    def _answer(self, request: MemRequest) -> bytes:
        """Do what `request` asks, if the table allows; the response's bytes."""
        now = answers.Situation(
            self.blocks, self.window.base, self.usable_region_size, self.requested_size
        )
        refusal = answers.refusal(request, now)
        if refusal:
            self._record(request, refusal.answer, refusal.why)
            return messages.response(refusal.answer)
        try:
            state = self._perform(request, now)
        except OSError as error:
            self._record(request, ResponseType.BUSY, str(error))
            return messages.response(ResponseType.BUSY)
        self._record(request, ResponseType.ACK)
        return messages.response(ResponseType.ACK, state)

    def _perform(self, request: MemRequest, now: answers.Situation) -> BlockState | None:
        """Do an allowed request, wholly or (OSError from the host) not at all; STATE's answer."""
        match request.type:
            case RequestType.STATE:
                return now.state(request)
            case RequestType.UNPLUG_ALL:
                self._unplug_all(discard=self.usable_region_size if self.plugged_size else 0)
            case RequestType.PLUG:
                # Nothing to do on the host: pages come with the first access, and are zeroes.
                self.blocks.plug(now.first_block(request), request.nb_blocks)
                self._plugged_size_changed()
            case RequestType.UNPLUG:
                offset = request.addr - self.window.base
                self.region.discard(offset, request.nb_blocks * self.block_size)
                self.blocks.unplug(now.first_block(request), request.nb_blocks)
                self._plugged_size_changed()
        return None

    def _unplug_all(self, *, discard: int) -> None:
        """Give back the first `discard` bytes, unplug all blocks, shrink the usable region.

        All plugged blocks lie in the usable region, so a guest's request need not walk more than
        that. The configuration changes without a notification, as MEM-D-9 and MEM-D-41 want it.
        Raises OSError, with no state changed.
        """
        had = self.plugged_size
        if discard:
            self.region.discard(0, discard)
        self.blocks.unplug_all()
        self.usable_region_size = self._wanted_usable()
        self.signals.config(notify=False)
        if had:
            self.on_size_change(0)

    def _plugged_size_changed(self) -> None:
        self.signals.config(notify=False)  # MEM-D-10: no interrupt, but a torn read must show
        self.on_size_change(self.plugged_size)

    def _wanted_usable(self) -> int:
        """The usable size that fits requested_size, multiple of the block size (reference D.3).

        The headroom holds one block of the largest size in which Linux on x86-64 adds memory,
        because it uses only whole ones; with less, it might silently plug nothing.
        """
        if self.requested_size == 0:
            return 0
        unit = max(LINUX_BLOCK_MAXIMUM, self.block_size)
        return min(self.region_size, align_up(self.requested_size, unit) + unit)

    def _record(self, request: MemRequest, answer: ResponseType, why: str = "") -> None:
        """Count and trace an answer."""
        known = request.type in answers.TABLE
        asked = RequestType(request.type).name if known else "UNKNOWN"
        self.answered[asked, answer.name] += 1
        fields: dict[str, object] = {"type": asked if known else request.type}
        if known and request.type != RequestType.UNPLUG_ALL:
            fields |= {"addr": f"{request.addr:#x}", "blocks": request.nb_blocks}
        fields |= {"answer": answer.name, "plugged": self.plugged_size}
        if why:
            fields["why"] = why
        self.signals.trace("request", **fields)
