"""A small blocking QMP client for the command line; it imports nothing that starts slowly."""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minivmm.closing import Closing
from minivmm.errors import HostError, NoSuchMachine, Refused

REPLY_TIMEOUT = 30.0
"""Seconds to wait for an answer before the VM is called stuck."""


class Client(Closing):
    """One negotiated connection to a VM's control socket; a context manager.

    Raises NoSuchMachine if nothing listens on `path`, HostError for something that is not QMP.
    """

    def __init__(self, path: Path, *, timeout: float = REPLY_TIMEOUT) -> None:
        self._timeout = timeout
        self._received = bytearray()
        self._events: deque[dict[str, Any]] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(path)
        except BaseException:
            self._socket.close()
            raise

    def execute(self, command: str, **arguments: object) -> Any:
        """Run `command` ('_' in argument names becomes '-') and return its value.

        Raises Refused for a QMP error, NoSuchMachine if the VM ends, HostError if it is stuck.
        """
        return self.request(command, {key.replace("_", "-"): v for key, v in arguments.items()})

    def request(self, command: str, arguments: Mapping[str, object]) -> Any:
        """The same with arguments under their own names, whatever those are."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise NoSuchMachine(f"the VM ended during {command} ({error})") from error
        deadline = time.monotonic() + self._timeout
        while True:
            message = self._receive(deadline)
            if message is None:
                raise HostError(
                    f"no answer to {command} within {self._timeout:g} s: the VM is stuck;"
                    " `minivmm stop --force` ends it"
                )
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                failure = message["error"]
                raise Refused(failure["desc"], failure["class"])
            else:
                return message["return"]

    def event(self, timeout: float) -> dict[str, Any] | None:
        """The next event, or None when `timeout` seconds pass without. Raises NoSuchMachine."""
        if self._events:
            return self._events.popleft()
        return self._receive(time.monotonic() + timeout)

    def wait_closed(self, timeout: float) -> bool:
        """True if the VM closes the connection within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        try:
            while self._receive(deadline) is not None:
                pass
        except NoSuchMachine:
            return True
        return False

    def close(self) -> None:
        """Hang up; harmless when repeated."""
        self._socket.close()

    def _connect(self, path: Path) -> None:
        self._socket.settimeout(self._timeout)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            raise NoSuchMachine(f"nothing answers on {path} ({error.strerror})") from error
        greeting = self._receive(time.monotonic() + self._timeout)
        if greeting is None:
            raise HostError(f"nothing comes from {path}: the VM is still starting, or stuck")
        if "QMP" not in greeting:
            raise HostError(f"{path} does not speak QMP")
        self.execute("qmp_capabilities")

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """The next message (the server ends each with a newline); None at the deadline."""
        while (end := self._received.find(b"\n")) < 0:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError as error:
                raise NoSuchMachine(f"connection to the VM lost ({error.strerror})") from error
            if not data:
                raise NoSuchMachine("the VM has ended")
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            message = json.loads(line)
        except ValueError as error:
            raise HostError("the control socket does not speak QMP") from error
        if not isinstance(message, dict):
            raise HostError("the control socket does not speak QMP")
        return message
