"""Viewer: the `minivmm ui` process that `boot --ui` starts beside a VM, and ends with it."""

from __future__ import annotations

import subprocess
import sys

from minivmm.closing import Closing

GRACE = 3.0
"""Seconds that it may take to tell its viewers of the end."""

STDERR = 2


class Viewer(Closing):
    """A context in which a page of VM `name` is served at `listen` ("" for the default).

    The page's address is said on stderr. It ends by itself once the VM's sockets are closed.
    """

    def __init__(self, name: str, listen: str) -> None:
        # A session of its own: a Ctrl-C at the terminal is for the guest, or for us.
        # -P: this minivmm, not one that the working directory may hold.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "minivmm.cli", "ui", name, "-q", f"--listen={listen}"],
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def close(self) -> None:
        """Wait for its end, or bring it about."""
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
