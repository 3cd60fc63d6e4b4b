"""Sizes as people write them, and alignment. Inside minivmm a size is an int of bytes."""

from __future__ import annotations

import re

from minivmm.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_SUFFIXES = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SIZE = re.compile(r"(0x[0-9a-f]+|[0-9]+)\s*([kmgt]?)(i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes named by `text`: plain or 0x number, or with K, M, G, T, KiB, MiB, GiB, TiB (binary).

    Raises UsageError for anything else; KB, MB, ... are refused because they are ambiguous
    (shared/CONVENTIONS.md, "Sizes").
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"size {text!r} is not understood (examples: 4096, 512M, 4GiB, 0x1000)")
    digits, suffix, tail = match.group(1), match.group(2).lower(), (match.group(3) or "").lower()
    if suffix and tail == "b":
        raise UsageError(
            f"size {text!r} is ambiguous: write {digits}{suffix.upper()}iB (powers of 1024)"
        )
    if not suffix and tail:
        raise UsageError(f"size {text!r} is not understood: bytes are written without a suffix")
    return int(digits, 0 if digits[:2].lower() == "0x" else 10) * _SUFFIXES[suffix]


def format_size(size: int) -> str:
    """`size` bytes in the largest unit that keeps it exact: 0, 512M, 4G, 4097."""
    if size:
        for suffix, unit in (("T", TIB), ("G", GIB), ("M", MIB), ("K", KIB)):
            if size % unit == 0:
                return f"{size // unit}{suffix}"
    return str(size)


def align_up(value: int, alignment: int) -> int:
    """Smallest multiple of `alignment` that is >= `value`."""
    return -(-value // alignment) * alignment


def align_down(value: int, alignment: int) -> int:
    """Largest multiple of `alignment` that is <= `value`."""
    return value // alignment * alignment


def is_power_of_two(value: int) -> bool:
    """True for 1, 2, 4, 8, ...; false for 0 and negative numbers."""
    return value > 0 and value & (value - 1) == 0


def powers_of_two_around(value: int) -> tuple[int, int]:
    """The largest power of two that is at most `value`, which is above 0, and the next one."""
    below = 1 << value.bit_length() - 1
    return below, 2 * below
