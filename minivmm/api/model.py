"""A virtio-mem device as the host sees it: sizes, and rules by which it misbehaves."""

from __future__ import annotations

from typing import Any

from minivmm.api.engine import Engine
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.mischief import Mischief, mischief_of
from minivmm.devices.virtio_mem.mischief.others import ConfigAction, ConfigRule, InterruptRule
from minivmm.devices.virtio_mem.mischief.rules import RequestRule
from minivmm.devices.virtio_mem.mischief.turn import Action


class DeviceModel:
    """Sizes are bytes; rules want no lock, and act as soon as they are made."""

    def __init__(self, engine: Engine, device: VirtioMem) -> None:
        self._engine = engine
        self.device = device
        """The device model itself; touch it with the machine's lock held only (Vm.call)."""

    @property
    def id(self) -> str:
        """Its name."""
        return self.device.identifier

    @property
    def requested(self) -> int:
        """What the guest should have."""
        return self.device.requested_size

    @property
    def plugged(self) -> int:
        """What it has."""
        return self.device.plugged_size

    @property
    def usable(self) -> int:
        """Up to where it may plug, from the start of the region."""
        return self.device.usable_region_size

    @property
    def size(self) -> int:
        """The whole region."""
        return self.device.region_size

    @property
    def block_size(self) -> int:
        """The unit."""
        return self.device.block_size

    @property
    def address(self) -> int:
        """Guest physical address of the region."""
        return self.device.window.base

    @property
    def mischief(self) -> Mischief:
        """The rules by which it breaks the protocol; to `clear()` with the lock held."""
        with self._engine.loop.lock:
            return mischief_of(self.device)

    def on_request(
        self,
        kind: str | None = None,
        *actions: Action,
        gpa: tuple[int, int] | None = None,
        **when: Any,
    ) -> RequestRule:
        """Have `actions` (of minivmm.mischief) done at requests of `kind`: docs/misbehaviour.md.

        on_request("PLUG", mischief.answer("BUSY"), nth=2, times=3). Raises UsageError.
        """
        with self._engine.loop.lock:
            return mischief_of(self.device).on_request(kind, gpa=gpa, **when).do(*actions)

    def on_config(self, field: str, *actions: ConfigAction, **when: Any) -> ConfigRule:
        """The same at reads of a field of the configuration space ("block-size")."""
        with self._engine.loop.lock:
            return mischief_of(self.device).on_config(field, **when).do(*actions)

    def on_config_interrupt(self, times: int, **when: Any) -> InterruptRule:
        """Have configuration interrupts sent `times` times: mischief.drop(), mischief.repeat(2)."""
        with self._engine.loop.lock:
            return mischief_of(self.device).on_config_interrupt(**when).do(times)

    def __repr__(self) -> str:
        return f"<{self.id}: {self.plugged:#x} of {self.requested:#x} bytes plugged>"
