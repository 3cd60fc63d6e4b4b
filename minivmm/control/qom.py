"""The object tree that qom-get, qom-set and qom-list see: paths, properties, QEMU's names for them.

    /                                      container
    /machine                               the machine
    /machine/peripheral                    devices given on the command line, by id
    /machine/peripheral/vmem0              virtio-mem-pci
    /machine/peripheral/vmem0/virtio-backend   the device without PCI
    /machine/unattached/device[0]          vCPU 0
    /objects/vmem0-memory                  the memory behind vmem0

The tree is a view built for each command; nothing is stored here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from minivmm.control.face import ControlledMachine
from minivmm.devices.spec import DeviceSpec, qom_path
from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_balloon.spec import MOST_SECONDS
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.errors import Refused
from minivmm.machine_spec import DEVICE_TYPES
from minivmm.migration.states import refuse_on_the_way
from minivmm.options import describe
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.pci import VirtioPciFunction

CPU_TYPE = "host-x86_64-cpu"

_BACKENDS = {"anon": "memory-backend-ram", "file": "memory-backend-file"}
"""QEMU's word for a kind of Backing; the others come from memfd_create."""

_KINDS = {"size": "size", "number": "uint64", "on|off": "bool"}
"""QOM type of an option by its kind; all others are texts."""

UINT64_MAX = 2**64 - 1


@dataclass(frozen=True)
class Property:
    """`type` as qom-list shows it. `set` raises Refused for values it does not take."""

    type: str
    get: Callable[[], object]
    set: Callable[[object], None]


@dataclass(frozen=True)
class Node:
    """One object: its QOM type and what it has."""

    type: str
    properties: Mapping[str, Property] = field(default_factory=dict)


def qom_get(machine: ControlledMachine, path: str, name: str) -> object:
    """Value of property `name` of the object at `path`. Raises Refused."""
    return _property(machine, path, name).get()


def qom_set(machine: ControlledMachine, path: str, name: str, value: object) -> None:
    """Set it. Raises Refused; UsageError where the device itself refuses the value."""
    refuse_on_the_way(machine.state)
    _property(machine, path, name).set(value)


def qom_list(machine: ControlledMachine, path: str) -> list[dict[str, str]]:
    """Properties and children of the object at `path`. Raises Refused."""
    objects = tree(machine)
    found = resolve(objects, path)
    rows = [{"name": "type", "type": "string"}]
    rows += [{"name": name, "type": p.type} for name, p in objects[found].properties.items()]
    prefix = found.rstrip("/") + "/"
    for child, node in objects.items():
        name = child.removeprefix(prefix)
        if child.startswith(prefix) and name and "/" not in name:
            rows.append({"name": name, "type": f"child<{node.type}>"})
    return rows


def memory_path(device: VirtioMem) -> str:
    """Path of the memory behind `device`; what QEMU calls its memdev."""
    return f"/objects/{device.identifier}-memory"


def backend_path(identifier: str) -> str:
    """Path of a virtio device without its PCI function, as x-query-virtio names devices."""
    return f"{qom_path(identifier)}/virtio-backend"


def cpu_path(index: int) -> str:
    """Path of vCPU `index`."""
    return f"/machine/unattached/device[{index}]"


def driver_of(device: VirtioDevice) -> str:
    """What the command line calls such a device; the console, which it does not know, as QEMU."""
    options: object = device.options
    kinds = (name for name, kind in DEVICE_TYPES.items() if type(options) is kind)
    return next(kinds, "virtio-serial-pci")


def devices(machine: ControlledMachine) -> dict[str, VirtioDevice]:
    """All virtio devices by id."""
    functions = (one for one in machine.functions if isinstance(one, VirtioPciFunction))
    found: dict[str, VirtioDevice] = {one.device.identifier: one.device for one in functions}
    found |= machine.memory_devices
    if machine.balloon is not None:
        found[machine.balloon.identifier] = machine.balloon
    return found


def tree(machine: ControlledMachine) -> dict[str, Node]:
    """Every object by its full path, parents first."""
    found = {
        "/": Node("container"),
        "/objects": Node("container"),
        "/machine": Node("minivmm-machine"),
        "/machine/peripheral": Node("container"),
        "/machine/unattached": Node("container"),
    }
    for index in range(len(machine.thread_ids)):
        found[cpu_path(index)] = Node(CPU_TYPE)
    for identifier, device in devices(machine).items():
        driver = driver_of(device)
        properties = _options(device, driver)
        match device:
            case VirtioMem():
                properties |= _virtio_mem(device)
                found[memory_path(device)] = _memory(device)
            case VirtioBalloon():
                properties |= _virtio_balloon(device)
        found[qom_path(identifier)] = Node(driver, properties)
        found[backend_path(identifier)] = Node(f"{device.traits.name}-device")
    return found


