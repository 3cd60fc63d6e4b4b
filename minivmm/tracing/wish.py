"""What a follower of a trace asks for: details, and a filter by source and name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from minivmm.errors import UsageError
from minivmm.options import unknown
from minivmm.trace import Detail

MOST_PATTERNS = 64
LONGEST_PATTERN = 200
"""Characters. Both bound what a follower may cost the machine."""

ALWAYS = "dropped"
"""No filter keeps back that something is missing."""

_KEYS = ("details", "filter")


class Filter:
    """Patterns SOURCE, SOURCE:NAME, :NAME with the shell's wildcards; a leading `!` takes away.

    Without a pattern that adds, everything is wanted that none takes away. Raises UsageError.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        if len(patterns) > MOST_PATTERNS:
            raise UsageError(f"{len(patterns)} filters are too many: at most {MOST_PATTERNS}")
        self._more = [_halves(text) for text in patterns if not text.startswith("!")]
        self._less = [_halves(text[1:]) for text in patterns if text.startswith("!")]
        self._known: dict[tuple[str, str], bool] = {}

    def wants(self, source: str, name: str) -> bool:
        """Is the event `name` of `source` to be passed on?"""
        key = (source, name)
        wanted = self._known.get(key)
        if wanted is None:
            # Sources and names are the machine's, so there are few; a guest invents none.
            wanted = self._known[key] = name == ALWAYS or self._decide(source, name)
        return wanted

    def _decide(self, source: str, name: str) -> bool:
        if _matches(self._less, source, name):
            return False
        return not self._more or _matches(self._more, source, name)


@dataclass(frozen=True)
class Wish:
    """Which events a follower wants. Construction raises UsageError for patterns that are none."""

    details: tuple[Detail, ...] = (Detail.REQUESTS,)
    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Filter(self.patterns)

    def to_json(self) -> dict[str, object]:
        """As followers send it, and as headers tell it."""
        return {"details": [str(detail) for detail in self.details], "filter": list(self.patterns)}


def parse_details(text: str) -> tuple[Detail, ...]:
    """Details by name, in words separated by commas; "" means none. Raises UsageError."""
    return _details([word for word in text.split(",") if word])


def wish_from_json(data: object) -> Wish:
    """The wish that a follower sent. Raises UsageError, in one line."""
    if not isinstance(data, Mapping):
        raise UsageError('a follower sends one JSON object, {} or {"details": [...], ...}')
    for key in data:
        if key not in _KEYS:
            raise UsageError(unknown("key", str(key), list(_KEYS)))
    details = _texts(data, "details", [str(detail) for detail in Wish.details])
    return Wish(_details(details), tuple(_texts(data, "filter", [])))


def _details(words: list[str]) -> tuple[Detail, ...]:
    for word in words:
        if word not in list(Detail):
            raise UsageError(unknown("detail", word, [str(detail) for detail in Detail]))
    return tuple(detail for detail in Detail if detail in words)


def _texts(data: Mapping[str, object], key: str, default: list[str]) -> list[str]:
    value = data.get(key, default)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UsageError(f"{key} must be a list of texts")
    return value


def _matches(patterns: list[tuple[str, str]], source: str, name: str) -> bool:
    return any(fnmatchcase(source, left) and fnmatchcase(name, right) for left, right in patterns)


def _halves(text: str) -> tuple[str, str]:
    """Patterns for source and name."""
    source, _, name = text.partition(":")
    if not (source or name) or ":" in name or len(text) > LONGEST_PATTERN:
        raise UsageError(
            f"filter {text[:LONGEST_PATTERN]!r} is not understood: SOURCE, SOURCE:NAME or :NAME,"
            " such as vmem0, 'vmem*:answer', '!:config'"
        )
    return source or "*", name or "*"
