"""QMP events on their way to clients: what they carry, the message, and the throttle; no sockets.

MEMORY_DEVICE_SIZE_CHANGE comes once per plugged block group, so QEMU sends at most one per second
and device: the first at once, then the latest of each second (QEMU monitor/monitor.c behaves so).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NotRequired, TypedDict

from minivmm.control.commands import Nothing
from minivmm.migration.progress import Status
from minivmm.snapshot.taken import Status as Snapshotting

ShutdownCause = Literal[
    "host-error", "host-qmp-quit", "host-qmp-system-reset", "guest-shutdown", "guest-reset",
    "guest-panic",
]  # fmt: skip
"""The causes that we tell apart, of QEMU's qapi/run-state.json."""


class Ended(TypedDict):
    """SHUTDOWN and RESET: did the guest do it?"""

    guest: bool
    reason: ShutdownCause


class Panicked(TypedDict):
    """GUEST_PANICKED."""

    action: Literal["poweroff"]


class BalloonChange(TypedDict):
    """BALLOON_CHANGE: bytes that the guest has left."""

    actual: int


class PortChange(TypedDict):
    """VSERPORT_CHANGE: a process of the guest opened or closed a port of the console, by name."""

    id: str
    open: bool


class MigrationChange(TypedDict):
    """MIGRATION."""

    status: Status


MigrationPass = TypedDict("MigrationPass", {"pass": int})
"""MIGRATION_PASS: the number of the round of sending memory that begins."""

SizeChange = TypedDict("SizeChange", {"id": str, "size": int, "qom-path": str})
"""MEMORY_DEVICE_SIZE_CHANGE: bytes plugged now."""

UnpluggedAccess = TypedDict(
    "UnpluggedAccess",
    {
        "id": str,
        "qom-path": str,
        "source": str,
        "cpu-index": int | None,
        "rip": int | None,
        "gpa": int,
        "size": int,
        "write": bool | None,
        "block": int,
        "block-start": int,
        "seconds-since-unplug": float | None,
        "unreported": int,
    },
)
"""X_MINIVMM_UNPLUGGED_ACCESS: who touched which unplugged block (docs/protection.md)."""


class SnapshotChange(TypedDict):
    """X_MINIVMM_SNAPSHOT: one begins, or has ended (docs/snapshot.md)."""

    status: Snapshotting
    error: NotRequired[str]


EVENTS: dict[str, Any] = {
    "STOP": Nothing,
    "RESUME": Nothing,
    "POWERDOWN": Nothing,
    "RESET": Ended,
    "SHUTDOWN": Ended,
    "GUEST_PANICKED": Panicked,
    "MEMORY_DEVICE_SIZE_CHANGE": SizeChange,
    "BALLOON_CHANGE": BalloonChange,
    "VSERPORT_CHANGE": PortChange,
    "MIGRATION": MigrationChange,
    "MIGRATION_PASS": MigrationPass,
    "X_MINIVMM_SNAPSHOT": SnapshotChange,
    "X_MINIVMM_UNPLUGGED_ACCESS": UnpluggedAccess,
}
"""Every event that a machine emits, and what it carries."""

THROTTLED = {"MEMORY_DEVICE_SIZE_CHANGE": 1.0, "BALLOON_CHANGE": 1.0, "VSERPORT_CHANGE": 1.0}
"""Event name -> least seconds between two of the same device. QEMU's others we do not have."""

Send = Callable[[dict[str, object]], None]
Later = Callable[[float, Callable[[], None]], object]


def message(name: str, data: dict[str, object]) -> dict[str, object]:
    """The event as it goes on the wire, stamped with the time of day."""
    microseconds = time.time_ns() // 1000
    found: dict[str, object] = {
        "timestamp": {"seconds": microseconds // 10**6, "microseconds": microseconds % 10**6},
        "event": name,
    }
    if data:
        found["data"] = data
    return found


class Throttle:
    """Passes events to `send`, some of them late, in place of which newer ones may come.

    `later(seconds, fn)` runs fn later, in the same thread. Only `replace` is for other threads.
    """

    def __init__(self, send: Send, later: Later) -> None:
        self._send = send
        self._later = later
        self._gate = threading.Lock()  # guards what follows
        self._waiting: dict[tuple[str, object], dict[str, object] | None] = {}
        """Devices whose second is not over, and the event to send when it is."""

    def publish(self, name: str, data: dict[str, object]) -> None:
        """An event happened."""
        pause = THROTTLED.get(name)
        if pause is None:
            self._send(message(name, data))
        elif not self.replace(name, data):
            self._send_and_hold((name, data.get("id")), message(name, data), pause)

    def replace(self, name: str, data: dict[str, object]) -> bool:
        """The same from any thread, if the event is to wait; False: it has to be published.

        So a resize does not wake the sending thread for every group of blocks.
        """
        key = (name, data.get("id"))
        with self._gate:
            if key not in self._waiting:
                return False
            self._waiting[key] = message(name, data)
            return True

    def _send_and_hold(
        self, key: tuple[str, object], event: dict[str, object], pause: float
    ) -> None:
        with self._gate:
            self._waiting[key] = None
        self._send(event)
        self._later(pause, lambda: self._release(key, pause))

    def _release(self, key: tuple[str, object], pause: float) -> None:
        with self._gate:
            event = self._waiting.pop(key)
        if event is not None:
            self._send_and_hold(key, event, pause)
