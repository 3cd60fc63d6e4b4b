"""What two machines must have in common for one to go on from the other's state, and where not.

It is what the guest sees: memory, devices and their properties, processor. Names, paths, what
stands behind memory and disks, and everything that may change while a machine runs are not in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from minivmm.devices.virtio_blk.device import VirtioBlk
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.kvm.hypervisor import HypervisorVcpu
from minivmm.machine import Machine
from minivmm.memory.layout import Window
from minivmm.pci.function import PciFunction
from minivmm.spec.x86 import CpuidEntry
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.pci import VirtioPciFunction

TSC_TOLERANCE = 0.0005
"""How much faster or slower a guest's time stamp counter may become: what time daemons correct."""

_LONGEST = 80
"""Characters of a value that are shown."""

_ABSENT = "nothing"

_REMEDIES = {
    "memory": "give the machine the same -m",
    "layout": "give the machine the same -m, devices and phys-bits",
    "numa": "give the machine the same -p and --numa",
    "cpus": "give the machine the same -p",
    "devices": "give the machine the same --device options in the same order, and the same disks",
    "processor": "use a host with the same processor and the same KVM",
}
"""What helps against a difference, by the part of the description."""


def describe(machine: Machine) -> dict[str, object]:
    """`machine` as its guest sees it, as JSON data; lock held."""
    board = machine.board
    layout = board.address_map
    found = {
        "cpus": machine.spec.cpus,
        "memory": {f"{window.base:#x}": window.size for window in layout.ram},
        "layout": {
            "phys-bits": layout.phys_bits,
            "ecam": _window(layout.ecam),
            "mmio32": _window(layout.mmio32),
            "mmio64": _window(layout.mmio64),
        },
        "numa": {
            "nodes": [asdict(node) for node in board.numa.nodes],
            "distances": [list(row) for row in board.numa.distances],
        },
        "devices": {function.address: _function(function) for function in board.pci.functions},
        "processor": _processor(machine.vcpus[0], machine.cpuid[0]),
    }
    return dict(json.loads(json.dumps(found)))


def differences(saved: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """One line for each field in which `saved`, which may be any JSON object, is not as `here`.

    Each names the field, both values and the remedy. None: a state of `saved` fits.
    """
    return list(_compare((), saved, here))


def _compare(path: tuple[str, ...], saved: object, here: object) -> Iterator[str]:
    judge = _JUDGES.get(path)
    if judge is not None and judge(saved, here):
        return
    if judge is None and isinstance(saved, Mapping) and isinstance(here, Mapping):
        for key in [*here, *(key for key in saved if key not in here)]:
            found, wanted = saved.get(key, _ABSENT), here.get(key, _ABSENT)
            yield from _compare((*path, str(key)), found, wanted)
    elif judge is not None or saved != here:
        remedy = _REMEDIES.get(path[0] if path else "", "use the minivmm that saved it")
        yield f"{_shown('.'.join(path))}: saved {_shown(saved)}, here {_shown(here)}: {remedy}"


def _same_msrs(saved: object, here: object) -> bool:
    """More of them here keep what they have at power-on."""
    return isinstance(saved, list) and isinstance(here, list) and all(one in here for one in saved)


def _same_rate(saved: object, here: object) -> bool:
    """About the same, or the host can make it so. An unknown rate is one nobody relies on."""
    rates = [one.get("khz") if isinstance(one, Mapping) else None for one in (saved, here)]
    was, now = rates
    if not isinstance(was, int) or not isinstance(now, int) or was < 0:
        return False
    scales = isinstance(here, Mapping) and bool(here.get("scales"))
    return not was or not now or scales or abs(was - now) <= now * TSC_TOLERANCE


_JUDGES: dict[tuple[str, ...], Callable[[object, object], bool]] = {
    ("processor", "msrs"): _same_msrs,
    ("processor", "tsc"): _same_rate,
}
"""Fields that need not be equal, and what decides whether they fit: saved, here."""


def _window(window: Window) -> dict[str, int]:
    return {"base": window.base, "size": window.size}


def _function(function: PciFunction) -> dict[str, object]:
    found: dict[str, object] = {
        "name": function.name,
        "bars": {str(bar.index): bar.size for bar in function.bars},
        "configuration": function.config.initial.rstrip(b"\0").hex(),
    }
    if isinstance(function, VirtioPciFunction):
        device, transport = function.device, function.transport
        found |= {
            "id": device.identifier,
            "type": device.traits.name,
            "features": f"{transport.device_features:#x}",
            "queues": [registers.max_size for registers in transport.queue_registers],
            **_properties(device),
        }
    return found


def _properties(device: VirtioDevice) -> dict[str, object]:
    """What a driver finds in a device beside its features."""
    if isinstance(device, VirtioMem):
        return {
            "address": device.window.base,
            "size": device.window.size,
            "block-size": device.block_size,
            "node": device.spec.node,
        }
    if isinstance(device, VirtioBlk):
        return {"size": device.disk.size, "serial": device.spec.serial or ""}
    return {}


def _processor(vcpu: HypervisorVcpu, leaves: Sequence[CpuidEntry]) -> dict[str, object]:
    """The first one; the others have the same but for their number."""
    return {
        "cpuid": {
            f"{leaf.function:#x}/{leaf.index}": {
                name: f"{getattr(leaf, name):#x}" for name in ("eax", "ebx", "ecx", "edx")
            }
            for leaf in leaves
        },
        "msrs": [f"{index:#x}" for index in sorted(vcpu.msr_indices)],
        "tsc": {"khz": vcpu.tsc_khz, "scales": vcpu.scales_tsc},
    }


def _shown(value: object) -> str:
    """A value in a line: short, and of printable characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return ascii(text)[1:-1] if len(text) <= _LONGEST else ascii(text[: _LONGEST - 3])[1:-1] + "..."
