"""Following a resize: progress on stderr until plugged equals requested, the diagnosis if not."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from minivmm.cli.text import say
from minivmm.cli.why import brief
from minivmm.control.client import Client
from minivmm.control.inside import diagnoses
from minivmm.errors import Refused, WaitTimeout
from minivmm.units import MIB, format_size

POLL = 0.5
"""Seconds between looks when no event comes (events come at most once a second)."""

STALL = 5.5
"""Seconds without a change after which the diagnosis is told; it takes 5 s of silence."""

PATIENCE = 3.0
"""Seconds that the guest may take to tell what it knows of the matter."""

BAR = 12
"""Characters of the progress bar."""


class Follower:
    """Watches device `identifier` on its way to `target` bytes; `agent` is the VM's exec socket."""

    def __init__(
        self, client: Client, agent: Path, identifier: str, target: int, *, quiet: bool
    ) -> None:
        self._client = client
        self._agent = agent
        self._id = identifier
        self._target = target
        self._quiet = quiet
        self._tty = sys.stderr.isatty()
        self._line_open = False

    def follow(self, seconds: float) -> None:
        """Return when it is there. Raises WaitTimeout after `seconds`.

        Raises Refused if somebody asks for another size meanwhile.
        """
        started = time.monotonic()
        device = self._look()
        first = last = device["size"]
        changed = started
        warned = False
        self._show(first, first, 0.0)
        while device["size"] != self._target:
            now = time.monotonic()
            left = started + seconds - now
            if left <= 0:
                self._end_line()
                raise WaitTimeout(
                    f"{self._id} has {format_size(device['size'])} of"
                    f" {format_size(self._target)} after {seconds:g} s: {self._why()}"
                )
            self._client.event(min(POLL, left))
            device = self._look()
            if device["size"] != last:
                last, changed, warned = device["size"], time.monotonic(), False
                self._show(first, last, changed - started)
            elif time.monotonic() - changed > STALL and not warned:
                warned = True
                self._end_line()
                if not self._quiet:
                    say(f"{self._id}: no change for {STALL:.0f} s: {self._why()}")
        self._end_line()

    def _why(self) -> str:
        found = diagnoses(self._client, self._agent, self._id, patience=PATIENCE)
        return brief(found[0])

    def _look(self) -> dict[str, Any]:
        # Not x-minivmm-info: that looks for host memory, page table by page table.
        rows = (row["data"] for row in self._client.execute("query-memory-devices"))
        device: dict[str, Any] = next(row for row in rows if row["id"] == self._id)
        if device["requested-size"] != self._target:
            self._end_line()
            raise Refused(
                f"{self._id}: requested-size became {format_size(device['requested-size'])} while"
                f" waiting for {format_size(self._target)}"
            )
        return device

    def _show(self, first: int, size: int, elapsed: float) -> None:
        """One state: the same line again on a terminal, a line of its own elsewhere."""
        if self._quiet:
            return
        line = progress_line(first, size, self._target, elapsed)
        if self._tty:
            sys.stderr.write(f"\r{line:<60}")
            sys.stderr.flush()
            self._line_open = True
        else:
            say(f"{self._id} {line}")

    def _end_line(self) -> None:
        if self._line_open:
            sys.stderr.write("\n")
            self._line_open = False


def progress_line(first: int, size: int, target: int, elapsed: float) -> str:
    """`256M/512M  ######------  plugging  120 MB/s` for `size` bytes on the way to `target`."""
    whole = abs(target - first)
    done = BAR if whole == 0 else min(BAR, BAR * abs(size - first) // whole)
    doing = "done" if size == target else "plugging" if target > size else "unplugging"
    speed = f"  {abs(size - first) / elapsed / 1e6:.0f} MB/s" if elapsed > 0 else ""
    shown = format_size(size - size % MIB if size > MIB else size)
    return f"{shown}/{format_size(target)}  {'#' * done:-<{BAR}}  {doing}{speed}"
