"""What a machine is made of: one declaration behind the command line, `--config` and `--dry-run`.

Also the table that turns a command-line device name into its spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minivmm.boot.nodes import Topology
from minivmm.boot.numa import NumaEntry, numa_from_json, numa_to_json, resolve
from minivmm.devices.spec import DeviceSpec
from minivmm.devices.vfio_pci.spec import VfioPciSpec, check_together
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.devices.virtio_console.spec import VirtioConsoleSpec
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.errors import UsageError
from minivmm.options import (
    choice_option,
    from_mapping,
    number_option,
    option,
    parse_pairs,
    size_option,
    tagged,
    to_mapping,
    unknown,
)
from minivmm.units import MIB

DEVICE_TYPES: dict[str, type[DeviceSpec]] = {
    "virtio-mem-pci": VirtioMemSpec,
    "virtio-balloon-pci": VirtioBalloonSpec,
    "virtio-blk-pci": VirtioBlkSpec,
    "virtio-rng-pci": VirtioRngSpec,
    "vfio-pci": VfioPciSpec,
    "virtio-serial-pci": VirtioConsoleSpec,
}
"""Command-line name -> the spec it is parsed into. The last one is in every machine anyway."""

ONLINE_POLICIES = ("offline", "online", "online_kernel", "online_movable")
"""Values of memhp_default_state= (Linux mm/memory_hotplug.c)."""

CONSOLES = ("hvc0", "ttyS0")

LEAST_BITS, MOST_BITS = 36, 52
"""Widths of physical addresses that x86-64 processors have."""

MAX_CPUS = 64
"""vCPUs: one Python thread each; more is not what this VMM is for."""


@dataclass(frozen=True, kw_only=True)
class MachineSpec:
    """A machine as the user asked for it; nothing resolved yet (None means "chosen later")."""

    name: str | None = option("name of the machine", default=None)
    memory: int = size_option("boot memory", default=512 * MIB)
    cpus: int = number_option("number of vCPUs", default=1)
    phys_bits: int | None = number_option(
        "width of the guest's physical addresses, in bits", default=None
    )
    kernel: str | None = option("kernel: a file, or the release of a fetched one", default=None)
    modules: str | None = option("directory with the kernel's modules", default=None)
    initrd: str | None = option("initrd instead of the built-in initramfs", default=None)
    online: str = choice_option(
        "how the guest onlines plugged memory", ONLINE_POLICIES, default="online_movable"
    )
    console: str | None = choice_option(
        "where the shell is and keys go: hvc0 is fast, ttyS0 needs no driver (automatic: hvc0, but"
        " ttyS0 with an initrd of one's own); what both print is shown",
        CONSOLES,
        default=None,
    )
    append: tuple[str, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()
    numa: tuple[NumaEntry, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= MAX_CPUS:
            raise UsageError(f"cpus {self.cpus} is out of range: use 1 to {MAX_CPUS}")
        if self.phys_bits is not None and not LEAST_BITS <= self.phys_bits <= MOST_BITS:
            raise UsageError(
                f"phys-bits {self.phys_bits} is out of range: use {LEAST_BITS} to {MOST_BITS}"
            )
        seen: set[str] = set()
        for device in self.devices:
            if device.id in seen:
                raise UsageError(f"two devices have id {device.id!r}: give each its own id=")
            seen.add(device.id)
        balloons = [one.id for one in self.devices if isinstance(one, VirtioBalloonSpec)]
        if len(balloons) > 1:
            raise UsageError(
                f"{' and '.join(balloons)} are balloons: give a machine one virtio-balloon-pci"
            )
        check_together(self.passed_on)
        if self.passed_on:
            self._check_companions(self.passed_on[0].id)
        self.topology()  # complains

    @property
    def keyboard(self) -> str:
        """The console, of CONSOLES, that keys go to."""
        return self.console or ("ttyS0" if self.initrd else "hvc0")

    @property
    def console_device(self) -> VirtioConsoleSpec:
        """The virtio-console that every machine has."""
        given = (one for one in self.devices if isinstance(one, VirtioConsoleSpec))
        return next(given, VirtioConsoleSpec())

    @property
    def memory_devices(self) -> tuple[VirtioMemSpec, ...]:
        """Its virtio-mem devices."""
        return tuple(one for one in self.devices if isinstance(one, VirtioMemSpec))

    @property
    def passed_on(self) -> tuple[VfioPciSpec, ...]:
        """Devices of the host."""
        return tuple(one for one in self.devices if isinstance(one, VfioPciSpec))

    @property
    def bound_by(self) -> str | None:
        """Why such a machine cannot be saved, nor moved to another host; None if it can."""
        if not self.passed_on:
            return None
        return (
            f"{self.passed_on[0].id} is a device of this host, whose state nobody can save or move:"
            " leave it out of a VM that is to be"
        )

    def _check_companions(self, passed_on: str) -> None:
        """Raises UsageError for devices that do not go with DMA into guest memory."""
        for device in self.devices:
            if isinstance(device, VirtioBalloonSpec):
                raise UsageError(
                    f"{device.id} gives pages back to the host that {passed_on} may still use, as"
                    " passthrough pins them: leave out the balloon, virtio-mem-pci does its work"
                )
            if isinstance(device, VirtioMemSpec) and device.prealloc is False:
                raise UsageError(
                    f"{device.id}: prealloc=off cannot be kept with {passed_on}, as passthrough"
                    " pins what is plugged: leave out prealloc=, or use prealloc=on"
                )

    def topology(self) -> Topology:
        """Its NUMA nodes. Raises UsageError for a `numa` that does not fit the rest."""
        devices = {device.id: device.node for device in self.memory_devices}
        return resolve(self.numa, cpus=self.cpus, memory=self.memory, devices=devices)


def parse_device(text: str, taken: tuple[str, ...] = ()) -> DeviceSpec:
    """The spec named by `virtio-mem-pci,key=value,...`; without id= it becomes vmem0, vmem1, ...

    `taken` are the ids in use. Raises UsageError for unknown devices and properties.
    """
    name, values = parse_pairs(text)
    return make_device(name, values, taken)


def make_device(name: str, values: Mapping[str, object], taken: tuple[str, ...] = ()) -> DeviceSpec:
    """The same from a command-line name and properties: texts or JSON values by outside names."""
    if "id" not in values:
        free = (f"{_kind(name).prefix}{n}" for n in range(len(taken) + 1))
        values = {**values, "id": next(one for one in free if one not in taken)}
    return _device(name, values)


def spec_to_json(spec: MachineSpec) -> dict[str, object]:
    """`spec` as plain JSON data that spec_from_json takes back."""
    data = to_mapping(spec)
    data["append"] = list(spec.append)
    data["devices"] = [{"driver": _driver(device), **to_mapping(device)} for device in spec.devices]
    data["numa"] = numa_to_json(spec.numa)
    return data


def spec_from_json(data: Mapping[str, Any]) -> MachineSpec:
    """The spec in `data`, as `--dry-run --json` printed it or as a person wrote it.

    Raises UsageError, naming the key, for anything that is not understood.
    """
    apart = ("append", "devices", "numa", "schema")
    values = {key: value for key, value in data.items() if key not in apart}
    append = data.get("append", [])
    if not isinstance(append, list) or not all(isinstance(word, str) for word in append):
        raise UsageError(f"config: append {append!r} is not a list of texts: write one per word")
    entries = tagged(
        data.get("devices", []), key="driver", plural="devices", one="device", tags=DEVICE_TYPES
    )
    devices = tuple(_device(name, values) for name, values in entries)
    base = from_mapping(MachineSpec, values, what="config")
    return MachineSpec(
        **{name.replace("-", "_"): value for name, value in to_mapping(base).items()},  # type: ignore[arg-type]
        append=tuple(append),
        devices=devices,
        numa=numa_from_json(data.get("numa", [])),
    )


def _kind(name: str) -> type[DeviceSpec]:
    if name not in DEVICE_TYPES:
        raise UsageError(unknown("device", name, list(DEVICE_TYPES)))
    return DEVICE_TYPES[name]


def _device(name: str, values: Mapping[str, object]) -> DeviceSpec:
    return from_mapping(_kind(name), values, what=name)


def _driver(device: DeviceSpec) -> str:
    return next(name for name, kind in DEVICE_TYPES.items() if type(device) is kind)
