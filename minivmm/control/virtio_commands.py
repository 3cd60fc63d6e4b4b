"""x-query-virtio and its kin: status, features and queues of virtio devices, decoded by name.

Shapes are those of QEMU 7.2 (qapi/virtio.json). Its fields about vhost and about its own internals
are there, with what is true of a device that has neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NotRequired, TypedDict

from minivmm.control import virtio_names
from minivmm.control.commands import command
from minivmm.control.face import Context
from minivmm.control.qom import backend_path
from minivmm.devices.spec import qom_path
from minivmm.errors import Refused
from minivmm.spec.virtio import DeviceStatus
from minivmm.virtio.pci import VirtioPciFunction
from minivmm.virtio.queue_registers import Part
from minivmm.virtio.transport import Transport

LEGACY_ALIGNMENT = 4096
"""Where a legacy driver would put the used ring; there is none here, but the field is mandatory."""


class VirtioInfo(TypedDict):
    """VirtioInfo: where a device is, and what it is."""

    path: str
    name: str


Features = TypedDict(
    "Features",
    {
        "transports": list[str],
        "dev-features": list[str],
        "unknown-dev-features": NotRequired[int],
    },
)
"""VirtioDeviceFeatures: "NAME: meaning" of every bit, and those without a name as a number."""

Statuses = TypedDict("Statuses", {"statuses": list[str], "unknown-statuses": NotRequired[int]})
"""VirtioDeviceStatus."""

VirtioStatus = TypedDict(
    "VirtioStatus",
    {
        "name": str,
        "device-id": int,
        "vhost-started": bool,
        "device-endian": Literal["little"],
        "guest-features": Features,
        "host-features": Features,
        "backend-features": Features,
        "num-vqs": int,
        "status": Statuses,
        "isr": int,
        "queue-sel": int,
        "vm-running": bool,
        "broken": bool,
        "disabled": bool,
        "use-started": bool,
        "started": bool,
        "start-on-kick": bool,
        "disable-legacy-check": bool,
        "bus-name": str,
        "use-guest-notifier-mask": bool,
        "x-minivmm-trouble": NotRequired[str],
    },
)
"""VirtioStatus; `x-minivmm-trouble` says why a device is broken."""

QueueStatus = TypedDict(
    "QueueStatus",
    {
        "name": str,
        "queue-index": int,
        "inuse": int,
        "vring-num": int,
        "vring-num-default": int,
        "vring-align": int,
        "vring-desc": int,
        "vring-avail": int,
        "vring-used": int,
        "last-avail-idx": int,
        "shadow-avail-idx": int,
        "used-idx": int,
        "signalled-used": int,
        "signalled-used-valid": bool,
    },
)
"""VirtQueueStatus; of a packed ring, desc, avail and used are ring, driver and device area."""


@command("x-query-virtio")
def query_virtio(context: Context) -> list[VirtioInfo]:
    """All virtio devices."""
    return [
        {"path": backend_path(one.device.identifier), "name": one.device.traits.name}
        for one in functions(context)
    ]


@command("x-query-virtio-status")
def query_virtio_status(context: Context, path: str) -> VirtioStatus:
    """Status, features and flags of the device at `path` (of x-query-virtio; or an id)."""
    function = find(context, path)
    transport, device = function.transport, function.device
    status = int(transport.status)
    statuses, unknown = virtio_names.decode(status, virtio_names.STATUSES)
    decoded: Statuses = {"statuses": statuses}
    if unknown:
        decoded["unknown-statuses"] = unknown
    found: VirtioStatus = {
        "name": device.traits.name,
        "device-id": device.traits.device_id,
        "vhost-started": False,
        "device-endian": "little",
        "guest-features": _features(device.traits.name, transport.driver_features),
        "host-features": _features(device.traits.name, transport.device_features),
        "backend-features": _features(device.traits.name, 0),
        "num-vqs": len(transport.queue_registers),
        "status": decoded,
        "isr": function.isr,
        "queue-sel": function.selected_queue,
        "vm-running": context.machine.state == "running",
        "broken": DeviceStatus.NEEDS_RESET in transport.status,
        "disabled": False,
        "use-started": True,
        "started": DeviceStatus.DRIVER_OK in transport.status,
        "start-on-kick": False,
        "disable-legacy-check": False,
        "bus-name": "",
        "use-guest-notifier-mask": False,
    }
    if transport.trouble:
        found["x-minivmm-trouble"] = transport.trouble
    return found


@command("x-query-virtio-queue-status")
def query_virtio_queue_status(context: Context, path: str, queue: int) -> QueueStatus:
    """Where queue number `queue` lies and how far both sides got; zeroes if it is not live."""
    function = find(context, path)
    transport = function.transport
    check_queue(transport, queue)
    registers = transport.queue_registers[queue]
    state = live_queue(transport, queue)
    used = state.get("used", state.get("next-used", 0))
    return {
        "name": function.device.traits.name,
        "queue-index": queue,
        "inuse": state.get("in-flight", 0),
        "vring-num": registers.size,
        "vring-num-default": registers.max_size,
        "vring-align": LEGACY_ALIGNMENT,
        "vring-desc": registers.address(Part.DESCRIPTORS),
        "vring-avail": registers.address(Part.DRIVER),
        "vring-used": registers.address(Part.DEVICE),
        "last-avail-idx": state.get("next-avail", 0),
        "shadow-avail-idx": state.get("next-avail", 0),
        "used-idx": used,
        "signalled-used": used,  # every used buffer is decided on as it is shown
        "signalled-used-valid": bool(state.get("signalled", False)),
    }


def functions(context: Context) -> Iterator[VirtioPciFunction]:
    """The virtio devices on the bus, by slot."""
    return (one for one in context.machine.functions if isinstance(one, VirtioPciFunction))


def find(context: Context, path: str) -> VirtioPciFunction:
    """The virtio device at `path`. Raises Refused."""
    for one in functions(context):
        name = one.device.identifier
        if path in (name, qom_path(name), backend_path(name)):
            return one
    raise Refused(f"Path {path} is not a VirtIODevice")


def check_queue(transport: Transport, queue: int) -> None:
    """Raises Refused if the device has no such queue."""
    if not 0 <= queue < 1 << 16:
        raise Refused("Parameter 'queue' expects uint16_t")
    if queue >= len(transport.queue_registers):
        raise Refused(f"Invalid virtqueue number {queue}")


def live_queue(transport: Transport, queue: int) -> dict[str, int]:
    """The numbers of a queue's inspect(), of which a queue that is not live has none."""
    states = (state for state in transport.live_queues() if state["index"] == queue)
    state = next(states, {})
    return {key: value for key, value in state.items() if isinstance(value, int)}


def _features(name: str, value: int) -> Features:
    """`value` as bits of the transport and of a device called `name`."""
    transports, rest = virtio_names.decode(value, virtio_names.TRANSPORT)
    own, unknown = virtio_names.decode(rest, virtio_names.BY_DEVICE.get(name, {}))
    found: Features = {"transports": transports, "dev-features": own}
    if unknown:
        found["unknown-dev-features"] = unknown
    return found
