"""Reads what guest/inside.sh told: text from the guest, which may be anything, to GuestFacts."""

from __future__ import annotations

from dataclasses import replace

from minivmm.devices.virtio_mem.view import GuestFacts
from minivmm.units import is_power_of_two

MOST_LINES = 2000
MOST_DEVICES = 256
"""What is beyond these is not looked at."""

_LONGEST = 160
_MOST_LOG = 4
_LARGEST = 1 << 62
_NUMBERS = {
    "block": "memory_block",
    "available": "available",
    "online": "online",
    "offline": "offline",
    "kernel": "kernel_zone",
}
_DRIVER_STATES = ("bound", "unbound", "missing")


def parse_facts(text: str) -> dict[str, GuestFacts]:
    """Facts by device id. Lines that make no sense, or come cut off, are as if never told."""
    general = facts = GuestFacts()
    found: dict[str, GuestFacts] = {}
    identifier: str | None = None
    for line in text.splitlines()[:MOST_LINES]:
        key, _, value = line.partition(" ")
        if key == "device":
            general = facts if identifier is None else general
            facts, identifier = general, value
        else:
            facts = _with(facts, key, value)
        if identifier is not None and (identifier in found or len(found) < MOST_DEVICES):
            found[identifier] = facts
    return found


def printable(text: str) -> str:
    """`text` as it may be shown: short, and without characters that do things."""
    return "".join(char if char.isprintable() else "?" for char in text[:_LONGEST])


def _with(facts: GuestFacts, key: str, value: str) -> GuestFacts:
    """`facts` and what the line says, if it is one of ours."""
    if key in _NUMBERS:
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else -1
        if not 0 <= number < _LARGEST or (key == "block" and not is_power_of_two(number)):
            return facts
        return replace(facts, **{_NUMBERS[key]: number})  # type: ignore[arg-type]
    if key == "policy":
        return replace(facts, policy=printable(value))
    if key == "driver" and value in _DRIVER_STATES:
        return replace(facts, driver=value)
    if key == "log" and len(facts.log) < _MOST_LOG:
        return replace(facts, log=(*facts.log, printable(value)))
    return facts
