"""DeviceSpec: what the user can say about any device of the command line; what is special to one
device is in its own package."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from minivmm.errors import UsageError
from minivmm.virtio.options import VirtioOptions

CONSOLE_ID = "console0"
"""Name of the virtio-console that every board has."""

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # as QEMU; paths and completions are made of it


def qom_path(identifier: str) -> str:
    """What QMP calls the device with that id, in events and by qom-get (as QEMU)."""
    return f"/machine/peripheral/{identifier}"


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """Base of all device specs; raises UsageError when constructed from nonsense.

    Each has an option `id` with a default of `prefix` and a number.
    """

    prefix: ClassVar[str]
    """What ids begin with that the user did not choose."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Options that are paths on the host."""
    modules: ClassVar[tuple[str, ...]] = ()
    """Linux modules that drive it, beside those that every guest loads."""
    built_in: ClassVar[bool] = False
    """Every machine has it; a spec only sets its switches."""

    id: str

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id) or (self.id == CONSOLE_ID and not self.built_in):
            raise UsageError(
                f"device id {self.id!r} is not usable: letters, digits, '.', '_' and '-', starting"
                f" with a letter, and not {CONSOLE_ID}, which is the machine's own"
            )

    @property
    def summary(self) -> str:
        """What it is, in a word or two."""
        return self.prefix

    @property
    def guest_modules(self) -> tuple[str, ...]:
        """Linux modules that the guest loads for it at its start."""
        return self.modules

    def with_full_paths(self) -> Self:
        """The same whatever the working directory is."""
        given = {name: getattr(self, name) for name in self.paths}
        full: dict[str, Any] = {
            name: str(Path(path).absolute()) for name, path in given.items() if path
        }
        return replace(self, **full)

    def check_files(self) -> None:
        """Raises HostError for files of the host that are not fit for the device."""

    def refuse(self, why: str) -> None:
        """Raises UsageError for this device."""
        raise UsageError(f"{self.id}: {why}")


@dataclass(frozen=True, kw_only=True)
class VirtioDeviceSpec(DeviceSpec, VirtioOptions):
    """Base of the specs of virtio devices: they have its switches."""

    longest: ClassVar[int] = 1
    """Descriptors of the longest chain that a driver cannot do without, outside a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            VirtioOptions.__post_init__(self)
        except UsageError as error:
            self.refuse(str(error))
        if self.queue_size and self.queue_size < self.longest and not self.indirect_desc:
            self.refuse(
                f"queue-size {self.queue_size} holds no request, which takes {self.longest}"
                " descriptors: use a larger one, or indirect_desc=on"
            )
