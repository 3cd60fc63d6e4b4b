"""query-block: the disks and their files, in the shape of QEMU's qapi/block-core.json."""

from __future__ import annotations

from typing import Literal, TypedDict

from minivmm.control import qom
from minivmm.control.commands import command
from minivmm.control.face import Context
from minivmm.devices.virtio_blk.device import VirtioBlk

ImageInfo = TypedDict("ImageInfo", {"filename": str, "format": Literal["raw"], "virtual-size": int})
"""ImageInfo; the size is in bytes."""


Cache = TypedDict("Cache", {"writeback": bool, "direct": bool, "no-flush": bool})
"""BlockdevCacheInfo."""


class Inserted(TypedDict):
    """BlockDeviceInfo. There are no limits to rates here, which is what the zeroes say."""

    file: str
    ro: bool
    drv: Literal["raw"]
    backing_file_depth: int
    encrypted: bool
    detect_zeroes: Literal["off"]
    bps: int
    bps_rd: int
    bps_wr: int
    iops: int
    iops_rd: int
    iops_wr: int
    image: ImageInfo
    cache: Cache
    write_threshold: int


class BlockInfo(TypedDict):
    """BlockInfo: a disk."""

    device: str
    qdev: str
    type: Literal["unknown"]
    removable: bool
    locked: bool
    inserted: Inserted


@command("query-block")
def query_block(context: Context) -> list[BlockInfo]:
    """Every disk."""
    disks = qom.devices(context.machine).values()
    return [_describe(one) for one in disks if isinstance(one, VirtioBlk)]


def _describe(device: VirtioBlk) -> BlockInfo:
    path = device.spec.file
    writeback = bool(device.inspect()["writeback"])
    return {
        "device": device.identifier,
        "qdev": qom.backend_path(device.identifier),
        "type": "unknown",
        "removable": False,
        "locked": False,
        "inserted": {
            "file": path,
            "ro": device.spec.readonly,
            "drv": "raw",
            "backing_file_depth": 0,
            "encrypted": False,
            "detect_zeroes": "off",
            "bps": 0,
            "bps_rd": 0,
            "bps_wr": 0,
            "iops": 0,
            "iops_rd": 0,
            "iops_wr": 0,
            "image": {"filename": path, "format": "raw", "virtual-size": device.disk.size},
            "cache": {"writeback": writeback, "direct": False, "no-flush": False},
            "write_threshold": 0,
        },
    }
