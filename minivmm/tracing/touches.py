"""When plugged memory is first used: the host looks which new blocks have pages by now.

Only while somebody follows Detail.MEMORY. Blocks whose memory the host allocates when they are
plugged (prealloc=on) tell nothing and are not looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.trace import Detail, Event, Trace
from minivmm.units import GIB, MIB

INTERVAL = 0.25
"""Seconds between two looks."""

MOST_BYTES = GIB
"""Memory that is looked at in one look: some milliseconds, with the machine's lock held."""

_MOST_RANGES = 1024
"""Ranges that wait for their first touch; of more, the oldest are given up."""

_PIECE = 128 * MIB
"""Bytes that wait as one range at most."""


class Touches:
    """Looks at what was plugged since somebody followed.

    `later(seconds, fn)` runs fn with the machine's lock held.
    """

    def __init__(
        self,
        trace: Trace,
        devices: Mapping[str, VirtioMem],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._trace = trace
        self._devices = {
            name: device for name, device in devices.items() if not device.spec.populates
        }
        self._later = later
        self._waiting: deque[tuple[str, int, int]] = deque(maxlen=_MOST_RANGES)
        """(device, gpa, size) of what was plugged and has no page yet."""
        self._stop: Callable[[], None] | None = None
        self._looking = False
        if self._devices:
            trace.on_detail(Detail.MEMORY, self._switch)

    def _switch(self, on: bool) -> None:
        if on and not self._stop:
            self._stop = self._trace.follow(self._see)
        elif not on and self._stop:
            self._stop()
            self._stop = None
            self._waiting.clear()

    def _see(self, event: Event) -> None:
        """Any event, of any thread; plugs are answered with the lock held."""
        if event.name == "answer" and event.source in self._devices:
            fields = event.fields
            if fields.get("type") == "PLUG" and fields.get("answer") == "ACK":
                self._add(event.source, _number(fields["gpa"]), _number(fields["size"]))

    def _add(self, name: str, gpa: int, size: int) -> None:
        for at in range(gpa, gpa + size, _PIECE):
            self._waiting.append((name, at, min(_PIECE, gpa + size - at)))
        if not self._looking:
            self._looking = True
            self._later(INTERVAL, self._look)

    def _look(self) -> None:
        left = MOST_BYTES
        for _ in range(len(self._waiting)):
            if left <= 0:
                break
            name, gpa, size = self._waiting.popleft()
            left -= size
            self._look_at(self._devices[name], gpa, size)
        self._looking = bool(self._waiting) and self._stop is not None
        if self._looking:
            self._later(INTERVAL, self._look)

    def _look_at(self, device: VirtioMem, gpa: int, size: int) -> None:
        """Tell of the blocks in a range that have pages; let those wait on that have none."""
        block, base = device.block_size, device.window.base
        for first, count in device.blocks.plugged_ranges((gpa - base) // block, size // block):
            held = device.region.resident_pieces(first * block, block, count)
            for start, length, touched in _runs([bytes_held > 0 for bytes_held in held]):
                where = (base + (first + start) * block, length * block)
                if touched:
                    self._tell(device.identifier, *where)
                else:
                    self._waiting.append((device.identifier, *where))

    def _tell(self, name: str, gpa: int, size: int) -> None:
        fields = {"what": "touched", "gpa": gpa, "size": size}
        self._trace.tell(Detail.MEMORY, name, "memory", fields)


def _runs(values: list[bool]) -> list[tuple[int, int, bool]]:
    """(first, count, value) of equal neighbours."""
    found: list[tuple[int, int, bool]] = []
    for at, value in enumerate(values):
        if found and found[-1][2] == value:
            found[-1] = (found[-1][0], found[-1][1] + 1, value)
        else:
            found.append((at, 1, value))
    return found


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
