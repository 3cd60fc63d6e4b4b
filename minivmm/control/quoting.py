"""How a command travels to the guest agent: argv -> shell script -> the agent's printf %b form.

Binary safe: arguments are whatever os.fsencode makes of them (surrogateescape), NUL excepted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from minivmm.errors import UsageError

MAX_SCRIPT = 128 * 1024 - 1
"""Longest encoded script: one argument of Linux's execve (MAX_ARG_STRLEN counts the NUL)."""

CANNOT_START = 126
"""Exit status when the working directory does not exist; the shell itself uses 127."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./=:,+@%-")
_ENCODED = tuple(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in range(256))


def quote(word: str) -> bytes:
    """`word` as one POSIX shell word. Raises UsageError if it does not stand for bytes."""
    try:
        raw = os.fsencode(word)
    except UnicodeEncodeError:
        raise UsageError(f"{word!r} is not text: it has unpaired surrogates") from None
    # Nothing is special inside single quotes, so one inside means: leave, escape it, enter again.
    return b"'" + raw.replace(b"'", b"'\\''") + b"'"


def script(argv: Sequence[str], env: Mapping[str, str], cwd: str | None) -> bytes:
    """The POSIX script that runs `argv` in directory `cwd` with `env` added to the environment.

    Raises UsageError if there is no command, a variable's name is not usable in a shell, anything
    has a NUL, or the whole, encoded, is longer than MAX_SCRIPT bytes.
    """
    if not argv:
        raise UsageError("no command was given: write it after --")
    parts: list[bytes] = []
    if cwd is not None:
        parts.append(b"cd -- " + quote(cwd) + f" || exit {CANNOT_START}; ".encode())
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"environment variable {name!r}: letters, digits and '_' only")
        parts.append(b"export " + name.encode() + b"=" + quote(value) + b"; ")
    parts.append(b"exec " + b" ".join(map(quote, argv)))
    made = b"".join(parts)
    if b"\0" in made:
        raise UsageError("a NUL character cannot be part of a command, variable or directory")
    size = len(encode(made))
    if size > MAX_SCRIPT:
        raise UsageError(
            f"the command has {size} bytes encoded, the guest takes {MAX_SCRIPT}: use stdin"
        )
    return made


def encode(data: bytes) -> str:
    """`data` for printf %b: ASCII without spaces; all but plain characters become \\0ooo."""
    return "".join(map(_ENCODED.__getitem__, data))
