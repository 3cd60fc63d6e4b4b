"""How a boot ended, for --status FILE: exit status, cause and message as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from minivmm.cli.text import SCHEMA
from minivmm.errors import HostError, MinivmmError


def recorded(path: Path | None, boot: Callable[[], int]) -> int:
    """Run `boot`; write how it ended to `path` if there is one. Raises what `boot` raises.

    A file that `boot` has written is left alone: the minivmm inside a lab knows more than we do.
    """
    if path is None:
        return boot()
    path.unlink(missing_ok=True)
    try:
        status = boot()
    except MinivmmError as error:
        _write(path, error.boot_status, _cause(error), str(error))
        raise
    _write(path, status, "exit", None)
    return status


def _cause(error: MinivmmError) -> str:
    """GuestFailure -> guest-failure."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()


def _write(path: Path, status: int, cause: str, message: str | None) -> None:
    if path.exists():
        return
    data = {"schema": SCHEMA, "status": int(status), "cause": cause, "message": message}
    try:
        path.write_text(json.dumps(data) + "\n")
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
