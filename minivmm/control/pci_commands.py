"""query-pci: functions on bus 0 and where their BARs are, in the shape of QEMU's qapi/pci.json."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from minivmm.control.commands import command
from minivmm.control.face import Context
from minivmm.devices.vfio_pci.function import VfioPciFunction
from minivmm.pci.function import Bar, PciFunction
from minivmm.spec import pci
from minivmm.spec.platform import pci_gsi
from minivmm.virtio.pci import VirtioPciFunction

UNMAPPED = -1
"""Address of a BAR that is not decoded."""

_CLASSES = {0x0100: "SCSI controller", 0x0600: "Host bridge", 0x0780: "Communication controller"}
"""Upper 16 bits of class codes that our devices have, and what the PCI code list calls them."""

# "class" is no name for a field in Python.
ClassInfo = TypedDict("ClassInfo", {"desc": NotRequired[str], "class": int})
"""PciDeviceClass."""

DeviceId = TypedDict(
    "DeviceId", {"device": int, "vendor": int, "subsystem": int, "subsystem-vendor": int}
)
"""PciDeviceId."""


class BarInfo(TypedDict):
    """PciMemoryRegion: a BAR; all of ours are memory."""

    bar: int
    type: Literal["memory"]
    address: int
    size: int
    prefetch: bool
    mem_type_64: bool


class FunctionInfo(TypedDict):
    """PciDeviceInfo."""

    bus: int
    slot: int
    function: int
    class_info: ClassInfo
    id: DeviceId
    irq: NotRequired[int]
    irq_pin: int
    qdev_id: str
    regions: list[BarInfo]


class BusInfo(TypedDict):
    """PciInfo."""

    bus: int
    devices: list[FunctionInfo]


_NAMED = (VirtioPciFunction, VfioPciFunction)
"""Functions that the user has a name for."""


@command("query-pci")
def query_pci(context: Context) -> list[BusInfo]:
    """Bus 0, which is all there is."""
    return [{"bus": 0, "devices": [describe(one) for one in context.machine.functions]}]


def describe(function: PciFunction) -> FunctionInfo:
    """One function; `irq` is the interrupt line (GSI) that its pin is wired to."""
    config, offsets = function.config, pci.Header.OFFSETS
    code = config.get(offsets["class_code"] + 1, 2)
    kind: ClassInfo = {"class": code}
    if code in _CLASSES:
        kind["desc"] = _CLASSES[code]
    pin = config.get(pci.INTERRUPT_PIN, 1)
    found: FunctionInfo = {
        "bus": 0,
        "slot": function.slot,
        "function": 0,
        "class_info": kind,
        "id": {
            "device": config.get(offsets["device_id"], 2),
            "vendor": config.get(offsets["vendor_id"], 2),
            "subsystem": config.get(offsets["subsystem_id"], 2),
            "subsystem-vendor": config.get(offsets["subsystem_vendor_id"], 2),
        },
        "irq_pin": pin,
        "qdev_id": function.name if isinstance(function, _NAMED) else "",
        "regions": [_bar(bar) for bar in function.bars],
    }
    if pin:
        found["irq"] = pci_gsi(function.slot)
    return found


def _bar(bar: Bar) -> BarInfo:
    return {
        "bar": bar.index,
        "type": "memory",
        "address": UNMAPPED if bar.mapped is None else bar.mapped,
        "size": bar.size,
        "prefetch": bar.prefetchable,
        "mem_type_64": bar.wide,
    }
