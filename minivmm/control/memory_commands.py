"""QMP commands of minivmm's own about memory devices: why, kick, audit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypedDict

from minivmm.control.commands import command
from minivmm.control.face import Context
from minivmm.control.facts import parse_facts, printable
from minivmm.devices.virtio_mem.audit import audit
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.diagnosis import diagnose
from minivmm.errors import Refused


class Kicked(TypedDict):
    """A memory device, and whether its driver got the interrupt."""

    id: str
    sent: bool


Audited = TypedDict(
    "Audited",
    {
        "id": str,
        "size": int,
        "resident-plugged": int,
        "resident-unplugged": int,
        "places": list[str],
    },
)
"""A memory device: bytes plugged, and host memory behind plugged and unplugged blocks."""


@command("x-minivmm-why")
def why(context: Context, id: str | None = None, inside: str | None = None) -> object:
    """Diagnosis of each memory device, or of one; `inside` is what guest/inside.sh printed."""
    facts = parse_facts(inside or "")
    agent = context.agent
    found = []
    for device in chosen(context, id):
        view = context.machine.view(device.identifier)
        diagnosis = diagnose(view, facts.get(device.identifier))
        if inside is not None and device.identifier not in facts:
            said = printable(inside.partition("\n")[0]) or "no answer"
            line = f"the guest's agent was asked, but does not tell: {said}"
            diagnosis = replace(diagnosis, evidence=(*diagnosis.evidence, line))
        found.append(
            {
                "id": device.identifier,
                "pci-address": view.around.pci_address,
                "memaddr": view.base,
                "max-size": view.region_size,
                **diagnosis.to_json(),
            }
        )
    return {"agent-ready": agent is not None and agent.ready, "memory-devices": found}


@command("x-minivmm-kick")
def kick(context: Context, id: str | None = None) -> list[Kicked]:
    """Send drivers the configuration interrupt that ends their wait before a retry (MEM-D-11).

    `sent` is false where no driver is up to get it.
    """
    kicked: list[Kicked] = []
    for device in chosen(context, id):
        device.kick()
        live = context.machine.view(device.identifier).live
        kicked.append({"id": device.identifier, "sent": live})
    return kicked


@command("x-minivmm-audit")
def audit_memory(context: Context, id: str | None = None) -> list[Audited]:
    """Host memory behind plugged and behind unplugged blocks; walks the regions, lock held."""
    rows: list[Audited] = []
    for device in chosen(context, id):
        found = audit(device)
        rows.append(
            {
                "id": device.identifier,
                "size": found.plugged,
                "resident-plugged": found.resident_plugged,
                "resident-unplugged": found.resident_unplugged,
                "places": list(found.places),
            }
        )
    return rows


def chosen(context: Context, identifier: str | None) -> Iterable[VirtioMem]:
    """Memory device `identifier`, or all. Raises Refused if there is none of that id."""
    devices = context.machine.memory_devices
    if identifier is None:
        return devices.values()
    if identifier not in devices:
        raise Refused(f"Device '{identifier}' not found", "DeviceNotFound")
    return (devices[identifier],)
