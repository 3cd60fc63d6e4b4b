"""What a diagnosis looks at, as plain data: the device's own View, and GuestFacts from inside.

Sizes and addresses are bytes, times are seconds before now, None stands for "never" or "not known".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minivmm.devices.virtio_mem.activity import Activity, Run
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.memory.layout import LINUX_BLOCK_MAXIMUM, LINUX_BLOCK_MINIMUM
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_mem import ResponseType
from minivmm.units import GIB, align_down, align_up

_RESET = DeviceStatus(0)

_LARGE_GUEST = 64 * GIB
"""Linux on x86-64 adds memory in larger blocks if boot memory ends here or above (D.3)."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the device model itself does not know: its transport, the machine around it."""

    status: DeviceStatus = _RESET
    """What its driver has written so far, and NEEDS_RESET."""
    trouble: str = ""
    """Why NEEDS_RESET was set."""
    phys_bits: int = 64
    """Width of the guest's physical addresses."""
    boot_end: int = 0
    """End of boot memory, a guest physical address."""
    online: str | None = None
    """memhp_default_state= that the machine was booted with."""
    pci_address: str = ""
    """As the guest calls the function: 0000:00:02.0."""
    running: bool = True
    """Do the vCPUs run?"""
    queues: tuple[Mapping[str, object], ...] = ()
    """Live queues: "index", and what each format tells of itself (VirtQueue.inspect)."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A device at one moment, as seen from the host."""

    id: str
    base: int
    """Guest physical address of the region."""
    region_size: int
    usable: int
    requested: int
    plugged: int
    block_size: int
    around: Surroundings
    answers: dict[tuple[str, str], int]
    """("PLUG", "ACK") -> times, since the target last changed."""
    moved: int
    """Bytes plugged less those unplugged since then."""
    run: Run | None
    """The latest answers of one kind in a row."""
    run_seconds: float
    """How long they have been coming."""
    since_target: float
    since_config: float | None
    since_request: float | None
    since_progress: float | None
    since_change: float | None
    missing_features: int
    has_room: bool | None
    """After BUSY: could the host give what was asked for last?"""
    at_work: bool
    """Is the host at work on a request?"""

    @property
    def end(self) -> int:
        """First guest physical address after the region."""
        return self.base + self.region_size

    @property
    def live(self) -> bool:
        """Does a driver drive the device?"""
        return bool(self.around.status & DeviceStatus.DRIVER_OK)

    @property
    def idle(self) -> float:
        """Seconds since anything happened that a driver might still be busy with."""
        times = (self.since_target, self.since_config, self.since_request)
        return min(seconds for seconds in times if seconds is not None)

    @property
    def linux_block(self) -> int:
        """Unit in which Linux on x86-64 adds memory to a guest of this size, in bytes (D.3).

        Right for kernels that see CPUID's HYPERVISOR bit, which minivmm sets.
        """
        end = self.around.boot_end
        if end < _LARGE_GUEST:
            return LINUX_BLOCK_MINIMUM
        return min(LINUX_BLOCK_MAXIMUM, end & -end)

    def capacity(self, unit: int) -> int:
        """Bytes of the usable region that consist of whole, aligned units of `unit` bytes."""
        first = align_up(self.base, unit)
        return max(0, align_down(self.base + self.usable, unit) - first)

    def count(self, request: str, answer: str) -> int:
        """How often `request` was answered with `answer` since the target last changed."""
        return self.answers.get((request, answer), 0)


@dataclass(frozen=True, kw_only=True)
class GuestFacts:
    """One device as Linux in the guest sees it; a guest may tell anything."""

    memory_block: int | None = None
    """Bytes in a memory block of Linux (block_size_bytes)."""
    policy: str | None = None
    """auto_online_blocks."""
    driver: str | None = None
    """bound, unbound, or missing if the kernel has no virtio_mem."""
    online: int | None = None
    offline: int | None = None
    """Memory blocks of the region by state."""
    kernel_zone: int | None = None
    """Online ones whose memory need not be movable."""
    available: int | None = None
    """MemAvailable of the guest."""
    log: tuple[str, ...] = ()
    """The driver's last lines in the kernel's log."""


def observe(device: VirtioMem, around: Surroundings) -> View:
    """`device` now. Use with the machine's lock held; cost does not grow with the region."""
    activity = device.activity
    now = activity.clock()

    def ago(then: float | None) -> float | None:
        return None if then is None else now - then

    run = activity.run
    return View(
        id=device.identifier,
        base=device.window.base,
        region_size=device.region_size,
        usable=device.usable_region_size,
        requested=device.requested_size,
        plugged=device.plugged_size,
        block_size=device.block_size,
        around=around,
        answers=dict(activity.answers),
        moved=activity.moved * device.block_size,
        run=run,
        run_seconds=now - run.began if run else 0.0,
        since_target=now - activity.target_at,
        since_config=ago(activity.config_at),
        since_request=ago(activity.request_at),
        since_progress=ago(activity.progress_at),
        since_change=ago(activity.change_at),
        missing_features=activity.missing_features,
        has_room=_has_room(device, activity),
        at_work=device.at_work,
    )


def _has_room(device: VirtioMem, activity: Activity) -> bool | None:
    run = activity.run
    if run is None or run.answer is not ResponseType.BUSY:
        return None
    return device.region.room_for(run.blocks * device.block_size)
