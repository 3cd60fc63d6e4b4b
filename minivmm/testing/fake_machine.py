"""FakeMachine: what the control socket and the command line see of a machine, without a guest.

Its virtio-mem devices are real ones whose guest is `plug` and `unplug`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from minivmm.boot.nodes import Node, Topology
from minivmm.devices.spec import qom_path
from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.devices.virtio_mem.view import Surroundings, View, observe
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.pci.function import PciFunction
from minivmm.spec.virtio import DeviceStatus
from minivmm.testing.mem_driver import MemDriver
from minivmm.trace import Trace
from minivmm.units import GIB, MIB

FIRST_REGION = 4 * GIB
REGION_STRIDE = 64 * GIB
"""Devices are laid out by this rule, far enough from each other."""
LINUX_BLOCKS = 64
"""Blocks that Linux asks for at a time: 128 MiB, if they have 2 MiB."""


class GuestSignals:
    """Signals of a device that is in no transport: events are kept, and a guest may listen."""

    def __init__(self, identifier: str, trace: Trace, on_config: Callable[[str], None]) -> None:
        self._identifier = identifier
        self._trace = trace
        self._on_config = on_config

    def queue(self, index: int) -> None:
        """Nobody looks at used buffers."""

    def config(self, *, notify: bool = True) -> None:
        """The configuration interrupt."""
        if notify:
            self._on_config(self._identifier)

    def kick(self, index: int) -> None:
        """There is no queue to look at again."""

    def trace(self, name: str, **fields: object) -> None:
        """As a transport does."""
        self._trace.emit(self._identifier, name, **fields)


class FakeAgent:
    """A guest agent that is ready or not, as the test wants it."""

    ready = False
    kernel_release: str | None = None


class FakeMachine:
    """Does as told at once, and remembers it in `calls`. Methods want `lock` held."""

    def __init__(self, name: str = "vm1", devices: Sequence[VirtioMemSpec] = ()) -> None:
        self.name = name
        self.state = "running"
        self.boot_memory = 512 * MIB
        self.memslots = 1
        self.thread_ids: Sequence[int] = (4711,)
        self.functions: Sequence[PciFunction] = ()
        """What it has on PCI: nothing, unless a test puts a board's here."""
        self.numa = Topology((Node((0,), 512 * MIB),))
        self.lock = threading.RLock()
        self.agent = FakeAgent()
        self.calls: list[str] = []
        self.on_event: list[Callable[[str, dict[str, object]], None]] = []
        self.on_quit: Callable[[], None] = lambda: None
        self.trace = Trace()
        self.powers_down = True
        """Whether its guest obeys the power button."""
        self.follows = False
        """Whether its guest plugs and unplugs what is requested, at once, by requests."""
        self.around = Surroundings(
            status=DeviceStatus(0xF), phys_bits=46, boot_end=self.boot_memory, pci_address="0:2.0"
        )
        """What its devices are surrounded by; by default a driver that is up."""
        memory = GuestMemory()
        self.balloon: VirtioBalloon | None = None
        self.memory_devices: dict[str, VirtioMem] = {}
        for index, spec in enumerate(devices):
            window = Window(FIRST_REGION + index * REGION_STRIDE, spec.size)
            device = VirtioMem(spec, window, Region(spec.size, spec.host_memory))
            device.attach(memory, GuestSignals(spec.id, self.trace, self._on_config))
            self.memory_devices[spec.id] = device

    def plug(self, identifier: str, size: int) -> None:
        """The guest plugs until it has `size` bytes, from the start of the region."""
        device = self.memory_devices[identifier]
        have, want = (n // device.block_size for n in (device.plugged_size, size))
        device.blocks.plug(have, want - have)
        self._size_changed(device)

    def unplug(self, identifier: str, size: int) -> None:
        """The guest unplugs until it has `size` bytes, from the end of what it has."""
        device = self.memory_devices[identifier]
        have, want = (n // device.block_size for n in (device.plugged_size, size))
        device.blocks.unplug(want, have - want)
        self._size_changed(device)

    def emit(self, name: str, data: dict[str, object] | None = None) -> None:
        """Tell all listeners of a QMP event."""
        for listener in list(self.on_event):
            listener(name, data or {})

    def view(self, identifier: str) -> View:
        """As Machine does, with `around`."""
        return observe(self.memory_devices[identifier], self.around)

    def pause(self) -> None:
        """As Machine does."""
        if self.state == "running":
            self.state = "paused"
            self.emit("STOP")

    def resume(self) -> None:
        """As Machine does."""
        if self.state == "paused":
            self.state = "running"
            self.emit("RESUME")

    def send_break(self) -> None:
        """Only remembered."""
        self.calls.append("break")

    def request_reset(self) -> None:
        """Only remembered and told."""
        self.calls.append("reset")
        self.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})

    def request_powerdown(self) -> None:
        """Ends if the guest is one that obeys."""
        self.calls.append("powerdown")
        self.emit("POWERDOWN")
        if self.powers_down:
            self._end("guest-shutdown")

    def request_quit(self) -> None:
        """Ends."""
        self.calls.append("quit")
        self._end("host-qmp-quit")

    def inspect(self) -> dict[str, object]:
        """A small tree."""
        return {"name": self.name, "state": self.state}

    def _on_config(self, identifier: str) -> None:
        """The driver's part: as many requests as it takes, each for so many blocks as Linux's."""
        if not self.follows:
            return
        device = self.memory_devices[identifier]
        driver, want = MemDriver(device), device.requested_size // device.block_size
        have = device.plugged_size // device.block_size
        for first in range(have, want, LINUX_BLOCKS):
            driver.plug(first, min(LINUX_BLOCKS, want - first))
        for first in reversed(range(want, have, LINUX_BLOCKS)):
            driver.unplug(first, min(LINUX_BLOCKS, have - first))
        self._size_changed(device)

    def _end(self, reason: str) -> None:
        self.state = "shutdown"
        self.emit("SHUTDOWN", {"guest": reason.startswith("guest"), "reason": reason})
        self.on_quit()

    def _size_changed(self, device: VirtioMem) -> None:
        path = qom_path(device.identifier)
        size = device.plugged_size
        data: dict[str, object] = {"id": device.identifier, "size": size, "qom-path": path}
        self.emit("MEMORY_DEVICE_SIZE_CHANGE", data)
