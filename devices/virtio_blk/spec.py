"""VirtioBlkSpec: what the user says about a disk, with the names of QEMU's -drive and -device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minivmm.devices.spec import VirtioDeviceSpec
from minivmm.devices.virtio_blk.disk import Disk
from minivmm.options import choice_option, option, switch_option
from minivmm.spec.virtio_blk import ID_SIZE


@dataclass(frozen=True, kw_only=True)
class VirtioBlkSpec(VirtioDeviceSpec):
    """A virtio-blk device. Raises UsageError when constructed from nonsense."""

    prefix: ClassVar[str] = "disk"
    paths: ClassVar[tuple[str, ...]] = ("file",)
    modules: ClassVar[tuple[str, ...]] = ("virtio_blk",)
    longest: ClassVar[int] = 3  # header, data, status

    id: str = option("name of the device", default="disk0")
    file: str = option("file or block device with the disk's content")
    format: str | None = choice_option(
        "format of the file: raw, even if it looks like another (automatic: raw, but an image that"
        " looks like qcow2, vmdk, vhdx or vdi is refused)",
        ("raw",),
        default=None,
    )
    readonly: bool = switch_option("let the guest only read it", default=False)
    serial: str | None = option(
        f"serial number that the guest reads, at most {ID_SIZE} characters (automatic: none)",
        default=None,
    )
    discard: bool = switch_option("free what the guest discards", default=True)
    write_zeroes: bool = switch_option("let the guest have ranges zeroed", default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.serial and (len(self.serial) > ID_SIZE or not self.serial.isascii()):
            self.refuse(
                f"serial {self.serial!r} does not fit: use at most {ID_SIZE} ASCII characters"
            )

    @property
    def summary(self) -> str:
        """The file."""
        return self.file

    def check_files(self) -> None:
        """Raises HostError for a file that cannot be a disk."""
        self.open().close()

    def open(self) -> Disk:
        """The disk. Raises HostError for a file that cannot be one."""
        raw = self.format is not None
        return Disk(self.file, readonly=self.readonly, name=self.id, raw=raw)
