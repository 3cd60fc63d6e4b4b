"""The tracks of a Perfetto trace: which there are, how they nest, what they are called.

    minivmm NAME (a process)
        vcpu0, machine, agent
        vmem0
            queue 0, kicks of queue 0, interrupts of queue 0, host, plugged-size, ...

A track is described the first time that it is asked for; its number is good for ever after.
"""

from __future__ import annotations

from minivmm.tracing.protobuf import data, number, text

SEQUENCE = 1
"""trusted_packet_sequence_id: all packets come from one writer."""

_MACHINE = 1
_PROCESS_ID = 1
_EXPLICIT = 3
"""TrackDescriptor.ChildTracksOrdering: by sibling_order_rank."""
_BYTES = 3
"""CounterDescriptor.Unit: UNIT_SIZE_BYTES."""

Track = tuple[int, bytes]
"""Its number (uuid), and what describes it: nothing if it was described before."""


def packet(fields: bytes) -> bytes:
    """One TracePacket as a piece of the file, which is a Trace message."""
    return data(1, fields)


class Tracks:
    """Of one machine, called `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[tuple[object, ...], int] = {}

    def machine(self) -> bytes:
        """The description of what all other tracks are in."""
        process = number(1, _PROCESS_ID) + text(6, f"minivmm {self._name}")
        return _described(number(1, _MACHINE) + data(3, process))

    def plain(self, source: str) -> Track:
        """Whatever a source tells of itself."""
        return self._track((source,), source, parent=_MACHINE, rest=number(11, _EXPLICIT))

    def queue(self, device: str, index: int, lane: int) -> Track:
        """Requests of a queue; lanes, of the same name, are shown as one track."""
        return self._child(device, f"queue {index}", 10 * index, lane)

    def kicks(self, device: str, index: int) -> Track:
        """Doorbells of a queue."""
        return self._child(device, f"kicks of queue {index}", 10 * index + 1)

    def interrupts(self, device: str, index: int) -> Track:
        """Interrupts of a queue."""
        return self._child(device, f"interrupts of queue {index}", 10 * index + 2)

    def host(self, device: str) -> Track:
        """What the host does for a device."""
        return self._child(device, "host", 10_000)

    def counter(self, device: str, size: str) -> Track:
        """One of a device's sizes, in bytes."""
        return self._child(device, size, 10_001, rest=data(8, number(3, _BYTES)))

    def _child(
        self, device: str, name: str, rank: int, lane: int = 0, *, rest: bytes = b""
    ) -> Track:
        parent, described = self.plain(device)
        uuid, more = self._track(
            (device, name, lane), name, parent=parent, rest=number(12, rank) + rest
        )
        return uuid, described + more

    def _track(self, key: tuple[object, ...], name: str, *, parent: int, rest: bytes) -> Track:
        if key in self._known:
            return self._known[key], b""
        uuid = self._known[key] = _MACHINE + 1 + len(self._known)
        return uuid, _described(number(1, uuid) + number(5, parent) + text(2, name) + rest)


def _described(descriptor: bytes) -> bytes:
    return packet(number(10, SEQUENCE) + data(60, descriptor))
