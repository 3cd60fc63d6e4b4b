"""Every kind of host memory behind one guest: it grows, is used, and shrinks; the host follows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from backing_guest import (
    FILLED,
    OPTIONS,
    PLACE,
    PLUGGED,
    Snapshot,
    digests,
    fill,
    free,
    options,
    wait_for_nodes,
)
from harness import Guest
from host_pages import LAB, HostPages, host_pages

from minivmm.units import GIB, MIB

PREALLOCATED = ("huge", "giant", "placed")
SPARSE = tuple(name for name in OPTIONS if name not in PREALLOCATED)
TRANSPARENT = ("thp", "shared", "placed", "big", "vast")
"""Those that ask for transparent huge pages; small blocks and a plain tmpfs have none."""

SLACK = 6 * MIB
"""Bytes that a guest may touch beside what it writes: rounded to huge pages."""

KEPT = 1
"""Memslots of what may be read while unplugged (MEM-D-20): of "small"."""

QUICK = 15
"""Seconds; a driver that nobody pokes tries again after 50 at the earliest."""


@pytest.fixture(scope="module")
def pages() -> Iterator[HostPages]:
    with host_pages(2 * MIB) as found:
        found.provide(2 * MIB, PLUGGED["huge"])
        assert found.free(GIB) >= GIB, f"run it by {LAB}..."
        yield found


@pytest.fixture(scope="module")
def guest(kernel: str, pages: HostPages) -> Iterator[Guest]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        file = Path(directory, "memory")
        with Guest("-k", kernel, *options(file)) as started:
            yield started
        assert not file.exists() or file.stat().st_blocks == 0


@pytest.fixture(scope="module")
def grown(guest: Guest, pages: HostPages) -> Snapshot:
    """All devices have grown, and nothing was done with the memory."""
    guest.resize(**PLUGGED)
    wait_for_nodes(guest, PLUGGED)
    return Snapshot.take(guest, pages)


@pytest.fixture(scope="module")
def written(guest: Guest, grown: Snapshot) -> dict[str, str]:
    """Digests of what the guest has written to each device's memory."""
    return fill(guest, OPTIONS)


@pytest.fixture(scope="module")
def used(guest: Guest, pages: HostPages, written: dict[str, str]) -> Snapshot:
    return Snapshot.take(guest, pages)


@pytest.fixture(scope="module")
def read(guest: Guest, used: Snapshot) -> dict[str, str]:
    """What each device's memory holds once everything has been written."""
    return digests(guest, OPTIONS)


@pytest.fixture(scope="module")
def emptied(guest: Guest, pages: HostPages, read: dict[str, str]) -> Snapshot:
    """All devices have shrunk to nothing again."""
    free(guest, OPTIONS)
    guest.resize(**dict.fromkeys(OPTIONS, 0))
    guest.wait_until(lambda: Snapshot.take(guest, pages).memslots == 1 + KEPT, "few memslots")
    return Snapshot.take(guest, pages)


def test_every_backing_grows_to_its_target_on_its_node(grown: Snapshot) -> None:
    assert grown.of("size") == PLUGGED
    assert grown.devices["placed"]["memaddr"] == PLACE


def test_preallocated_memory_is_there_when_plugged_and_other_memory_is_not(grown: Snapshot) -> None:
    resident = grown.of("resident")

    assert {name: resident[name] for name in PREALLOCATED} == {
        name: PLUGGED[name] for name in PREALLOCATED
    }
    assert all(resident[name] <= SLACK for name in SPARSE), resident
    assert grown.hugetlb == PLUGGED["huge"] + PLUGGED["giant"]
    assert grown.free[2 * MIB] == 0


def test_every_backing_holds_what_the_guest_wrote(
    written: dict[str, str], read: dict[str, str]
) -> None:
    assert read == written
    assert len(set(written.values())) == len(OPTIONS)


def test_host_memory_follows_what_the_guest_uses(grown: Snapshot, used: Snapshot) -> None:
    resident = used.of("resident")

    for name in SPARSE:
        assert FILLED[name] <= resident[name] <= FILLED[name] + SLACK, resident
    assert used.anonymous - grown.anonymous >= sum(
        FILLED[name] for name in ("thp", "small", "big", "vast")
    )
    assert used.shared - grown.shared >= FILLED["shared"] + FILLED["file"]
    assert used.hugetlb == grown.hugetlb


