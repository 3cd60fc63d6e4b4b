"""VirtioMem: what the driver sees of the device, and what the host wants of it.

    host sets requested_size -> config interrupt -> guest plugs or unplugs blocks -> plugged_size

Requests are served by service.py, sizes and blocks are kept in state.py. Block states and contents
survive a device reset (driver reload, kexec, kdump, suspend) and end with a system reset (MEM-D-13,
MEM-D-14, MEM-D-22).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from minivmm.devices.virtio_mem.activity import Activity
from minivmm.devices.virtio_mem.answers import MIGRATING
from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.devices.virtio_mem.host_side import HostSide
from minivmm.devices.virtio_mem.intruders import Intruders
from minivmm.devices.virtio_mem.ledger import Ledger
from minivmm.devices.virtio_mem.saved import judge
from minivmm.devices.virtio_mem.service import Service
from minivmm.devices.virtio_mem.shortage import Shortage
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.devices.virtio_mem.state import Range, RegionState
from minivmm.devices.virtio_mem.tap import tell_requests
from minivmm.errors import HostError, UsageError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.saved import Form, build, parse
from minivmm.spec.virtio_mem import DEVICE_ID, Feature, MemConfig
from minivmm.virtio.device import DeviceTraits, Signals, VirtioDevice
from minivmm.virtio.errands import Errands
from minivmm.virtio.queue.queue import VirtQueue
from minivmm.virtio.tap import Tap

_FORM = Form("minivmm.devices.virtio_mem.saved_forms", "MEM")
_INSPECT_RANGES = 32
"""Most plugged ranges that inspect() lists."""


class VirtioMem(VirtioDevice):
    """`region` is host memory of `spec.size` bytes, seen by the guest at `window`."""

    traits = DeviceTraits(
        device_id=DEVICE_ID, name="virtio-mem", queue_sizes=(128,), config_size=MemConfig.SIZE
    )

    def __init__(self, spec: VirtioMemSpec, window: Window, region: Region) -> None:
        super().__init__(spec.id, spec)
        self.spec = spec
        self.window = window
        """Guest physical addresses of the region."""
        self.region = region
        self.state = RegionState(spec, window)
        self.intruders = Intruders(
            block_size=spec.block_size,
            window=window,
            region=region,
            occupancy=self.state,
            trace=lambda name, **fields: self.signals.trace(name, **fields),
        )
        """The BusDevice for the window: gets what vCPUs do where KVM has no memory."""
        self.state.on_refused = self.intruders.dma
        self.on_size_change: Callable[[int], None] = lambda _size: None
        """Called with the new plugged_size whenever it changed."""
        self.activity = Activity()
        self.ledger = Ledger(self.activity, spec.block_size)
        self.shortage = Shortage(region.room_for, self.kick)
        self._told_size = 0
        self._guarded_for: int | None = None

    @property
    def block_size(self) -> int:
        """Bytes in a block."""
        return self.spec.block_size

    @property
    def region_size(self) -> int:
        """Bytes in the region: the most that can ever be plugged."""
        return self.spec.size

    @property
    def usable_region_size(self) -> int:
        """Bytes at the start of the region in which the guest may plug blocks."""
        return self.state.usable_region_size

    @property
    def requested_size(self) -> int:
        """Bytes that the host wants the guest to have plugged."""
        return self.state.requested_size

    @property
    def blocks(self) -> Blocks:
        """Which blocks are plugged."""
        return self.state.blocks

    @property
    def plugged_size(self) -> int:
        """Bytes that the guest has plugged."""
        return self.blocks.plugged_size

    @property
    def at_work(self) -> bool:
        """Does the host work on a request, so that the driver has to wait?"""
        return self.service.at_work

    # -- host side -------------------------------------------------------------------------------

    def use(self, errands: Errands) -> None:
        """Have long work done by `errands` from now on, instead of at once."""
        super().use(errands)
        self.service.errands = errands
        self.shortage.later = errands.later

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
        state = self.state
        state.requested_size = size
        state.usable_region_size = max(state.usable_region_size, state.wanted_usable())
        self._guard_unplugged()
        self.activity.target_changed(size)
        self.shortage.over()
        self.signals.trace(
            "resize", **{"requested-size": size, "usable-size": state.usable_region_size}
        )
        self.kick()

    def kick(self) -> None:
        """Send a configuration interrupt: it ends a driver's wait for a retry (reference D.6)."""
        self.activity.config_sent()
        self.signals.config()

    @property
    def migrating(self) -> bool:
        """Is the machine on its way to another process?"""
        return self.state.migrating

    @migrating.setter
    def migrating(self, going: bool) -> None:
        """While it is, no block changes: PLUG, UNPLUG and UNPLUG_ALL are BUSY, STATE answers.

        What the host is at work on (`at_work`) ends as it had begun. Follow the end by `kick`: a
        driver that was told BUSY is waiting (MEM-D-28, MEM-D-34, MEM-D-38).
        """
        self.state.migrating = going

    def resident(self) -> int:
        """Bytes of host memory that the region occupies."""
        return self.region.usage().resident

    def inspect(self) -> dict[str, object]:
        """Sizes in bytes, plugged address ranges (the first few), and answers by request type."""
        spec = self.spec
        return super().inspect() | {
            "memaddr": f"{self.window.base:#x}",
            "node": spec.node,
            "block-size": self.block_size,
            "region-size": self.region_size,
            "usable-region-size": self.usable_region_size,
            "requested-size": self.requested_size,
            "plugged-size": self.plugged_size,
            "plugged": [
                str(Window(self.window.base + first * self.block_size, count * self.block_size))
                for first, count in islice(self.blocks.plugged_ranges(), _INSPECT_RANGES)
            ],
            "answers": self.ledger.counts(),
            "backing": spec.backing,
            "prealloc": self.host_side.populates,
            "protect": spec.protect,
            "short-of": self.shortage.short_of,
            "intrusions": self.intruders.inspect(),
        }

    # -- transport side --------------------------------------------------------------------------

    def attach(self, memory: GuestMemory, signals: Signals) -> None:
        """Put the region into guest memory; only plugged blocks of it count as RAM for us."""
        super().attach(memory, signals)
        spec = self.spec
        self.slot = memory.add(
            self.window.base, self.region, name=self.identifier, occupancy=self.state
        )
        self.host_side = HostSide(
            memory, self.slot, populate=spec.populates, guarded=spec.protect != "off"
        )
        self.service = Service(
            self.state,
            self.host_side,
            signals,
            ledger=self.ledger,
            shortage=self.shortage,
            on_change=self._on_change,
        )
        self._guard_unplugged()

    def follow(self, tap: Tap | None) -> None:
        """Tell what requests ask for, and what they cost the host, or no longer."""
        base, block = self.window.base, self.block_size
        tell_requests(self.service, self.host_side, self.signals, tap, base=base, block=block)

    def sizes(self) -> dict[str, int]:
        """What is plugged, what is wanted, and where it may be plugged; bytes."""
        return {
            "plugged-size": self.plugged_size,
            "requested-size": self.requested_size,
            "usable-size": self.usable_region_size,
        }

    def offered_features(self) -> int:
        """ACPI_PXM (the SRAT always tells our node) and, unless off, UNPLUGGED_INACCESSIBLE.

        PERSISTENT_SUSPEND is not offered: this machine has no suspend to RAM (MEM-D-15).
        """
        if self.spec.unplugged_inaccessible == "off":
            return Feature.ACPI_PXM
        return Feature.ACPI_PXM | Feature.UNPLUGGED_INACCESSIBLE

    def accept_features(self, features: int) -> bool:
        """False for drivers without UNPLUGGED_INACCESSIBLE if it has to be (MEM-D-12, A.8-15)."""
        promised = bool(features & Feature.UNPLUGGED_INACCESSIBLE)
        if self.spec.insists and not promised:
            self.activity.features_refused(Feature.UNPLUGGED_INACCESSIBLE)
            self.signals.trace("refused", why="driver lacks UNPLUGGED_INACCESSIBLE")
            return False
        self.state.unpromised = not promised
        self._guard_unplugged()
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
        """Serve the requests that wait. Raises DeviceBroken for malformed ones."""
        self.service.serve(queue)

    def conclude(self) -> None:
        """Answer what the host has done its part for."""
        self.service.conclude()

    def forget_queue(self, index: int) -> None:
        """What the driver asked for last is finished first (GEN-D-7)."""
        self.service.finish()

    def reset(self) -> None:
        """The driver is gone; what it asked for last is finished first (MEM-D-13, GEN-D-5)."""
        self.service.finish()
        self.activity.driver_gone()

    def system_reset(self) -> None:
        """Unplug everything and shrink the usable region; the target stays (MEM-D-8, MEM-D-22).

        If the host refuses, or the machine is being migrated, blocks stay plugged and the next
        driver has to unplug them (UNPLUG_ALL).
        """
        self.state.unpromised = False
        why = MIGRATING.why if self.migrating else self.service.unplug_everything()
        if why:
            self.signals.trace("system-reset", why=str(why))
            self._guard_unplugged()

    # -- saved state -----------------------------------------------------------------------------

    def save_state(self) -> bytes:
        """Sizes, plugged blocks, and what there is to tell of the driver; not their content."""
        return build(
            _FORM,
            features=self.features,
            requested_size=self.requested_size,
            usable_region_size=self.usable_region_size,
            unpromised=self.state.unpromised,
            runs=list(self.blocks.plugged_ranges()),
            counts=self.ledger.save(),
            activity=self.activity.save(),
            short_of=self.shortage.short_of,
            short_why=self.shortage.why,
            **self.intruders.save(self.activity.clock()),
        )

    def load_state(self, data: bytes) -> None:
        """Plug the same blocks, and remember the same. Raises BadState or HostError.

        Blocks that are plugged already keep their content, those that are not to be lose it.
        """
        name = self.identifier
        saved = parse(name, _FORM, data)
        judge(name, saved, self.state, insists=self.spec.insists)
        self.features = saved.features
        self.ledger.load(name, saved.counts)
        self.activity.load(name, saved.activity)
        self.intruders.load(saved, self.activity.clock())
        error = self.service.plug_exactly(saved.runs)
        if error:
            raise HostError(f"{name}: the host cannot plug what was plugged: {error}") from error
        self.state.requested_size = saved.requested_size
        self.state.usable_region_size = saved.usable_region_size
        self.state.unpromised = saved.unpromised
        self._guard_unplugged()
        self._told_size = self.plugged_size
        self.shortage.load(saved.short_of, saved.short_why)

    # -- inside ----------------------------------------------------------------------------------

    def _on_change(self, unplugged: Sequence[Range]) -> None:
        now, size = self.activity.clock(), self.block_size
        for offset, length in unplugged:
            self.intruders.unplugged(offset // size, length // size, now)
        self._guard_unplugged()  # the usable region may have shrunk
        self._tell_size()

    def _tell_size(self) -> None:
        """A torn read must show, but plugging needs no interrupt (MEM-D-9, MEM-D-10)."""
        self.signals.config(notify=False)
        if self._told_size != self.plugged_size:
            self._told_size = self.plugged_size
            self.on_size_change(self.plugged_size)

    def _guard_unplugged(self) -> None:
        """Follow a change of what may be read; what the host refuses to guard stays as it was."""
        readable = self.state.readable
        if readable == self._guarded_for:
            return
        self._guarded_for = None
        try:
            self.host_side.guard(readable, self.state.unplugged_ranges())
            self._guarded_for = readable
        except OSError as error:
            self.signals.trace("unguarded", why=str(error))
