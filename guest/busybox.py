"""Finds the static busybox that becomes the guest's whole user space."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from minivmm.errors import HostError

PLACES = (Path("/usr/bin/busybox"), Path("/bin/busybox"))
"""Where distributions install it; the variable MINIVMM_BUSYBOX goes before."""

_PROGRAM_TABLE = struct.Struct("<32xQ14xHH")  # e_phoff; e_phentsize, e_phnum
_INTERPRETER = 3  # PT_INTERP: the program asks for a dynamic loader; elf(5)
_X86_64 = 62  # EM_X86_64


def find_busybox() -> Path:
    """A busybox that runs without libraries. Raises HostError if the host has none."""
    chosen = os.environ.get("MINIVMM_BUSYBOX")
    if chosen:
        if not is_static(Path(chosen)):
            raise HostError(
                f"MINIVMM_BUSYBOX={chosen} is not a statically linked x86-64 program:"
                " point it to one, or unset it and `apt-get install busybox-static`"
            )
        return Path(chosen)
    for place in PLACES:
        if is_static(place):
            return place
    raise HostError(
        "no statically linked busybox found (the guest has no libraries):"
        " `apt-get install busybox-static`, or set MINIVMM_BUSYBOX to one"
    )


def is_static(path: Path) -> bool:
    """True if `path` is a 64-bit x86 ELF program without a dynamic loader."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:
        return False
    if struct.unpack_from("<H", head, 18)[0] != _X86_64:
        return False
    offset, size, count = _PROGRAM_TABLE.unpack_from(head)
    if offset + size * count > len(head):
        return False
    types = (struct.unpack_from("<I", head, offset + size * index)[0] for index in range(count))
    return _INTERPRETER not in types


def applets(busybox: Path) -> list[str]:
    """Names of the commands that `busybox` contains. Raises HostError if it does not run."""
    try:
        answer = subprocess.run(
            [str(busybox), "--list"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{busybox} cannot list its commands: {error}") from error
    return sorted(set(answer.stdout.split()))
