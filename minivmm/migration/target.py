"""The target's side: compare, plug, fill memory, load the machine, take it over.

The machine was built empty and is not started. Whatever fails, it never runs, and the source is
told why.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from minivmm.errors import BadState, MigrationError, MinivmmError
from minivmm.machine import Machine
from minivmm.migration import wire
from minivmm.migration.channel import Channel
from minivmm.migration.pages import Filler
from minivmm.migration.progress import Progress
from minivmm.migration.wire import Kind
from minivmm.saved import Section
from minivmm.snapshot import ram
from minivmm.snapshot.machine import describe, differences, load_machine, load_memory_devices
from minivmm.units import MIB
from minivmm.vcpu import blame

SECTIONS_MAX = 4096
"""Most parts of a machine; vCPUs and PCI functions are bounded far below."""

SECTIONS_SIZE = 256 * MIB
"""Most bytes of all of them; the largest are block states, at most a few MiB."""

_LONGEST = 200
"""Characters that are shown of something that makes no sense."""

_SAID = 3
"""Differences of the machines that are said; more would not fit on a line."""


class Target:
    """Takes over what a source sends, in a thread of its own."""

    def __init__(self, machine: Machine, channel: Channel, progress: Progress) -> None:
        self._machine = machine
        self._lock = machine.loop.lock
        self._channel = channel
        self._progress = progress

    def receive(self, start: Callable[[], None]) -> None:
        """All of it; `start` lets the machine run, lock held, once it is ours. Raises MinivmmError.

        It is ours from RUN on, whether or not the source hears that we have got it.
        """
        try:
            self._agree()
            pieces = self._take_devices()
            sections = self._take_memory()
            self._take_machine(sections, pieces)
            self._channel.send(Kind.LOADED)
            self._channel.expect(Kind.RUN, None)
            with self._lock:
                start()
        except Exception as error:  # whatever it is: the source waits for a word
            why = blame(error)
            self._channel.fail(why)
            raise error if isinstance(error, MinivmmError) else MigrationError(why) from error
        with suppress(MigrationError):
            self._channel.send(Kind.RUNNING)

    def _agree(self) -> None:
        """Refuse a machine that is not like ours, before anything of it is taken."""
        self._channel.greet()
        self._channel.expect_greeting()
        theirs = wire.parse_json(self._channel.expect(Kind.DESCRIPTION), "the description")
        with self._lock:
            found = differences(theirs, describe(self._machine))
        if found:
            more = f" (and {len(found) - _SAID} more)" if len(found) > _SAID else ""
            raise MigrationError(f"the machines differ: {'; '.join(found[:_SAID])}{more}")
        self._channel.send(Kind.READY)

    def _take_devices(self) -> list[ram.Piece]:
        """Plug what the source has plugged; all of guest memory as it will be."""
        sections, said = self._sections(Kind.PLUGGED)
        with self._lock:
            load_memory_devices(self._machine, sections)
            self._compare_plugged(said)
            pieces = ram.plugged(self._machine.board.memory)
        self._progress.total = self._progress.remaining = sum(piece.size for piece in pieces)
        self._progress.status = "active"
        self._channel.send(Kind.READY)
        return pieces

    def _take_memory(self) -> list[Section]:
        """Fill memory until the machine's state comes; the first section of that."""
        devices = self._machine.memory_devices
        populated = frozenset(name for name, one in devices.items() if one.spec.populates)
        filler = Filler(self._machine.board.memory, populated)
        while True:
            frame = self._channel.receive(None)
            if frame.kind is Kind.SECTION:
                return [wire.parse_section(frame.payload)]
            if frame.kind is not Kind.PAGES:
                raise MigrationError(f"the source sent {frame.kind.name} where pages were to come")
            taken = filler.fill(frame.payload)
            self._progress.data += taken
            self._progress.remaining = max(0, self._progress.remaining - taken)

    def _take_machine(self, first: list[Section], pieces: list[ram.Piece]) -> None:
        sections, said = self._sections(Kind.END, first)
        if said.get("sections") != len(sections):
            announced = ascii(said.get("sections"))[:_LONGEST]
            raise MigrationError(f"{len(sections)} sections came, not {announced}")
        with self._lock:
            load_machine(self._machine, sections)
            self._compare_plugged(said)
            if ram.plugged(self._machine.board.memory) != pieces:
                raise BadState("memory devices", "blocks", "plugged", "they were others before")

    def _sections(
        self, last: Kind, first: list[Section] | None = None
    ) -> tuple[list[Section], dict[str, object]]:
        """Sections up to the frame of kind `last`, and what that says."""
        sections = list(first or [])
        size = 0
        while True:
            frame = self._channel.receive()
            if frame.kind is last:
                return sections, wire.parse_json(frame.payload, last.name)
            size += len(frame.payload)
            if size > SECTIONS_SIZE:
                raise MigrationError(f"the source sent more than {SECTIONS_SIZE} bytes of state")
            if frame.kind is not Kind.SECTION or len(sections) == SECTIONS_MAX:
                raise MigrationError(
                    f"the source sent {frame.kind.name} where {last.name} was to come"
                )
            sections.append(wire.parse_section(frame.payload))

    def _compare_plugged(self, said: dict[str, object]) -> None:
        """Both sides agree to the byte on what is plugged."""
        here = {name: one.plugged_size for name, one in self._machine.memory_devices.items()}
        if said.get("plugged") != here:
            claimed = ascii(said.get("plugged"))[:_LONGEST]
            raise BadState("memory devices", "plugged", claimed, f"it is {here} here")
