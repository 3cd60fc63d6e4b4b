"""A listening Unix socket for its owner alone; who is served on it, and how, is not known here."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from minivmm.errors import HostError


def listen(path: Path) -> socket.socket:
    """A bound socket at `path` that only its owner can use; a stale one is replaced.

    Raises HostError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise HostError(f"socket {path} is in use by another process: choose another")
            path.unlink()
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
    except OSError as error:
        listener.close()
        why = error.strerror or error  # too long a path has no errno
        raise HostError(f"cannot listen on {path}: {why}") from error
    except HostError:
        listener.close()
        raise
    return listener
