"""`info ...` of the human monitor: answers of QMP commands as lines, laid out as QEMU does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from minivmm.control import balloon, block_commands, machine_commands, memory_queries, qom
from minivmm.control.face import Context
from minivmm.control.hmp_devices import PCI_AND_VIRTIO
from minivmm.control.hmp_line import Line, truth
from minivmm.control.hmp_migration import INFO as MIGRATION
from minivmm.units import MIB

_STATES = ("running", "paused")


def _status(context: Context) -> Iterable[str]:
    state = context.machine.state
    return [f"VM status: {state if state in _STATES else f'paused ({state})'}"]


def _name(context: Context) -> Iterable[str]:
    return [context.machine.name]


def _version(context: Context) -> Iterable[str]:
    said = machine_commands.version()
    numbers = said["qemu"]
    return [f"{numbers['major']}.{numbers['minor']}.{numbers['micro']} ({said['package']})"]


def _kvm(context: Context) -> Iterable[str]:
    return ["kvm support: enabled"]


def _cpus(context: Context) -> Iterator[str]:
    """The star is at the monitor's current CPU, which here is always the first."""
    for cpu in machine_commands.query_cpus_fast(context):
        mark = "*" if cpu["cpu-index"] == 0 else " "
        yield f"{mark} CPU #{cpu['cpu-index']}: thread_id={cpu['thread-id']}"


def _balloon(context: Context) -> Iterable[str]:
    return [f"balloon: actual={balloon.query_balloon(context)['actual'] // MIB}"]


def _memory_devices(context: Context) -> Iterator[str]:
    for entry in memory_queries.query_memory_devices(context):
        data = entry["data"]
        yield f'Memory device [{entry["type"]}]: "{data["id"]}"'
        yield f"  memaddr: {data['memaddr']:#x}"
        yield f"  node: {data['node']}"
        yield f"  requested-size: {data['requested-size']}"
        yield f"  size: {data['size']}"
        yield f"  max-size: {data['max-size']}"
        yield f"  block-size: {data['block-size']}"
        yield f"  memdev: {data['memdev']}"


def _memory_size_summary(context: Context) -> Iterable[str]:
    found = memory_queries.query_memory_size_summary(context)
    return [f"base memory: {found['base-memory']}", f"plugged memory: {found['plugged-memory']}"]


def _memdev(context: Context) -> Iterator[str]:
    for one in memory_queries.query_memdev(context):
        yield f"memory backend: {one['id']}"
        yield f"  size:  {one['size']}"
        yield f"  merge: {truth(one['merge'])}"
        yield f"  dump: {truth(one['dump'])}"
        yield f"  prealloc: {truth(one['prealloc'])}"
        yield f"  share: {truth(one['share'])}"
        yield f"  reserve: {truth(one['reserve'])}"
        yield f"  policy: {one['policy']}"
        yield "  host nodes: "
    yield ""


def _numa(context: Context) -> Iterator[str]:
    """QEMU hw/core/machine-hmp-cmds.c: the size of a node includes what is plugged there."""
    machine = context.machine
    yield f"{len(machine.numa.nodes)} nodes"
    for number, node in enumerate(machine.numa.nodes):
        devices = (one for one in machine.memory_devices.values() if one.spec.node == number)
        plugged = sum(device.plugged_size for device in devices)
        yield " ".join([f"node {number} cpus:", *map(str, node.cpus)])
        yield f"node {number} size: {(node.memory + plugged) // MIB} MB"
        yield f"node {number} plugged: {plugged // MIB} MB"


def _block(context: Context) -> Iterator[str]:
    for one in block_commands.query_block(context):
        inserted = one["inserted"]
        readonly = ", read-only" if inserted["ro"] else ""
        yield f"{one['device']}: {inserted['file']} ({inserted['drv']}{readonly})"
        yield f"    Attached to:      {one['qdev']}"
        mode = "writeback" if inserted["cache"]["writeback"] else "writethrough"
        yield f"    Cache mode:       {mode}"


def _qom_tree(context: Context, path: str = "/machine") -> Iterator[str]:
    objects = qom.tree(context.machine)
    top = qom.resolve(objects, path)
    yield f"{top} ({objects[top].type})"
    inside = top.rstrip("/") + "/"
    for name in sorted(name for name in objects if name.startswith(inside) and name != inside):
        parts = name.removeprefix(inside).split("/")
        yield f"{'  ' * len(parts)}/{parts[-1]} ({objects[name].type})"


INFO = (
    Line(("balloon",), "how much of its boot memory the balloon leaves the guest", _balloon),
    Line(("block",), "disks", _block),
    Line(("cpus",), "CPUs and their threads on the host", _cpus),
    Line(("kvm",), "is KVM in use?", _kvm),
    Line(("memdev",), "host memory behind memory devices", _memdev),
    Line(("memory-devices",), "memory devices and their sizes", _memory_devices),
    Line(
        ("memory_size_summary",), "boot memory and plugged memory, in bytes", _memory_size_summary
    ),
    Line(("name",), "the VM's name", _name),
    Line(("numa",), "nodes, their CPUs and memory", _numa),
    Line(("qom-tree",), "objects, as qom-list shows them", _qom_tree, ("[path]",)),
    Line(("status",), "does the machine run?", _status),
    Line(("version",), "versions", _version),
    *PCI_AND_VIRTIO,
    *MIGRATION,
)
