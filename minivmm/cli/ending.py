"""How a boot ended, for --status FILE: exit status, cause and message as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from minivmm.cli.text import SCHEMA, say
from minivmm.errors import HostError, MinivmmError


def recorded(path: Path | None, boot: Callable[[], int]) -> int:
    """Run `boot`; write how it ended to `path` if there is one. Raises what `boot` raises.

    A file that `boot` has written is left alone: the minivmm inside a lab knows more than we do.
    """
    if path is None:
        return boot()
    _write_text(path, "")  # what cannot be written is better known before than after
    try:
        status = boot()
    except MinivmmError as error:
        try:
            _write(path, error.boot_status, _cause(error), str(error))
        except HostError as other:
            say(str(other))  # how the boot ended matters more
        raise
    _write(path, status, "exit", None)
    return status


def _cause(error: MinivmmError) -> str:
    """GuestFailure -> guest-failure."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()


def _write(path: Path, status: int, cause: str, message: str | None) -> None:
    if path.is_file() and path.stat().st_size:
        return
    data = {"schema": SCHEMA, "status": int(status), "cause": cause, "message": message}
    _write_text(path, json.dumps(data) + "\n")


def _write_text(path: Path, text: str) -> None:
    """In place: `path` may be a device or a link to something that must stay."""
    try:
        path.write_text(text)
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {error.strerror}: name another file with --status"
        ) from None
