"""A guest with devices of every type on many kinds of rings and interrupts, and work for them all.

What is combined, and what must come of it, is said in test_rings.py and test_interrupts.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Guest

from minivmm.units import KIB, MIB

INDIRECT_DESC, EVENT_IDX, VERSION_1 = 28, 29, 32
ACCESS_PLATFORM, PACKED, IN_ORDER, NOTIFICATION_DATA, RING_RESET = 33, 34, 35, 38, 40
COMMON = frozenset({INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET})
"""What Linux takes of what is offered without any switches."""

BALLOON_REFUSES = frozenset({INDIRECT_DESC, ACCESS_PLATFORM})
"""Its driver in Linux allocates nothing for a report, and tells numbers, not DMA addresses."""

BOOT = 512 * MIB
PIECE = 128 * KIB
BLOCK = 128 * MIB
"""What Linux adds and removes at once."""
KINDS = {3: "console", 4: "rng", 5: "balloon", 2: "disk", 24: "vmem"}
"""Virtio device id -> how our ids begin."""
FIRST_SLOT = 1


@dataclass(frozen=True)
class Case:
    """Switches of a device, and the transport's features that Linux then takes."""

    switches: str
    features: frozenset[int] = COMMON


@dataclass(frozen=True)
class Found:
    """A virtio device as the guest sees it."""

    linux: str
    """Linux' name: virtio0."""
    kind: str
    features: frozenset[int]
    bound: bool
    """Does a driver have it?"""


