"""VirtioConsoleSpec: switches of the console that every machine has (QEMU: virtio-serial)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minivmm.devices.spec import CONSOLE_ID, VirtioDeviceSpec
from minivmm.options import option


@dataclass(frozen=True, kw_only=True)
class VirtioConsoleSpec(VirtioDeviceSpec):
    """The virtio-console of a machine, with or without the user's saying so.

    Raises UsageError when constructed from nonsense.
    """

    prefix: ClassVar[str] = "console"
    built_in: ClassVar[bool] = True

    id: str = option(f"name of the device, always {CONSOLE_ID}", default=CONSOLE_ID)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.id != CONSOLE_ID:
            self.refuse(
                f"a machine has one console, {CONSOLE_ID}, and virtio-serial-pci gives it"
                " switches: write that once, and no id="
            )
