"""Rates: how fast counters of x-minivmm-view grow, from one look to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

SPAN = 2_000_000
"""Microseconds over which a rate is taken: shorter ones jump about."""


class Rates:
    """Remembers the last looks at each device."""

    def __init__(self) -> None:
        self._looks: dict[str, deque[tuple[int, int, int]]] = {}

    def of(self, identifier: str, time: int, device: Mapping[str, Any]) -> dict[str, float]:
        """Requests, and plugged bytes (negative when they shrink), per second until `time` (us)."""
        looks = self._looks.setdefault(identifier, deque())
        looks.append((time, device["requests"], device["size"]))
        while len(looks) > 2 and looks[1][0] <= time - SPAN:
            looks.popleft()
        then, requests, size = looks[0]
        if requests > device["requests"] or then >= time:  # another machine, or the first look
            return {"requests": 0.0, "size": 0.0}
        seconds = (time - then) / 1e6
        return {
            "requests": (device["requests"] - requests) / seconds,
            "size": (device["size"] - size) / seconds,
        }
