"""Where to wait for GDB, as the command line says it. Nothing is opened here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minivmm.errors import UsageError

DEFAULT_PORT = 1234
"""QEMU's `-s`."""
LOOPBACK = "127.0.0.1"
DEFAULT = f"{LOOPBACK}:{DEFAULT_PORT}"

_ADDRESS = re.compile(r"[0-9]+|(tcp|unix):.*|.*:[0-9]+")


@dataclass(frozen=True)
class Address:
    """Where to listen: Unix socket `path`, or TCP `host` and `port` (0: any that is free)."""

    path: Path | None = None
    host: str = LOOPBACK
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        """As GDB's `target remote` takes it."""
        return str(self.path) if self.path is not None else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """PORT, [HOST]:PORT, tcp:[HOST]:PORT or unix:PATH; QEMU's `tcp::1234` too. Raises UsageError.

    Without HOST it is this machine's loopback: whoever can connect has the guest.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=Path(text.removeprefix("unix:")).absolute())
    host, _, port = text.removeprefix("tcp:").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if port.isascii() and port.isdecimal() and int(port) <= 0xFFFF:
        return Address(host=host or LOOPBACK, port=int(port))
    raise UsageError(
        f"address {text!r} for --gdb is not understood (examples: 1234, 127.0.0.1:1234,"
        " unix:/tmp/gdb.sock)"
    )


def join_address(words: Sequence[str]) -> list[str]:
    """`--gdb ADDR` and a bare `--gdb` as `--gdb=ADDR`: argparse would take KERNEL for ADDR."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--gdb" and _ADDRESS.fullmatch(word):
            joined[-1] = f"--gdb={word}"
        else:
            joined.append(word)
    return [f"--gdb={DEFAULT}" if word == "--gdb" else word for word in joined]
