"""`info pci`, `info qtree` and `info virtio...` of the human monitor, laid out as QEMU does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from minivmm.control import pci_commands, qom, virtio_commands, virtio_element
from minivmm.control.face import Context
from minivmm.control.hmp_line import Line, truth
from minivmm.control.pci_commands import UNMAPPED, BarInfo, FunctionInfo
from minivmm.control.virtio_commands import Features
from minivmm.devices.spec import qom_path
from minivmm.devices.vfio_pci.function import VfioPciFunction
from minivmm.pci.function import PciFunction
from minivmm.virtio.pci import VirtioPciFunction

_PIN_NAMES = " ABCD"


def _pci(context: Context) -> Iterator[str]:
    for one in pci_commands.query_pci(context)[0]["devices"]:
        ident = one["id"]
        yield f"  Bus {one['bus']:2}, device {one['slot']:3}, function {one['function']}:"
        yield f"    {_class(one)}: PCI device {ident['vendor']:04x}:{ident['device']:04x}"
        if ident["subsystem-vendor"] or ident["subsystem"]:
            yield f"      PCI subsystem {ident['subsystem-vendor']:04x}:{ident['subsystem']:04x}"
        if one["irq_pin"]:
            yield f"      IRQ {one['irq']}, pin {_PIN_NAMES[one['irq_pin']]}"
        for bar in one["regions"]:
            width = "64 bit" if bar["mem_type_64"] else "32 bit"
            prefetch = " prefetchable" if bar["prefetch"] else ""
            yield f"      BAR{bar['bar']}: {width}{prefetch} memory at {_range(bar)}."
        yield f'      id "{one["qdev_id"]}"'


def _class(one: FunctionInfo) -> str:
    kind = one["class_info"]
    return kind["desc"] if "desc" in kind else f"Class {kind['class']:04d}"


def _range(bar: BarInfo) -> str:
    if bar["address"] == UNMAPPED:
        return "0xffffffffffffffff [not mapped]"
    return f"{bar['address']:#010x} [{bar['address'] + bar['size'] - 1:#010x}]"


def _qtree(context: Context) -> Iterator[str]:
    yield "bus: main-system-bus"
    yield "  type System"
    yield '  dev: minivmm-pcihost, id ""'
    yield "    bus: pci.0"
    yield "      type PCI"
    objects = qom.tree(context.machine)
    for function in context.machine.functions:
        yield from (f"      {line}" for line in _qdev(function, objects))


def _qdev(function: PciFunction, objects: Mapping[str, qom.Node]) -> Iterator[str]:
    """A PCI function, its properties as qom-get has them now, and the device in it."""
    described = pci_commands.describe(function)
    device = function.device if isinstance(function, VirtioPciFunction) else None
    if isinstance(function, VfioPciFunction):
        driver = "vfio-pci"
    else:
        driver = qom.driver_of(device) if device else "host-bridge"
    yield f'dev: {driver}, id "{described["qdev_id"]}"'
    if device:
        properties = objects[qom_path(device.identifier)].properties
        for name, value in ((name, one.get()) for name, one in properties.items()):
            if not isinstance(value, dict):  # statistics, which are no setting
                yield f"  {name} = {_value(value)}"
    ident = described["id"]
    yield (
        f"  class {_class(described)}, addr 00:{function.slot:02x}.0,"
        f" pci id {ident['vendor']:04x}:{ident['device']:04x}"
        f" (sub {ident['subsystem-vendor']:04x}:{ident['subsystem']:04x})"
    )
    for bar in described["regions"]:
        yield f"  bar {bar['bar']}: mem at {_range(bar)}"
    if device:
        yield "  bus: virtio-bus"
        yield "    type virtio-pci-bus"
        yield f'    dev: {device.traits.name}-device, id ""'


def _value(value: object) -> str:
    if isinstance(value, bool):
        return truth(value)
    if value is None:
        return '""'
    return f"{value} ({value:#x})" if isinstance(value, int) else f'"{value}"'


def _virtio(context: Context) -> Iterable[str]:
    return [f"{one['path']} [{one['name']}]" for one in virtio_commands.query_virtio(context)]


def _virtio_status(context: Context, path: str) -> Iterator[str]:
    found = virtio_commands.query_virtio_status(context, path)
    yield f"{path}:"
    yield f"  device_name:             {found['name']}"
    yield f"  device_id:               {found['device-id']}"
    for key in ("vhost-started", "broken", "disabled", "started", "vm-running"):
        yield f"  {key.replace('-', '_') + ':':24} {truth(bool(found[key]))}"
    yield f"  num_vqs:                 {found['num-vqs']}"
    yield f"  queue_sel:               {found['queue-sel']}"
    yield f"  isr:                     {found['isr']}"
    yield f"  endianness:              {found['device-endian']}"
    yield "  status:"
    yield from _indented(found["status"]["statuses"])
    yield from _features("Guest", found["guest-features"])
    yield from _features("Host", found["host-features"])
    yield from _features("Backend", found["backend-features"])


def _features(whose: str, features: Features) -> Iterator[str]:
    yield f"  {whose} features:"
    yield from _indented([*features["transports"], *features["dev-features"]])
    if unknown := features.get("unknown-dev-features"):
        yield f"  unknown-features({unknown:#018x})"


def _indented(rows: list[str]) -> Iterator[str]:
    last = len(rows) - 1
    return (f"\t{row}{',' if at < last else ''}" for at, row in enumerate(rows))


def _virtio_queue_status(context: Context, path: str, queue: int) -> Iterator[str]:
    found = virtio_commands.query_virtio_queue_status(context, path, queue)
    yield f"{path}:"
    yield f"  device_name:          {found['name']}"
    yield f"  queue_index:          {found['queue-index']}"
    yield f"  inuse:                {found['inuse']}"
    yield f"  used_idx:             {found['used-idx']}"
    yield f"  signalled_used:       {found['signalled-used']}"
    yield f"  signalled_used_valid: {truth(found['signalled-used-valid'])}"
    yield f"  last_avail_idx:       {found['last-avail-idx']}"
    yield f"  shadow_avail_idx:     {found['shadow-avail-idx']}"
    yield "  VRing:"
    yield f"    num:          {found['vring-num']}"
    yield f"    num_default:  {found['vring-num-default']}"
    yield f"    align:        {found['vring-align']}"
    yield f"    desc:         {found['vring-desc']:#018x}"
    yield f"    avail:        {found['vring-avail']:#018x}"
    yield f"    used:         {found['vring-used']:#018x}"


def _virtio_queue_element(context: Context, path: str, queue: int) -> Iterator[str]:
    found = virtio_element.query_virtio_queue_element(context, path, queue)
    yield f"{path}:"
    yield f"  device_name: {found['name']}"
    yield f"  index:   {found['index']}"
    yield "  desc:"
    yield "    descs:"
    for one in found["descs"]:
        flags = f" ({', '.join(one['flags'])})" if one["flags"] else ""
        yield f"        addr {one['addr']:#x} len {one['len']}{flags}"
    yield "  avail:"
    yield f"    flags: {found['avail']['flags']}"
    yield f"    idx:   {found['avail']['idx']}"
    yield f"    ring:  {found['avail']['ring']}"
    yield "  used:"
    yield f"    flags: {found['used']['flags']}"
    yield f"    idx:   {found['used']['idx']}"


PCI_AND_VIRTIO = (
    Line(("pci",), "PCI functions and their BARs", _pci),
    Line(("qtree",), "devices by bus, with their options", _qtree),
    Line(("virtio",), "virtio devices and their paths", _virtio),
    Line(("virtio-status",), "status and features of a device", _virtio_status, ("path",)),
    Line(
        ("virtio-queue-status",),
        "where a queue is and how far it got",
        _virtio_queue_status,
        ("path", "queue:number"),
    ),
    Line(
        ("virtio-queue-element",),
        "the next entry of a split queue",
        _virtio_queue_element,
        ("path", "queue:number"),
    ),
)
