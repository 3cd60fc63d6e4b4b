"""Where in a scenario file a rule, or a key of one, stands: for complaints that name a line."""

from __future__ import annotations

import json
import re
from json.decoder import JSONDecoder, scanstring  # type: ignore[attr-defined]

Path = tuple[str | int, ...]
"""("rules", 2, "times"): the key `times` of the third rule."""

_SPACE = re.compile(r"\s*")
_DECODER = JSONDecoder()
_HEADER = re.compile(r"\s*\[\[\s*rules\s*\]\]")
_TABLE = re.compile(r"\s*\[")


def json_lines(text: str) -> dict[Path, int]:
    """The line, counted from 1, of every key and every element of the JSON document `text`."""
    offsets: dict[Path, int] = {}
    _walk(text, _skip(text, 0), (), offsets)
    return {path: text.count("\n", 0, at) + 1 for path, at in offsets.items()}


def toml_lines(text: str) -> dict[Path, int]:
    """The same for the rules of a TOML document that has each under its own [[rules]]."""
    lines: dict[Path, int] = {}
    number, inside = -1, False
    for line, content in enumerate(text.splitlines(), 1):
        if _HEADER.match(content):
            number, inside = number + 1, True
            lines["rules", number] = line
        elif _TABLE.match(content):
            inside = False
        elif "=" in content:
            key = content.partition("=")[0].strip().strip("\"'")
            path: Path = ("rules", number, key) if inside else (key,)
            lines.setdefault(path, line)
    return lines


def _walk(text: str, at: int, path: Path, offsets: dict[Path, int]) -> int:
    """Note what the value at `at` consists of; where it ends."""
    opening = text[at]
    if opening not in "{[":
        _, end = _DECODER.raw_decode(text, at)
        return end
    closing = "}" if opening == "{" else "]"
    at, count = _skip(text, at + 1), 0
    while text[at] != closing:
        start, key = at, count
        inner: Path = (*path, key)
        if opening == "{":
            name, at = scanstring(text, at + 1)
            inner = (*path, name)
            at = _skip(text, _skip(text, at) + 1)  # behind the colon
        offsets[inner] = start
        at = _skip(text, _walk(text, at, inner, offsets))
        at = _skip(text, at + 1) if text[at] == "," else at
        count += 1
    return at + 1


def _skip(text: str, at: int) -> int:
    """Behind white space."""
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def syntax_line(error: ValueError) -> int | None:
    """The line that the JSON or TOML parser complains of, if it says."""
    if isinstance(error, json.JSONDecodeError):
        return error.lineno
    found = re.search(r"at line (\d+)", str(error))
    return None if found is None else int(found.group(1))
