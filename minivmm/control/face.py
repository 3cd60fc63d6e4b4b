"""What the control socket needs of a running machine: types only.

minivmm.machine.Machine and control/agent.py fulfil them, and so do the fakes of minivmm.testing.
Everything here is called with the machine's lock held. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from minivmm.boot.nodes import Topology
    from minivmm.devices.virtio_balloon.device import VirtioBalloon
    from minivmm.devices.virtio_mem.device import VirtioMem
    from minivmm.devices.virtio_mem.view import View
    from minivmm.machine import EventListener
    from minivmm.migration.migration import Migration
    from minivmm.pci.function import PciFunction
    from minivmm.snapshot.desk import Desk
    from minivmm.trace import Trace


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
    def numa(self) -> Topology:
        """Nodes of CPUs and boot memory."""

    @property
    def thread_ids(self) -> Sequence[int]:
        """The host's id of each vCPU's thread, by vCPU; 0 before the machine starts."""

    @property
    def functions(self) -> Sequence[PciFunction]:
        """What is on PCI bus 0, by slot."""

    @property
    def memslots(self) -> int:
        """How many memslots KVM has for its memory."""

    @property
    def memory_devices(self) -> Mapping[str, VirtioMem]:
        """virtio-mem devices by id."""

    @property
    def balloon(self) -> VirtioBalloon | None:
        """The memory balloon."""

    def view(self, identifier: str) -> View:
        """Memory device `identifier` as it is now, for a diagnosis."""

    @property
    def trace(self) -> Trace:
        """What happened lately."""

    @property
    def on_event(self) -> list[EventListener]:
        """Who is told of QMP events."""

    def pause(self) -> None:
        """Stop all vCPUs; harmless when they are stopped."""

    def resume(self) -> None:
        """Let them go on."""

    def send_break(self) -> None:
        """A break on the serial console."""

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
    """What commands act on: the machine, the agent of its guest, and how it can move.

    What moves and saves it is made when it is first asked for.
    """

    machine: ControlledMachine
    agent: Agent | None = None
    migration: Callable[[], Migration] | None = None
    snapshots: Callable[[], Desk] | None = None