def test_transparent_huge_pages_cover_what_was_touched_unless_off(used: Snapshot) -> None:
    resident, huge = used.of("resident"), used.of("resident-huge")

    for name in TRANSPARENT:
        assert huge[name] >= 0.9 * resident[name], (resident, huge)
    assert (huge["small"], huge["file"]) == (0, 0)


def test_guest_pages_of_4_kib_lie_in_host_pages_of_2_mib_and_1_gib(
    used: Snapshot, emptied: Snapshot
) -> None:
    for name in ("huge", "giant"):
        assert used.devices[name]["resident-huge"] == PLUGGED[name]
        assert used.devices[name]["resident"] == PLUGGED[name]
    assert emptied.free[2 * MIB] - used.free[2 * MIB] == PLUGGED["huge"]
    assert emptied.free[GIB] - used.free[GIB] == GIB


def test_nothing_is_left_at_the_host_once_unplugged(
    guest: Guest, used: Snapshot, emptied: Snapshot
) -> None:
    assert emptied.of("resident") == dict.fromkeys(OPTIONS, 0)
    assert emptied.hugetlb == 0
    assert emptied.shared <= used.shared - FILLED["shared"] - FILLED["file"]
    given_back = sum(used.of("resident", ("thp", "small", "placed", "big", "vast")).values())
    assert emptied.anonymous <= used.anonymous - 0.9 * given_back
    for row in guest.qmp.execute("x-minivmm-audit"):
        assert (row["resident-plugged"], row["resident-unplugged"]) == (0, 0), row


def test_memslots_are_there_for_what_is_plugged(grown: Snapshot, emptied: Snapshot) -> None:
    """Of 416 GiB. One for boot memory; others go some time after all is unplugged."""
    assert grown.memslots == 1 + len(OPTIONS)
    assert emptied.memslots == 1 + KEPT


def test_the_promise_not_to_touch_unplugged_memory_is_negotiated_unless_off(
    guest: Guest,
) -> None:
    places = {
        one["id"]: one["pci-address"]
        for one in guest.qmp.execute("x-minivmm-why")["memory-devices"]
    }
    devices = guest.qmp.execute("x-minivmm-inspect")["board"]["devices"]
    text = guest.shell(
        "".join(f"cat /sys/bus/pci/devices/{places[name]}/virtio*/features;" for name in OPTIONS)
    )

    seen = dict(zip(OPTIONS, text.split(), strict=True))
    assert {name: bits[:3] for name, bits in seen.items()} == {
        name: "100" if name == "small" else "110" for name in OPTIONS
    }
    for name, bits in seen.items():
        accepted = int(devices[name]["transport"]["driver-features"], 16)
        assert accepted == int(bits[::-1], 2), name


def test_without_huge_pages_plugging_waits_and_goes_on_as_soon_as_there_are_some(
    guest: Guest, pages: HostPages, emptied: Snapshot
) -> None:
    guest.request(huge=256 * MIB)
    guest.wait_until(lambda: short_of(guest) > 0, "BUSY")

    assert guest.plugged()["huge"] == 128 * MIB
    wait_for_nodes(guest, {"huge": 128 * MIB})
    written = fill(guest, ["huge"])
    assert digests(guest, ["huge"]) == written
    assert guest.device("huge")["resident"] == 128 * MIB

    pages.provide(2 * MIB, 256 * MIB)
    guest.wait_until(lambda: guest.plugged()["huge"] == 256 * MIB, "the rest", seconds=QUICK)
    assert short_of(guest) == 0
    assert digests(guest, ["huge"]) == written
    free(guest, ["huge"])


def test_a_lower_target_ends_the_wait_for_huge_pages(guest: Guest, pages: HostPages) -> None:
    pages.provide(2 * MIB, 256 * MIB)
    guest.request(huge=512 * MIB)
    guest.wait_until(lambda: short_of(guest) > 0, "BUSY")

    guest.request(huge=64 * MIB)

    guest.wait_until(lambda: guest.plugged()["huge"] == 64 * MIB, "64 MiB", seconds=QUICK)
    assert short_of(guest) == 0
    assert guest.device("huge")["resident"] == 64 * MIB
    assert pages.free(2 * MIB) == 192 * MIB
    guest.resize(huge=0)
    assert pages.free(2 * MIB) == 256 * MIB


def short_of(guest: Guest) -> int:
    """Bytes that the host could not give to device "huge"."""
    tree = guest.qmp.execute("x-minivmm-inspect")
    found: int = tree["board"]["devices"]["huge"]["model"]["short-of"]
    return found