class Matrix:
    """The devices of a guest: a virtio-mem, a disk and an rng device for each of `cases`."""

    def __init__(
        self,
        directory: Path,
        cases: Mapping[str, Case],
        *,
        balloon: Case,
        console: Case,
        unusable: Iterable[str] = (),
    ) -> None:
        """`unusable`: cases that the guest's drivers refuse. Disks are files in `directory`."""
        self._directory = directory
        self._unusable = frozenset(unusable)
        self.expected = {"console0": console}
        """Id of every device -> its case, by slot."""
        for name, case in cases.items():
            self.expected |= {f"{kind}-{name}": case for kind in ("vmem", "disk", "rng")}
        self.expected["balloon0"] = balloon
        assert FIRST_SLOT + len(self.expected) <= 32, "a PCI bus has 32 slots"

    def options(self) -> list[str]:
        """Options of `boot`. Makes the disks: PIECE bytes of their own each, and as many zeroes."""
        words = ["-m", "512M"]
        for identifier, case in self.expected.items():
            kind = identifier.partition("-")[0]
            match kind:
                case "console0":
                    parts = ["virtio-serial-pci"]
                case "balloon0":
                    parts = ["virtio-balloon-pci", "deflate-on-oom=on", "free-page-reporting=on"]
                case "vmem":
                    parts = ["virtio-mem-pci", f"id={identifier}", "size=1G"]
                case "rng":
                    parts = ["virtio-rng-pci", f"id={identifier}"]
                case "disk":
                    file = self._file(identifier)
                    file.write_bytes(os.urandom(PIECE) + bytes(PIECE))
                    parts = ["virtio-blk-pci", f"id={identifier}", f"file={file}"]
                    parts.append(f"serial={identifier}")
            words.append("--device=" + ",".join([*parts, *filter(None, [case.switches])]))
        return words

    def found(self, guest: Guest) -> dict[str, Found]:
        """What the guest found, by our ids; the slots say which is which."""
        # Few processes: in the lab each costs 50 ms.
        links, kinds, masks, drivers = guest.shell(
            "cd /sys/bus/virtio/devices; ls -l | sed -n 's/.*-> //p'; echo /; cat */device;"
            " echo /; cat */features; echo /; ls -d */driver"
        ).split("\n/\n")
        ids = list(self.expected)
        found: dict[str, Found] = {}
        for link, kind, mask in zip(*map(str.split, (links, kinds, masks)), strict=True):
            *_, address, linux = link.split("/")
            slot = int(address.split(":")[2].removesuffix(".0"), 16)
            bits = frozenset(bit for bit, digit in enumerate(mask) if digit == "1")
            bound = f"{linux}/driver" in drivers.split()
            found[ids[slot - FIRST_SLOT]] = Found(linux, KINDS[int(kind, 16)], bits, bound)
        return found

    def check_negotiated(
        self, guest: Guest, late: frozenset[int] = frozenset()
    ) -> dict[str, Found]:
        """Each device has its driver and its features, but those that came to Linux `late`r."""
        found = self.found(guest)
        assert list(found) and found.keys() == self.expected.keys()
        for identifier, one in found.items():
            wanted = self.expected[identifier].features - late
            if one.kind == "balloon":
                wanted -= BALLOON_REFUSES
            assert identifier.startswith(one.kind)
            assert {bit for bit in one.features if 24 <= bit < 50} == wanted, identifier
            assert one.bound == self._usable(identifier), identifier
        return found

    # -- work --------------------------------------------------------------------------------------

    def work(self, guest: Guest) -> None:
        """Every device does what it is for."""
        self.grow_and_shrink(guest)
        self.copy_on_disks(guest)
        self.draw_randomness(guest)
        self.inflate_and_deflate(guest)
        self.pass_data_through_the_console(guest)

    def grow_and_shrink(self, guest: Guest) -> None:
        """All virtio-mem devices at once."""
        devices = self._ids("vmem")
        for size in (BLOCK, 0):
            guest.resize(**dict.fromkeys(devices, size))

    def copy_on_disks(self, guest: Guest) -> None:
        """The first half of every disk is read, and written behind it."""
        names = guest.shell(
            f"cd /sys/block; for d in vd?; do dd if=/dev/$d of=/dev/$d bs={PIECE} seek=1 count=1"
            " conv=notrunc,fsync 2>/dev/null || exit 1; cat /sys/block/$d/serial; echo; done"
        ).split()
        assert names == self._ids("disk")
        for identifier in names:
            content = self._file(identifier).read_bytes()
            assert any(content) and content[:PIECE] == content[PIECE:], identifier

    def draw_randomness(self, guest: Guest) -> None:
        """From every device in turn; what each gave is counted."""
        devices = self._ids("rng")
        before = self._models(guest)
        drawn = guest.shell(
            "exec 2>/dev/null; cd /sys/class/misc/hw_random; for r in $(cat rng_available); do"
            " case $r in virtio*)"
            " echo $r >rng_current; dd if=/dev/hwrng bs=64 count=1 | md5sum;; esac; done"
        ).splitlines()
        after = self._models(guest)
        assert len(set(drawn)) == len(drawn) == len(devices)
        for identifier in devices:
            assert after[identifier]["given"] >= before[identifier]["given"] + 64, identifier

    def inflate_and_deflate(self, guest: Guest) -> None:
        """4 MiB, and they are told of in statistics."""
        for left in (BOOT - 4 * MIB, BOOT):
            self._set_balloon(guest, left)
        at = {"path": "/machine/peripheral/balloon0"}
        guest.qmp.execute("qom-set", **at, property="guest-stats-polling-interval", value=1)
        guest.wait_until(
            lambda: guest.qmp.execute("qom-get", **at, property="guest-stats")["last-update"] > 0,
            "statistics",
        )
        assert self._models(guest)["balloon0"]["memory"]["freed"] >= 4 * MIB

    def pass_data_through_the_console(self, guest: Guest) -> None:
        """256 KiB in, and back again."""
        data = os.urandom(MIB // 4)
        assert guest.run("cat", stdin=data).stdout == data

    # -- inside ------------------------------------------------------------------------------------

    def _set_balloon(self, guest: Guest, left: int) -> None:
        guest.qmp.execute("balloon", value=left)
        guest.wait_until(
            lambda: bool(guest.qmp.execute("query-balloon")["actual"] == left), f"{left} bytes left"
        )

    def _usable(self, identifier: str) -> bool:
        return identifier.partition("-")[2] not in self._unusable

    def _ids(self, kind: str) -> list[str]:
        """Usable devices of a kind, by slot."""
        return [
            identifier
            for identifier in self.expected
            if identifier.startswith(f"{kind}-") and self._usable(identifier)
        ]

    def _file(self, identifier: str) -> Path:
        return self._directory / f"{identifier}.img"

    def _models(self, guest: Guest) -> dict[str, dict[str, Any]]:
        """What every device model says of itself."""
        devices = guest.qmp.execute("x-minivmm-inspect")["board"]["devices"]
        return {identifier: one["model"] for identifier, one in devices.items()}
