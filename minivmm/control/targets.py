"""Which memory device a user means, and what size, by query-memory-devices; and setting it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minivmm.control.client import Client
from minivmm.errors import UsageError
from minivmm.units import align_down, format_size, parse_size


def pick_device(
    devices: Sequence[dict[str, Any]], identifier: str | None, machine: str
) -> dict[str, Any]:
    """The data of device `identifier`, or of the only one. Raises UsageError."""
    found: dict[str, dict[str, Any]] = {d["data"]["id"]: d["data"] for d in devices}
    if not found:
        raise UsageError(
            f"{machine} has no memory device: boot it with --mem-device size=4G to resize it"
        )
    if identifier is None:
        if len(found) > 1:
            raise UsageError(f"{machine} has {', '.join(found)}: choose one with --device")
        identifier = next(iter(found))
    if identifier not in found:
        raise UsageError(
            f"{machine} has no memory device {identifier!r}: it has {', '.join(found)}"
        )
    return found[identifier]


def request_size(
    client: Client, identifier: str | None, text: str, machine: str
) -> tuple[str, int]:
    """Ask device `identifier`, or the only one, for `text` (SIZE, +SIZE or -SIZE).

    The device's id, and the target in bytes. Raises UsageError.
    """
    device = pick_device(client.execute("query-memory-devices"), identifier, machine)
    target = target_size(text, device)
    client.execute("qom-set", path=device["id"], property="requested-size", value=target)
    return device["id"], target


def target_size(text: str, device: Mapping[str, Any]) -> int:
    """Bytes that `text` (SIZE, +SIZE or -SIZE) asks for. Raises UsageError if `device` cannot."""
    size = parse_size(text.lstrip("+-"))
    if text.startswith("+"):
        size = device["requested-size"] + size
    elif text.startswith("-"):
        size = device["requested-size"] - size
    block, most = device["block-size"], device["max-size"]
    shown = format_size(size) if size >= 0 else f"-{format_size(-size)}"
    if not 0 <= size <= most:
        raise UsageError(
            f"requested-size {shown} is outside the region of {device['id']}"
            f" (0 to {format_size(most)}; requested now: {format_size(device['requested-size'])})"
        )
    if size % block:
        below = align_down(size, block)
        raise UsageError(
            f"requested-size {shown} is not a multiple of block-size {format_size(block)}"
            f" (nearest: {format_size(below)}, {format_size(below + block)})"
        )
    return size