def resolve(objects: Mapping[str, Node], path: str) -> str:
    """Full path for an absolute one, or for one that ends exactly one full path ("vmem0")."""
    if path.startswith("/"):
        full = "/" + path.strip("/")
        matches = [full] if full in objects else []
    else:
        matches = [full for full in objects if path and full.endswith("/" + path)]
    if len(matches) > 1:
        raise Refused(f"Path '{path}' does not uniquely identify an object")
    if not matches:
        raise Refused(f"Device '{path}' not found", "DeviceNotFound")
    return matches[0]


def _property(machine: ControlledMachine, path: str, name: str) -> Property:
    objects = tree(machine)
    node = objects[resolve(objects, path)]
    if name == "type":
        return _read_only("string", lambda: node.type, f"{node.type}.type")
    if name not in node.properties:
        raise Refused(f"Property '{node.type}.{name}' not found")
    return node.properties[name]


def _virtio_mem(device: VirtioMem) -> dict[str, Property]:
    """Properties of a virtio-mem device, under QEMU's names (hw/virtio/virtio-mem.c)."""

    def set_requested_size(value: object) -> None:
        device.set_requested_size(_uint64("requested-size", value))

    def refuse_block_size(value: object) -> None:
        raise Refused("'block-size' cannot be changed")

    return {
        "requested-size": Property("size", lambda: device.requested_size, set_requested_size),
        "size": _read_only("size", lambda: device.plugged_size, "virtio-mem.size"),
        "block-size": Property("size", lambda: device.block_size, refuse_block_size),
        "memaddr": _fixed("uint64", "memaddr", lambda: device.window.base),
        "node": _fixed("uint32", "node", lambda: device.spec.node),
        "memdev": _fixed("link<memory-backend>", "memdev", lambda: memory_path(device)),
        "unplugged-inaccessible": _fixed(
            "OnOffAuto", "unplugged-inaccessible", lambda: device.spec.unplugged_inaccessible
        ),
    }


def _virtio_balloon(device: VirtioBalloon) -> dict[str, Property]:
    """Properties of a balloon, under QEMU's names (hw/virtio/virtio-balloon.c)."""
    statistics = device.statistics

    def set_interval(value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused("Invalid parameter type for 'guest-stats-polling-interval'")
        if value < 0:
            raise Refused("timer value must be greater than zero")
        if value > MOST_SECONDS:
            raise Refused("timer value is too big")
        statistics.poll_every(value)

    return {
        "guest-stats": _read_only(
            "guest statistics", statistics.to_json, "virtio-balloon.guest-stats"
        ),
        "guest-stats-polling-interval": Property("int", lambda: statistics.interval, set_interval),
    }


def _options(device: VirtioDevice, driver: str) -> dict[str, Property]:
    """What the command line said about a device; none of it can be changed later."""
    spec = device.options
    if not isinstance(spec, DeviceSpec):
        return {}
    rows = ((name, info.kind) for name, info, _ in describe(type(spec)) if name != "id")
    return {
        name: _fixed(_KINDS.get(kind, "str"), name, _getter(spec, name), driver)
        for name, kind in rows
    }


def _getter(spec: DeviceSpec, name: str) -> Callable[[], object]:
    return lambda: getattr(spec, name.replace("-", "_"))


def _memory(device: VirtioMem) -> Node:
    kind = _BACKENDS.get(device.spec.backing, "memory-backend-memfd")
    return Node(kind, {"size": _read_only("size", lambda: device.window.size, f"{kind}.size")})


def _read_only(kind: str, get: Callable[[], object], what: str) -> Property:
    def refuse(value: object) -> None:
        raise Refused(f"Property '{what}' is not writable")

    return Property(kind, get, refuse)


def _fixed(kind: str, name: str, get: Callable[[], object], owner: str = "virtio-mem") -> Property:
    """A property that only the command line sets."""

    def refuse(value: object) -> None:
        raise Refused(
            f"Attempt to set property '{name}' on anonymous device (type '{owner}')"
            " after it was realized"
        )

    return Property(kind, get, refuse)


def _uint64(name: str, value: object) -> int:
    """`value` as QEMU reads a size from QMP: an integer; a negative one wraps around."""
    if isinstance(value, bool) or not isinstance(value, int) or value > UINT64_MAX:
        raise Refused(f"Parameter '{name}' expects uint64")
    return value & UINT64_MAX
