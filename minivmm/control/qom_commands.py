"""QMP commands about objects and their properties: qom-get, qom-set, qom-list and what lists types.

The objects themselves are in qom.py. Shapes: QEMU qapi/qom.json, qdev.json.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from minivmm.control import qom
from minivmm.control.commands import Nothing, command
from minivmm.control.face import Context
from minivmm.errors import Refused
from minivmm.machine_spec import DEVICE_TYPES
from minivmm.options import describe


class PropertyInfo(TypedDict):
    """ObjectPropertyInfo."""

    name: str
    type: str
    description: NotRequired[str]


class TypeInfo(TypedDict):
    """ObjectTypeInfo."""

    name: str


@command("qom-get")
def qom_get(context: Context, path: str, property: str) -> object:
    """Read a property."""
    return qom.qom_get(context.machine, path, property)


@command("qom-set")
def qom_set(context: Context, path: str, property: str, value: object) -> Nothing:
    """Write a property; `requested-size` of a virtio-mem device is the one that takes a value."""
    qom.qom_set(context.machine, path, property, value)
    return {}


@command("qom-list")
def qom_list(context: Context, path: str) -> list[PropertyInfo]:
    """Properties and children of an object."""
    rows = qom.qom_list(context.machine, path)
    return [{"name": row["name"], "type": row["type"]} for row in rows]


@command("qom-list-types")
def qom_list_types(
    context: Context, implements: str | None = None, abstract: bool = False
) -> list[TypeInfo]:
    """Devices that the command line can add; `implements` chooses one, or "device" for all."""
    return [{"name": name} for name in DEVICE_TYPES if implements in (None, "device", name)]


@command("device-list-properties")
def device_list_properties(context: Context, typename: str) -> list[PropertyInfo]:
    """What `--device TYPENAME,...` takes, each with what it means."""
    if typename not in DEVICE_TYPES:
        raise Refused(f"Device '{typename}' not found", "DeviceNotFound")
    return [
        {"name": name, "type": info.kind, "description": info.help}
        for name, info, _ in describe(DEVICE_TYPES[typename])
    ]
