"""A guest that adds memory in blocks of 2 GiB: part of one can be plugged, if a whole one may be.

Linux on x86-64 does so if boot memory ends at or above 64 GiB, at a multiple of 2 GiB. Here it ends
there, but most of it is a hole.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Guest

from minivmm.spec import platform
from minivmm.units import GIB, MIB

BLOCK = 2 * GIB


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """768 MiB, the last 256 of them below 64 GiB; regions with and without a whole 2 GiB block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "LOW_RAM_END", 512 * MIB)
        patch.setattr(platform, "HIGH_RAM_START", 64 * GIB - 256 * MIB)
        sizes = {"vmem0": "4G", "vmem1": "1G"}
        devices = [f"--device=virtio-mem-pci,id={name},size={sizes[name]}" for name in sizes]
        with Guest("-k", "6.12", "-m", "768M", *devices) as started:
            yield started


def test_part_of_a_2_gib_block_can_be_plugged_and_used(guest: Guest) -> None:
    base = guest.memory_total()
    assert guest.shell("cat /sys/devices/system/memory/block_size_bytes") == f"{BLOCK:x}"
    assert guest.device()["memaddr"] == 64 * GIB

    guest.resize(512 * MIB)

    assert guest.device()["usable-size"] >= BLOCK
    guest.wait_until(lambda: guest.memory_total() - base == 512 * MIB, "MemTotal")
    guest.resize(0)
    guest.wait_until(lambda: guest.memory_total() == base, "MemTotal as at boot")


def test_a_region_without_a_whole_block_stays_unplugged_and_that_is_said(guest: Guest) -> None:
    guest.request(vmem1=GIB)

    guest.wait_until(lambda: diagnosis(guest) == "no-whole-block", "diagnosis")
    assert guest.plugged()["vmem1"] == 0


def diagnosis(guest: Guest) -> str:
    """What `minivmm why` finds about vmem1, without looking inside the guest."""
    (found,) = guest.qmp.execute("x-minivmm-why", id="vmem1")["memory-devices"]
    kind: str = found["kind"]
    return kind
