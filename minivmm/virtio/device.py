"""The contract between a virtio device model and its transport.

A device knows guest memory, its queues and "signal"; not PCI, KVM, sockets, threads or the loop.

    attach -> [driver negotiates: accept_features] -> handle_queue ... -> reset -> ...

All methods run with the machine's lock held.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from minivmm.memory.guest import GuestMemory
from minivmm.saved import Form, build, parse
from minivmm.virtio.errands import Errands, Inline
from minivmm.virtio.options import VirtioOptions
from minivmm.virtio.queue.queue import VirtQueue
from minivmm.virtio.tap import Tap

_FORM = Form("minivmm.virtio.saved_forms", "PLAIN")


@dataclass(frozen=True)
class DeviceTraits:
    """What the transport must know of a device model; data, not methods."""

    device_id: int
    """Virtio device id (virtio-spec 5): 24 is virtio-mem."""
    name: str
    """Short name for traces: "virtio-mem"."""
    queue_sizes: tuple[int, ...]
    """Largest size of every queue, in descriptors; powers of two. VirtioOptions may overrule it."""
    config_size: int
    """Bytes of device configuration space; 0 if there is none."""
    pci_class: int = 0x00FF00
    """24-bit PCI class code."""
    vectors: int | None = None
    """MSI-X vectors, at least 2; None: one for each queue and one for configuration changes.

    Every vector costs a driver some ten exits to set up, so a device with many quiet queues offers
    two, which drivers then share (Linux drivers/virtio/virtio_pci_common.c, vp_find_vqs).
    """


class Signals(Protocol):
    """What a device may tell the outside world."""

    def queue(self, index: int) -> None:
        """Used buffers of queue `index` want attention: raise its interrupt."""

    def config(self, *, notify: bool = True) -> None:
        """Configuration space changed. With `notify`, raise a configuration interrupt as well."""

    def kick(self, index: int) -> None:
        """Run handle_queue for queue `index` now, as if the driver had kicked it.

        For work that the host side starts (input for the guest). Does nothing unless the queue is
        live; a malformed ring is dealt with as for any kick, so this never raises. May be called
        while another queue, or the same one, is being handled.
        """

    def trace(self, name: str, **fields: object) -> None:
        """Emit a trace event with this device as its source."""


class VirtioDevice(ABC):
    """Base of every device model; see devices/virtio_mem for the flagship."""

    traits: ClassVar[DeviceTraits]

    def __init__(self, identifier: str, options: VirtioOptions | None = None) -> None:
        self.identifier = identifier
        """The user's name for this device ("vmem0"), unique in a machine."""
        self.options = options or VirtioOptions()
        """Switches for the transport; device specs are such options."""
        self.features = 0
        """All bits that the driver chose last."""
        self.errands: Errands = Inline()
        """Does what may take long, and reminds; the machine's own once it said `use`."""

    def use(self, errands: Errands) -> None:
        """Have long work done by `errands` from now on, instead of at once."""
        self.errands = errands

    def follow(self, tap: Tap | None) -> None:  # noqa: B027 - most have nothing to add
        """Somebody begins to follow requests, or (None) nobody does any more: tell more, or not."""

    def sizes(self) -> dict[str, int]:
        """Sizes in bytes that events of this device are shown with, by QMP's names; quick."""
        return {}

    def attach(self, memory: GuestMemory, signals: Signals) -> None:
        """Called once, before the guest runs. Overriders call it and may keep more."""
        self.memory = memory
        self.signals = signals

    @abstractmethod
    def offered_features(self) -> int:
        """Device-type specific feature bits offered (bits 0..23 and 50..127)."""

    def accept_features(self, features: int) -> bool:
        """The driver chose `features` (all bits). False leaves FEATURES_OK clear (GEN-D-3)."""
        self.features = features
        return True

    def config_space(self) -> bytes:
        """Current configuration space, exactly traits.config_size bytes."""
        return b""

    def read_config(self, offset: int, size: int) -> bytes:
        """The driver reads `size` bytes at `offset` of it; fewer behind its end."""
        return self.config_space()[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:  # noqa: B027 - most ignore writes
        """The driver wrote `data` at `offset` of the configuration space."""

    def start(self, queues: tuple[VirtQueue | None, ...]) -> None:  # noqa: B027
        """DRIVER_OK was set. `queues` has None for queues that the driver did not enable."""

    @abstractmethod
    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        """The driver kicked queue `index`, which is live."""

    def conclude(self) -> None:  # noqa: B027
        """Answer what the host's work aside of the lock is over for; begin nothing new.

        Called in place of handle_queue while the machine is about to stand still.
        """

    def forget_queue(self, index: int) -> None:  # noqa: B027
        """The driver reset queue `index` alone: drop its chains, finish its work (GEN-D-7)."""

    def reset(self) -> None:  # noqa: B027
        """Device reset: forget the driver. Never changes virtio-mem block state (MEM-D-13)."""

    def on_broken(self) -> None:  # noqa: B027
        """Device or driver has given up: queues are closed until `reset` (GEN-D-2)."""

    def system_reset(self) -> None:  # noqa: B027
        """The whole machine resets; called after `reset`."""

    # -- saved state (minivmm.saved); no request is under way --------------------------------------

    def save_state(self) -> bytes:
        """What a model in another process needs to go on; rings are the transport's.

        Overriders save `features`, too, in a form of their own.
        """
        return build(_FORM, features=self.features)

    def load_state(self, data: bytes) -> None:
        """Take it over; `adopt` follows. Raises BadState, or HostError for what this host lacks."""
        self.features = parse(self.identifier, _FORM, data).features

    def adopt(self, queues: tuple[VirtQueue | None, ...]) -> None:  # noqa: B027
        """The transport was loaded, and these queues live: take back their chains in flight."""

    def on_restored(self) -> None:  # noqa: B027
        """The guest goes on in this process, in which nobody knows its driver yet."""

    def close(self) -> None:  # noqa: B027
        """The machine is gone, and its errands are over: release what the host gave."""

    def inspect(self) -> dict[str, object]:
        """Plain data about the device's state, for people."""
        return {"id": self.identifier, "type": self.traits.name}
