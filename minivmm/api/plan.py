"""What `boot` was asked, as a MachineSpec and what is to be done with it; devices for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from minivmm.boot.numa import parse_numa
from minivmm.control.readiness import READY_TIMEOUT
from minivmm.devices.spec import DeviceSpec
from minivmm.errors import UsageError
from minivmm.machine_spec import DEVICE_TYPES, MachineSpec, make_device
from minivmm.options import describe, from_mapping, outside_name, parse_pairs, unknown
from minivmm.snapshot.restored import Snapshot, open_snapshot

Size = int | str
"""Bytes, or a text such as "512M" (binary units)."""

Option = str | int | bool | None
"""A property's value; None leaves it at its default."""


class Device:
    """A device of a machine: the name and the properties of `--device`, '_' for '-'.

    Device("virtio-rng-pci", max_bytes="1M"). Raises UsageError at once for nonsense.
    """

    def __init__(self, driver: str, **options: Option) -> None:
        if driver not in DEVICE_TYPES:
            raise UsageError(unknown("device", driver, list(DEVICE_TYPES)))
        kind = DEVICE_TYPES[driver]
        self.driver = driver
        self.options: Mapping[str, object] = {
            outside_name(kind, key): value for key, value in options.items() if value is not None
        }
        make_device(driver, self.options)  # complains

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"Device({self.driver!r}{options})"

    @classmethod
    def parse(cls, text: str) -> Device:
        """The device that `--device TEXT` adds."""
        driver, options = parse_pairs(text)
        return cls(driver, **cast(dict[str, Option], options))

    def varied(self, options: Mapping[str, Option]) -> Device:
        """The same with other `options`, of which those count that this device has."""
        kind = DEVICE_TYPES[self.driver]
        known = {
            outside_name(kind, key): value
            for key, value in options.items()
            if has_option(self.driver, key)
        }
        return Device(self.driver, **{**cast(dict[str, Option], self.options), **known})

    def spec(self, taken: tuple[str, ...] = ()) -> DeviceSpec:
        """Its spec; without id= it is called vmem0, vmem1, ..., but as none of `taken`."""
        return make_device(self.driver, self.options, taken)


def has_option(driver: str, key: str) -> bool:
    """Whether devices of `driver` have a property `key`, in Python's spelling or the other."""
    kind = DEVICE_TYPES[driver]
    return outside_name(kind, key) in {name for name, _, _ in describe(kind)}


class VirtioMem(Device):
    """A virtio-mem device with a region of `size`; docs/virtio-mem.md has all its options."""

    def __init__(
        self,
        size: Size,
        *,
        id: str | None = None,
        requested_size: Size | None = None,
        block_size: Size | None = None,
        **options: Option,
    ) -> None:
        options |= {"id": id, "requested_size": requested_size, "block_size": block_size}
        super().__init__("virtio-mem-pci", size=size, **options)


class VirtioBalloon(Device):
    """A memory balloon."""

    def __init__(self, **options: Option) -> None:
        super().__init__("virtio-balloon-pci", **options)


class VirtioBlk(Device):
    """A disk, whose contents are in `file`."""

    def __init__(self, file: str | Path, **options: Option) -> None:
        super().__init__("virtio-blk-pci", file=str(file), **options)


class VirtioRng(Device):
    """A source of randomness."""

    def __init__(self, **options: Option) -> None:
        super().__init__("virtio-rng-pci", **options)


class BootOptions(TypedDict, total=False):
    """What `boot` takes beside the kernel: options of `minivmm boot`, and the last four."""

    memory: Size
    """Boot memory (512M)."""
    cpus: int
    """vCPUs (1)."""
    devices: Sequence[Device | str]
    """Devices, or texts as `--device` takes them."""
    append: str | Sequence[str]
    """Words for the kernel's command line."""
    modules: str | Path
    """Directory with the kernel's modules."""
    initrd: str | Path
    """In place of the built-in one; a guest without our agent runs no commands: ready=False."""
    online: str
    """How the guest onlines plugged memory (online_movable)."""
    numa: Sequence[str]
    """NUMA nodes and distances, as `--numa` takes them."""
    phys_bits: int
    console: str
    """Where the shell is, and keys go: hvc0 or ttyS0."""
    restore: str | Path
    """A snapshot to go on from; then the machine is that one, and only what follows may be said."""
    name: str
    """By which `minivmm top`, `trace`, ... find the machine (py and two numbers)."""
    shell: bool
    """Whether a shell is on the console; its end powers the guest off (True)."""
    sockets: bool
    """Whether `minivmm` in another terminal can look at the machine (True)."""
    ready: bool
    """Whether to wait until the guest runs commands (True)."""
    timeout: float
    """Seconds that it may take to (300)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A machine, and how it is to be booted; the fields are those of BootOptions."""

    spec: MachineSpec
    shell: bool = True
    sockets: bool = True
    ready: bool = True
    timeout: float = READY_TIMEOUT
    restore: Snapshot | None = None


_OURS = ("shell", "sockets", "ready", "timeout")
_APART = ("devices", "append", "numa", "restore", *_OURS)


def make_plan(kernel: str | Path | None, options: BootOptions) -> Plan:
    """The plan for boot(kernel, **options). Raises UsageError for what no machine can be."""
    given: dict[str, Any] = dict(options)
    if given.get("restore") is not None:
        return _restoring(kernel, given)
    values = {
        outside_name(MachineSpec, key): str(value) if isinstance(value, Path) else value
        for key, value in given.items()
        if key not in _APART and value is not None
    }
    if kernel is not None:
        values["kernel"] = str(kernel)
    append = given.get("append", ())
    spec = dataclasses.replace(
        from_mapping(MachineSpec, values, what="boot"),
        append=(append,) if isinstance(append, str) else tuple(append),
        devices=_devices(given.get("devices", ())),
        numa=tuple(parse_numa(text) for text in given.get("numa", ())),
    )
    return Plan(spec=spec, **{key: given[key] for key in _OURS if key in given})


def _restoring(kernel: str | Path | None, given: Mapping[str, Any]) -> Plan:
    """The plan to go on from a snapshot."""
    for key, value in {"kernel": kernel, **given}.items():
        if value is not None and key not in ("restore", "name", *_OURS):
            raise UsageError(f"{key}= does not go with restore=, which brings its own machine")
    snapshot = open_snapshot(Path(given["restore"]))
    spec = dataclasses.replace(snapshot.spec, name=given.get("name"))
    return Plan(spec=spec, restore=snapshot, **{key: given[key] for key in _OURS if key in given})


def _devices(wanted: Sequence[Device | str]) -> tuple[DeviceSpec, ...]:
    """Their specs; those that were given no id get one that is free."""
    found: tuple[DeviceSpec, ...] = ()
    for one in wanted:
        device = Device.parse(one) if isinstance(one, str) else one
        found += (device.spec(tuple(spec.id for spec in found)),)
    return found
