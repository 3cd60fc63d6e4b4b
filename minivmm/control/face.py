"""What the control socket needs of a running machine: types only; minivmm.machine fulfils them.

Everything here is called with the machine's lock held. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

EventListener = Callable[[str, dict[str, object]], None]
"""Called with a QMP event's name and data, from any thread."""


class Window(Protocol):
    """A range of guest physical addresses."""

    @property
    def base(self) -> int:
        """First guest physical address."""

    @property
    def size(self) -> int:
        """Length in bytes."""


class MemorySpec(Protocol):
    """What the user asked a memory device to be."""

    @property
    def node(self) -> int:
        """Guest NUMA node (ACPI proximity domain)."""

    @property
    def unplugged_inaccessible(self) -> str:
        """auto, on or off."""


class MemoryDevice(Protocol):
    """A virtio-mem device (devices/virtio_mem/device.py)."""

    @property
    def identifier(self) -> str:
        """The user's name for it, "vmem0"."""

    @property
    def spec(self) -> MemorySpec:
        """Its options."""

    @property
    def window(self) -> Window:
        """Where the guest sees the region."""

    @property
    def requested_size(self) -> int:
        """What the host wants plugged."""

    @property
    def plugged_size(self) -> int:
        """What the guest has plugged."""

    @property
    def usable_region_size(self) -> int:
        """How much of the region the guest may plug now."""

    @property
    def block_size(self) -> int:
        """Granularity of everything else."""

    def resident(self) -> int:
        """Bytes of the region that occupy host memory now."""

    def inspect(self) -> dict[str, object]:
        """Plain data; "answers" counts requests by type and answer."""

    def set_requested_size(self, size: int) -> None:
        """Ask the guest for `size`. Raises UsageError with QEMU's wording."""


class Agent(Protocol):
    """The guest's agent, as seen from the host (control/agent.py)."""

    @property
    def ready(self) -> bool:
        """It listens."""

    @property
    def kernel_release(self) -> str | None:
        """What `uname -r` says in the guest; None until it was ready once."""


class ControlledMachine(Protocol):
    """The running machine."""

    @property
    def name(self) -> str:
        """The VM's name."""

    @property
    def state(self) -> str:
        """A QEMU RunState: running, paused, prelaunch, shutdown, guest-panicked."""

    @property
    def boot_memory(self) -> int:
        """Memory that the guest was booted with."""

    @property
    def memory_devices(self) -> Mapping[str, MemoryDevice]:
        """virtio-mem devices by id."""

    @property
    def on_event(self) -> list[EventListener]:
        """Who is told of QMP events."""

    def pause(self) -> None:
        """Stop all vCPUs; harmless when they are stopped."""

    def resume(self) -> None:
        """Let them go on."""

    def request_reset(self) -> None:
        """Reset the machine soon."""

    def request_powerdown(self) -> None:
        """Press the power button."""

    def request_quit(self) -> None:
        """End the machine soon."""

    def inspect(self) -> dict[str, object]:
        """The state of all parts, as plain data."""


@dataclass(frozen=True)
class Context:
    """What commands act on: the machine, and the agent of its guest if there can be one."""

    machine: ControlledMachine
    agent: Agent | None = None
