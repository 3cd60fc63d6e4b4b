"""What the guest's Linux does with plugged memory, told by its agent, as trace events `memory`.

Only while somebody follows Detail.MEMORY. The guest is not believed more than that it says so:
lines that make no sense, and blocks that are not of a virtio-mem device, are left out.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import minivmm.guest
from minivmm.control.agent import GuestAgent
from minivmm.control.agent_session import Callbacks, Session
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.errors import MinivmmError
from minivmm.trace import Detail, Trace

STATES = {"add": "added", "online": "online", "offline": "offline", "remove": "removed"}
"""Actions of Linux's uevents, and the words of the trace."""

_LONGEST = 256
"""Bytes of a line; those of the script have 30 at most."""


class GuestWatch:
    """Keeps guest/memory_events.sh running in the guest as long as events are wanted.

    All methods run with the machine's lock held.
    """

    def __init__(self, agent: GuestAgent, trace: Trace, devices: Mapping[str, VirtioMem]) -> None:
        self._agent = agent
        self._trace = trace
        self._devices = devices
        self._session: Session | None = None
        self._wanted = False
        self._again = False
        """The session that is being ended was wanted again before it was gone."""
        self._block_size = 0
        self._line = bytearray()
        agent.on_ready.append(self._start)
        trace.on_detail(Detail.MEMORY, self._switch)

    def close(self) -> None:
        """The machine is about to go: followers that leave later change nothing in the guest."""
        self._session = None

    def _switch(self, on: bool) -> None:
        self._wanted = on
        self._again = on and self._session is not None
        if on and self._agent.ready:
            self._start()
        elif not on and self._session:
            self._session.kill(signal.SIGTERM)

    def _start(self) -> None:
        if not self._wanted or self._session or not self._devices:
            return
        script = (Path(minivmm.guest.__file__).parent / "memory_events.sh").read_text()
        self._line.clear()
        self._block_size = 0
        self._session = self._agent.run(
            ["sh", "-c", script, "memory_events", script],
            Callbacks(
                on_stdout=self._take,
                on_stderr=lambda _data: None,
                on_exit=self._ended,
                on_failed=self._failed,
            ),
        )

    def _ended(self, _status: int) -> None:
        self._session = None
        if self._again:
            self._again = False
            self._start()

    def _failed(self, error: MinivmmError) -> None:
        """A guest that reboots starts anew when it is ready; others may lack `uevent`."""
        self._session = None
        self._trace.emit("agent", "blind", reason=str(error))

    def _take(self, data: bytes) -> None:
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line = bytearray(rest[:_LONGEST])
        for line in lines:
            self._tell(line[:_LONGEST].decode("ascii", errors="replace").split())

    def _tell(self, words: list[str]) -> None:
        match words:
            case ["block", size] if _is_hex(size) and not self._block_size:
                self._block_size = int(size, 16)
            case [action, number] if action in STATES and number.isdecimal() and len(number) < 16:
                self._memory(STATES[action], int(number) * self._block_size)

    def _memory(self, what: str, gpa: int) -> None:
        size = self._block_size
        for device in self._devices.values():
            window = device.window
            if size and window.base <= gpa < window.end:
                fields = {"what": what, "gpa": gpa, "size": min(size, window.end - gpa)}
                self._trace.tell(Detail.MEMORY, device.identifier, "memory", fields)


def _is_hex(text: str) -> bool:
    return 0 < len(text) < 16 and all(digit in "0123456789abcdef" for digit in text)
