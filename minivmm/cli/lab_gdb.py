"""`boot --gdb` from outside the lab: the place where GDB connects, opened once there is a guest."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from minivmm.cli.signals import ignore_in_this_thread
from minivmm.cli.text import say
from minivmm.control.client import Client
from minivmm.control.gdb_address import parse_address
from minivmm.control.gdb_server import bind, bound
from minivmm.errors import MinivmmError
from minivmm.lab.lab import Lab

_PATIENCE = 25.0
"""Seconds that GDB's connection waits for its socket inside, which appears just after QMP's."""

_ATTEMPT = 5.0
_PAUSE = 0.5
"""Seconds for one attempt to reach the VM's control socket, and between two of them."""


class GdbDoor:
    """A context manager: whoever connects to `address` out here reaches socket `inside`.

    The address is taken at once, but nobody is let in before the VM answers on `qmp`: GDB gives up
    on a target that takes its time to answer, and tries again where nobody listens yet. Raises
    UsageError, and HostError for an address that cannot be had.
    """

    def __init__(self, lab: Lab, address: str, inside: str, qmp: Path, *, quiet: bool) -> None:
        self._lab = lab
        self._inside = inside
        self._qmp = qmp
        self._quiet = quiet
        self._address = parse_address(address)
        self._listener = bind(self._address)
        self._open = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait_and_open, name="gdb", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if not self._open:
            self._listener.close()  # else it is the lab's
        if self._address.path is not None:
            self._address.path.unlink(missing_ok=True)

    def _wait_and_open(self) -> None:
        ignore_in_this_thread()
        while not self._answers():
            if self._over.wait(_PAUSE):
                return
        try:
            self._listener.listen()
        except OSError as error:  # somebody else took the same address, and was faster
            say(f"gdb cannot connect: {bound(self._address, self._listener)}: {error.strerror}")
            return
        self._open = True
        self._lab.forward_socket(self._listener, self._inside, patience=_PATIENCE)
        if not self._quiet:
            say(f"gdb can connect: target remote {bound(self._address, self._listener)}")

    def _answers(self) -> bool:
        try:
            with Client(self._qmp, timeout=_ATTEMPT):
                return True
        except MinivmmError:
            return False
