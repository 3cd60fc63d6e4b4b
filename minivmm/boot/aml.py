"""Writes AML, the byte code of ACPI: each function returns the bytes of one term.

    device("COM1", name("_HID", eisa_id("PNP0501")), name("_UID", integer(0)))

Only what dsdt.py needs. Source: ACPI 6.5 chapter 20; section numbers are given at each function.
"""

from __future__ import annotations

from minivmm.spec.acpi_resources import END_TAG
from minivmm.spec.record import Record

_EXTENDED = b"\x5b"
_SYSTEM_IO = 1


def path(text: str) -> bytes:
    r"""NameString (20.2.2) of up to 255 segments: `_HID`, `\_SB.PCI0`. Raises ValueError."""
    root = b"\\" if text.startswith("\\") else b""
    segments = [_segment(part) for part in text.removeprefix("\\").split(".")]
    if len(segments) == 1:
        return root + segments[0]
    if len(segments) == 2:
        return root + b"\x2e" + b"".join(segments)
    return root + b"\x2f" + bytes([len(segments)]) + b"".join(segments)


def integer(value: int) -> bytes:
    """The shortest integer constant (20.2.3) for 0 <= `value` < 2**64. Raises ValueError."""
    if value in (0, 1):
        return bytes([value])
    for prefix, width in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 <= value < 1 << 8 * width:
            return bytes([prefix]) + value.to_bytes(width, "little")
    raise ValueError(f"{value} is no 64-bit AML integer")


def eisa_id(text: str) -> bytes:
    """A compressed EISA id such as PNP0A08 as integer constant (19.3.4, "EISAID")."""
    letters = [ord(char) - 0x40 for char in text[:3]]
    number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + number.to_bytes(4, "big")


def string(text: str) -> bytes:
    """ASCII string constant (20.2.3)."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def package(*elements: bytes) -> bytes:
    """Package of constant terms (20.2.5.4)."""
    return b"\x12" + _sized(bytes([len(elements)]) + b"".join(elements))


def resources(*descriptors: Record) -> bytes:
    """ResourceTemplate: a buffer (20.2.5.4) of `descriptors` and the end tag."""
    data = b"".join(descriptor.build() for descriptor in descriptors) + END_TAG
    return b"\x11" + _sized(integer(len(data)) + data)


def name(where: str, value: bytes) -> bytes:
    """DefName (20.2.5.1): an object with a constant value."""
    return b"\x08" + path(where) + value


def scope(where: str, *terms: bytes) -> bytes:
    """DefScope (20.2.5.1): `terms` belong into an existing object."""
    return b"\x10" + _sized(path(where) + b"".join(terms))


def device(where: str, *terms: bytes) -> bytes:
    """DefDevice (20.2.5.2)."""
    return _EXTENDED + b"\x82" + _sized(path(where) + b"".join(terms))


def method(where: str, arguments: int, *terms: bytes) -> bytes:
    """DefMethod (20.2.5.2), serialized because it may create or touch fields."""
    return b"\x14" + _sized(path(where) + bytes([arguments | 1 << 3]) + b"".join(terms))


def io_region(where: str, port: int, length: int) -> bytes:
    """DefOpRegion (20.2.5.2) in I/O space: `length` ports from `port`."""
    return _EXTENDED + b"\x80" + path(where) + bytes([_SYSTEM_IO]) + integer(port) + integer(length)


def byte_field(region: str, field: str) -> bytes:
    """DefField (20.2.5.2): `field` is the first byte of `region`; byte access, no lock."""
    return _EXTENDED + b"\x81" + _sized(path(region) + b"\x01" + _segment(field) + b"\x08")


def bit_and(left: bytes, right: bytes) -> bytes:
    """DefAnd (20.2.5.4) whose result is used, not stored."""
    return b"\x7b" + left + right + b"\x00"


def if_(condition: bytes, *terms: bytes) -> bytes:
    """DefIfElse (20.2.5.3) without Else: `terms` if `condition` is not 0."""
    return b"\xa0" + _sized(condition + b"".join(terms))


def notify(where: str, value: int) -> bytes:
    """DefNotify (20.2.5.3): tell the driver of `where`."""
    return b"\x86" + path(where) + integer(value)


def _segment(text: str) -> bytes:
    """NameSeg: four characters, filled up with underscores."""
    allowed = text.isascii() and text.replace("_", "A").isalnum() and text == text.upper()
    if not 1 <= len(text) <= 4 or not allowed or text[0].isdigit():
        raise ValueError(f"{text!r} is no AML name")
    return text.ljust(4, "_").encode("ascii")


def _sized(body: bytes) -> bytes:
    """`body` after its PkgLength (20.2.4), which counts its own 1 to 4 bytes."""
    if len(body) + 1 < 1 << 6:
        return bytes([len(body) + 1]) + body
    for extra in (1, 2, 3):
        length = len(body) + 1 + extra
        if length < 1 << 4 + 8 * extra:
            rest = (length >> 4).to_bytes(extra, "little")
            return bytes([extra << 6 | length & 0xF]) + rest + body
    raise ValueError(f"an AML package of {len(body)} bytes is too long")
