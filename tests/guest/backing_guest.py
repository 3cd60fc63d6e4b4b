"""One guest with a device of every backing, and what it and the host say about the memory.

Each device has a NUMA node of its own, so a tmpfs bound to that node lies in the device's memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from harness import Guest
from host_pages import HostPages

from minivmm.units import GIB, KIB, MIB

PLACE = 0x70_0800_0000
"""An address that is a multiple of 128 MiB but not of 2 GiB, as automatic ones are."""

OPTIONS = {
    "thp": "size=2G,thp=on,unplugged-inaccessible=on",
    "small": "size=2G,block-size=1M,unplugged-inaccessible=off",
    "shared": "size=2G,backing=memfd,thp=on",
    "file": "size=2G,backing=file,path={file}",
    "huge": "size=2G,backing=hugetlb",
    "giant": "size=2G,backing=hugetlb,page-size=1G",
    "placed": f"size=2G,prealloc=on,memaddr={PLACE:#x}",
    "big": "size=2G,block-size=256M",
    "vast": "size=400G",
}
"""Options of each device by its id; the first one is node 1's."""

NODES = {name: number for number, name in enumerate(OPTIONS, 1)}

PLUGGED = dict.fromkeys(OPTIONS, 128 * MIB) | {"giant": GIB, "big": 256 * MIB}
FILLED = dict.fromkeys(OPTIONS, 24 * MIB) | {"thp": 112 * MIB, "shared": 112 * MIB}
"""Bytes that the guest writes to each device's memory."""

PATTERN = 8 * MIB
"""Bytes that no two devices have the same, read back later; the rest of FILLED are zeroes."""


def options(file: Path) -> list[str]:
    """Options of `minivmm boot`; `file` is where device "file" keeps its memory."""
    words = ["-m", "512M", "--numa", "node,cpus=0,mem=512M"]
    for name, text in OPTIONS.items():
        device = f"virtio-mem-pci,id={name},node={NODES[name]},{text.format(file=file)}"
        words += ["--numa", "node", "--device", device]
    return words


def wait_for_nodes(guest: Guest, sizes: dict[str, int]) -> None:
    """Wait until Linux has onlined what is plugged, each on the node of its device."""
    wanted = {NODES[name]: size for name, size in sizes.items() if size}

    def totals() -> dict[int, int]:
        text = guest.shell("grep -h MemTotal /sys/devices/system/node/node*/meminfo")
        found = {int(row.split()[1]): int(row.split()[3]) * KIB for row in text.splitlines()}
        return {node: found.get(node, 0) for node in wanted}

    guest.wait_until(lambda: totals() == wanted, f"node totals {wanted}")


def fill(guest: Guest, names: Iterable[str]) -> dict[str, str]:
    """Write FILLED bytes to the memory of each device; digests of what was meant to be written."""
    script = f"set -e; [ -f /pattern ] || head -c {PATTERN} /dev/urandom >/pattern\n"
    for name in names:
        node, zeroes = NODES[name], (FILLED[name] - PATTERN) // MIB
        words = f"{{ tail -c +{node * 64} /pattern; head -c {node * 64 - 1} /pattern; }}"
        script += (
            f"mkdir -p /m/{name}; mount -t tmpfs -o mpol=bind:{node},size=1g none /m/{name}\n"
            f"{words} >/m/{name}/pattern; {words} | md5sum\n"
            f"dd if=/dev/zero of=/m/{name}/zeroes bs=1M count={zeroes} 2>/dev/null\n"
        )
    found = guest.shell(script).split()
    return dict(zip(names, found[::2], strict=True))


def digests(guest: Guest, names: Iterable[str]) -> dict[str, str]:
    """Digests of what the memory of each device holds of the pattern now."""
    found = guest.shell("".join(f"md5sum </m/{name}/pattern;" for name in names)).split()
    return dict(zip(names, found[::2], strict=True))


def free(guest: Guest, names: Iterable[str]) -> None:
    """Give back what fill() took."""
    guest.shell("".join(f"umount /m/{name};" for name in names))


@dataclass(frozen=True)
class Snapshot:
    """Devices, and what the host says about the machine's process, at some moment; bytes."""

    devices: dict[str, dict[str, Any]]
    memslots: int
    anonymous: int
    shared: int
    hugetlb: int
    free: dict[int, int]
    """hugetlb pages that nobody uses, by page size."""

    @classmethod
    def take(cls, guest: Guest, pages: HostPages) -> Self:
        status = Path(f"/proc/{guest.process.pid}/status").read_text()
        held = {name: int(kib) * KIB for name, kib in re.findall(r"(\w+):\s+(\d+) kB", status)}
        return cls(
            devices={one["id"]: one for one in guest.info()["memory-devices"]},
            memslots=guest.qmp.execute("x-minivmm-inspect")["memslots"]["count"],
            anonymous=held["RssAnon"],
            shared=held["RssShmem"],
            hugetlb=held["HugetlbPages"],
            free={size: pages.free(size) for size in (2 * MIB, GIB)},
        )

    def of(self, key: str, names: Iterable[str] = OPTIONS) -> dict[str, int]:
        """One value of each of the devices."""
        return {name: self.devices[name][key] for name in names}
