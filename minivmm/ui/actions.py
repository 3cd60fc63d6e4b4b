"""What viewers do to a VM: resize, kick, pause, resume, ask why; each by a connection of its own.

Arguments come from a browser or a keyboard: nothing about them is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minivmm.control.client import Client
from minivmm.control.inside import diagnoses
from minivmm.control.targets import request_size
from minivmm.errors import UsageError
from minivmm.runtime import MachineDir
from minivmm.units import format_size

PATIENCE = 3.0
"""Seconds for the guest to tell what it knows when it is asked why."""


class Actions:
    """Acts on the VM of `entry`. Every method raises MinivmmError: one line for the user."""

    def __init__(self, entry: MachineDir) -> None:
        self._entry = entry

    def resize(self, identifier: str | None, size: str) -> str:
        """Request `size` (1G, +256M, -256M) of memory device `identifier`; says what was done."""
        with Client(self._entry.qmp_socket) as client:
            name, target = request_size(client, identifier, size.strip(), self._entry.name)
        return f"{name}: {format_size(target)} requested"

    def kick(self, identifier: str | None) -> str:
        """Make the driver of memory device `identifier`, or of all, try again."""
        chosen = {} if identifier is None else {"id": identifier}
        with Client(self._entry.qmp_socket) as client:
            kicked = client.execute("x-minivmm-kick", **chosen)
        return "; ".join(
            f"{row['id']}: "
            + ("configuration interrupt sent" if row["sent"] else "no driver is up")
            for row in kicked
        )

    def pause(self) -> str:
        """Stop the vCPUs."""
        self._execute("stop")
        return "paused"

    def resume(self) -> str:
        """Let the vCPUs run."""
        self._execute("cont")
        return "running"

    def toggle(self) -> str:
        """Resume if the VM is paused, else pause; asked of the VM, as views may be older."""
        with Client(self._entry.qmp_socket) as client:
            paused = client.execute("query-status")["status"] == "paused"
        return self.resume() if paused else self.pause()

    def why(self, identifier: str | None) -> list[dict[str, Any]]:
        """The diagnosis of memory device `identifier`, or of all, as x-minivmm-why gives it."""
        with Client(self._entry.qmp_socket) as client:
            return diagnoses(client, self._entry.exec_socket, identifier, patience=PATIENCE)

    def _execute(self, command: str) -> None:
        with Client(self._entry.qmp_socket) as client:
            client.execute(command)


def text_of(arguments: Mapping[str, Any], key: str) -> str | None:
    """Argument `key`, a short text, or None if it is not given. Raises UsageError."""
    value = arguments.get(key)
    if value is not None and (not isinstance(value, str) or len(value) > 100):
        raise UsageError(f"{key} must be a text of at most 100 characters")
    return value
