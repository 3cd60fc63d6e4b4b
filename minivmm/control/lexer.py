"""From a byte stream to JSON values, in pieces of any size; nothing here knows QMP.

QMP clients do not terminate what they send: several values may come in one write, one value may
spread over lines. So the end of a value is found by counting brackets outside strings, and only
then is it parsed. Texts of errors are QEMU's (recorded from 7.2).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

MAX_VALUE = 1 << 20
"""Longest value in bytes; a client that sends more is answered with an error."""

MAX_DEPTH = 256
"""Deepest nesting of brackets; the parser recurses, so it must be bounded."""

MAX_DIGITS = 40
"""Longest integer; 2^64 has 20 digits. Longer ones cost time that grows with their square."""

_SPACE = b" \t\r\n"
_OPEN = b"{["
_CLOSE = b"}]"
_ALONE = b",:"
_KEYWORD = re.compile(r"[a-z]+")

# Bytes that only make the pending value longer, by where they are: taken in one piece, since a loop
# over single bytes costs the machine's event loop half a second for a megabyte.
_IN_STRING = re.compile(rb'[^"\\\x00-\x1f\xfe\xff]+')
_INSIDE = re.compile(rb'[^"{}\[\]\xfe\xff]+')
_IN_WORD = re.compile(rb'[^ \t\r\n{}\[\],:"\xfe\xff]+')
_BETWEEN = re.compile(rb"[ \t\r\n]+")


class ParseError(ValueError):
    """The input is not JSON; `str()` is QEMU's wording."""

    def __init__(self, why: str) -> None:
        super().__init__(f"JSON parse error, {why}")


class Lexer:
    """Splits a stream into JSON values.

    After an error it goes on with the byte that follows the bad value. A control character inside
    a string, or a byte that UTF-8 never contains (0xFE, 0xFF), ends whatever is pending: so a
    client that lost its place gets back by sending one.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, data: bytes) -> Iterator[object]:
        """The values (a ParseError in the place of a bad one) that `data` completes, in order."""
        at = 0
        while at < len(data):
            run = self._run(data, at)
            if run:
                at += run
            else:
                yield from self._take(data[at])
                at += 1

    def _run(self, data: bytes, at: int) -> int:
        """Take the bytes from `at` on that change nothing but the length; how many there were."""
        if self._escaped:
            return 0
        if self._in_string:
            plain = _IN_STRING
        elif self._depth:
            plain = _INSIDE
        else:
            plain = _IN_WORD if self._pending else _BETWEEN
        match = plain.match(data, at, at + MAX_VALUE - len(self._pending))
        if match is None:
            return 0
        if plain is not _BETWEEN:
            self._pending += match.group()
        return match.end() - at

    def _take(self, byte: int) -> Iterator[object]:
        if byte >= 0xFE or (self._in_string and byte < 0x20):
            self._forget()
            yield ParseError("stray '\N{REPLACEMENT CHARACTER}'")
        elif len(self._pending) >= MAX_VALUE:
            self._forget()
            yield ParseError("value too long")
        elif self._in_string:
            yield from self._take_in_string(byte)
        elif self._depth == 0:
            yield from self._take_outside(byte)
        else:
            yield from self._take_inside(byte)

    def _take_in_string(self, byte: int) -> Iterator[object]:
        self._pending.append(byte)
        if self._escaped:
            self._escaped = False
        elif byte == ord("\\"):
            self._escaped = True
        elif byte == ord('"'):
            self._in_string = False
            if self._depth == 0:
                yield self._finish()

    def _take_outside(self, byte: int) -> Iterator[object]:
        """Between values, or inside a number or keyword that stands alone."""
        delimits = byte in _SPACE or byte in _OPEN or byte in _CLOSE or byte in _ALONE
        if self._pending and (delimits or byte == ord('"')):
            yield self._finish()
        if byte in _SPACE:
            return
        if byte in _CLOSE or byte in _ALONE:
            yield ParseError("expecting value")
            return
        self._pending.append(byte)
        self._depth = int(byte in _OPEN)
        self._in_string = byte == ord('"')

    def _take_inside(self, byte: int) -> Iterator[object]:
        self._pending.append(byte)
        if byte == ord('"'):
            self._in_string = True
        elif byte in _OPEN:
            self._depth += 1
            if self._depth > MAX_DEPTH:
                self._forget()
                yield ParseError("nesting too deep")
        elif byte in _CLOSE:
            self._depth -= 1
            if self._depth == 0:
                yield self._finish()

    def _finish(self) -> object:
        text = self._pending.decode("utf-8", "replace")
        self._forget()
        try:
            return parse(text)
        except ParseError as error:
            return error

    def _forget(self) -> None:
        self._pending.clear()
        self._depth = 0
        self._in_string = False
        self._escaped = False


def parse(text: str) -> object:
    """The value of one JSON text. Raises ParseError."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        raise ParseError(_explain(error)) from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ParseError("duplicate key")
    return found


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ParseError(f"number of {len(text)} digits is out of range")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ParseError(f"number {_short(text)!r} is out of range")
    return value


def _refuse_constant(text: str) -> float:
    raise ParseError(f"invalid keyword '{text}'")


def _explain(error: json.JSONDecodeError) -> str:
    keyword = _KEYWORD.match(error.doc, error.pos)
    if keyword:
        return f"invalid keyword '{_short(keyword.group())}'"
    if error.msg.startswith("Expecting ','"):
        kind = "dict" if _innermost_is_object(error.doc[: error.pos]) else "list"
        return f"expected separator in {kind}"
    if "escape" in error.msg:
        return "invalid escape sequence in string"
    return "expecting value"


def _short(text: str) -> str:
    """What a client sent, as it may stand in an answer: it can be a megabyte."""
    return text if len(text) <= MAX_DIGITS else f"{text[:MAX_DIGITS]}..."


def _innermost_is_object(text: str) -> bool:
    """True if the bracket left open last in `text` is a brace (strings are not told apart)."""
    closed = 0
    for char in reversed(text):
        if char in "}]":
            closed += 1
        elif char in "{[":
            if closed == 0:
                return char == "{"
            closed -= 1
    return False
