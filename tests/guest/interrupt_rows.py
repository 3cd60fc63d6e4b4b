"""/proc/interrupts of a guest, by the names of virtio devices and their queues."""

from __future__ import annotations

from dataclasses import dataclass

from harness import Guest


@dataclass(frozen=True)
class Line:
    """A row of /proc/interrupts: counts by CPU, where it comes from, the names of its users."""

    number: int
    counts: tuple[int, ...]
    origin: str
    users: tuple[str, ...]


def interrupts(guest: Guest) -> dict[str, Line]:
    """Rows by user; a shared row stands under each of them."""
    text = guest.shell("cat /proc/interrupts")
    cpus = len(text.splitlines()[0].split())
    found: dict[str, Line] = {}
    for row in text.splitlines()[1:]:
        name, *words = row.split()
        if not name[:-1].isdigit():
            continue
        # The users come last, behind the chip and the kind; names of ours have no blanks.
        users = tuple(word.rstrip(",") for word in words[cpus:] if word.startswith("virtio"))
        origin = " ".join(words[cpus : len(words) - len(users)])
        line = Line(int(name[:-1]), tuple(map(int, words[:cpus])), origin, users)
        found |= dict.fromkeys(users, line)
    return found
