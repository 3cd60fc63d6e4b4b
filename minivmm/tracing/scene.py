"""Scene: what a trace tells of its machine beside events: header, sizes of devices, guest time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.machine import Machine
from minivmm.machine_spec import spec_to_json
from minivmm.trace import Trace
from minivmm.tracing import SCHEMA
from minivmm.tracing.wish import Wish
from minivmm.version import __version__
from minivmm.virtio.device import VirtioDevice

MOST_RANGES = 4096
"""Plugged ranges of a device that a header lists."""

CLOCK_INTERVAL = 1.0
"""Seconds after which the guest's clock is compared with the host's once more."""


class Scene:
    """One machine's; `clock` gives the guest's clock in seconds, None if it has none."""

    def __init__(
        self,
        trace: Trace,
        *,
        name: str,
        cpus: int,
        spec: Mapping[str, object],
        devices: Sequence[VirtioDevice],
        clock: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.trace = trace
        self._about = {"name": name, "cpus": cpus, "spec": dict(spec)}
        self._devices = list(devices)
        self._sizes = {device.identifier: device.sizes for device in devices if device.sizes()}
        self._clock = clock
        self._offset: float | None = None
        self._compared: float | None = None

    def header(self, wish: Wish) -> dict[str, object]:
        """The first line of a stream that begins now. The machine's lock is held."""
        return {
            "schema": SCHEMA,
            "minivmm": __version__,
            **self._about,
            "devices": [_describe(device) for device in self._devices],
            "clock": {"wall": self.trace.wall, "monotonic": self.trace.began},
            "t": round(time.monotonic() - self.trace.began, 6),
            **wish.to_json(),
        }

    def sizes(self, source: str) -> dict[str, int] | None:
        """The sizes of device `source` as of now, if it has any."""
        found = self._sizes.get(source)
        return None if found is None else found()

    def guest_time(self, moment: float) -> float | None:
        """The guest's clock at `moment` of CLOCK_MONOTONIC, both in seconds.

        Both clocks run alike but for the host's being adjusted, so they are compared rarely.
        """
        if self._compared is None or moment - self._compared > CLOCK_INTERVAL:
            before = time.monotonic()
            clock = self._clock()
            self._compared = moment
            self._offset = None if clock is None else clock - (before + time.monotonic()) / 2
        return None if self._offset is None else moment + self._offset


def scene_of(machine: Machine) -> Scene:
    """The scene of a machine that was built."""
    return Scene(
        machine.trace,
        name=machine.name,
        cpus=machine.spec.cpus,
        spec=spec_to_json(machine.spec),
        devices=[function.device for function in machine.board.functions],
        clock=machine.guest_clock,
    )


def _describe(device: VirtioDevice) -> dict[str, object]:
    """A device in the header; addresses and sizes in bytes."""
    traits = device.traits
    about: dict[str, object] = {
        "id": device.identifier,
        "type": traits.name,
        "queues": len(traits.queue_sizes),
    }
    if isinstance(device, VirtioMem):
        base, block = device.window.base, device.block_size
        runs = list(islice(device.blocks.plugged_ranges(), MOST_RANGES + 1))
        ranges = [[base + first * block, count * block] for first, count in runs[:MOST_RANGES]]
        about |= {
            "memaddr": base,
            "block-size": block,
            "region-size": device.region_size,
            "node": device.spec.node,
            "plugged": ranges,
            "plugged-complete": len(runs) <= MOST_RANGES,
        }
    return {**about, "state": device.sizes()}
