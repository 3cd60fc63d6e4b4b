"""NUMA nodes and "never advertised", as Linux sees both: sysfs, its copy of SRAT, its memory map.

One guest for all: two nodes with CPUs and memory, a third one with nothing but a device, and
distances that differ by direction. Tables are decoded here by hand (ACPI 6.5, 5.2.16).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from harness import Guest

MIB = 1 << 20
GIB = 1 << 30

NODES = "/sys/devices/system/node"
BOOT_MEMORY = {0: 320 * MIB, 1: 192 * MIB, 2: 0}
DISTANCES = ["10 31 42", "20 10 255", "42 99 10"]


@pytest.fixture(scope="module")
def guest(kernel: str) -> Iterator[Guest]:
    numa = [
        *("node,cpus=1,cpus=2,mem=320M", "node,cpus=0,mem=192M", "node"),
        *("dist,src=0,dst=1,val=31", "dist,src=1,dst=0,val=20"),
        *("dist,src=0,dst=2,val=42", "dist,src=1,dst=2,val=255", "dist,src=2,dst=1,val=99"),
    ]
    devices = [f"virtio-mem-pci,id=vmem{node},size=2G,node={node}" for node in BOOT_MEMORY]
    words = [f"--numa={text}" for text in numa] + [f"--device={text}" for text in devices]
    # Otherwise the kernel may lie in the small node, beside the bounce buffers: 100M of its 192M.
    words.append("--append=nokaslr")
    with Guest("-k", kernel, "-m", "512M", "-p", "3", *words) as started:
        yield started


def plug(guest: Guest, sizes: dict[int, int]) -> None:
    for node, size in sizes.items():
        guest.qmp.execute("qom-set", path=f"vmem{node}", property="requested-size", value=size)
    guest.wait_until(
        lambda: [one["size"] for one in guest.info()["memory-devices"]] == list(sizes.values()),
        f"plugged sizes {sizes}",
    )


def totals(guest: Guest) -> dict[int, int]:
    """MemTotal of every node that is online, in bytes."""
    lines = guest.shell(f"grep -h MemTotal {NODES}/node*/meminfo").splitlines()
    return {int(words[1]): int(words[3]) * 1024 for words in map(str.split, lines)}


def test_cpus_memory_and_distances_are_those_declared(guest: Guest) -> None:
    text = guest.shell(
        f"cd {NODES}; cat possible has_cpu; for n in node[01]; do cat $n/cpulist $n/distance; done;"
        " dmesg | grep -c 'is not on the same node' || true"
    )
    found = totals(guest)

    assert text.splitlines() == [
        *("0-2", "0-1"),
        *("1-2", " ".join(DISTANCES[0].split()[:2])),
        *("0", " ".join(DISTANCES[1].split()[:2])),
        "0",
    ]
    assert set(found) == {0, 1}
    assert all(0.6 * BOOT_MEMORY[node] < found[node] <= BOOT_MEMORY[node] for node in found)


def test_plugged_memory_lands_on_its_node(guest: Guest) -> None:
    base = {2: 0, **totals(guest)}
    sizes = {0: 128 * MIB, 1: 256 * MIB, 2: 384 * MIB}

    plug(guest, sizes)

    wanted = {node: base[node] + size for node, size in sizes.items()}
    guest.wait_until(lambda: totals(guest) == wanted, f"node totals {wanted}")
    rows = [guest.shell(f"cat {NODES}/node{node}/distance") for node in sizes]
    shown = guest.qmp.execute("human-monitor-command", **{"command-line": "info numa"})
    assert rows == DISTANCES
    assert shown.split("\r\n") == [
        "3 nodes",
        *("node 0 cpus: 1 2", "node 0 size: 448 MB", "node 0 plugged: 128 MB"),
        *("node 1 cpus: 0", "node 1 size: 448 MB", "node 1 plugged: 256 MB"),
        *("node 2 cpus:", "node 2 size: 384 MB", "node 2 plugged: 384 MB"),
        "",
    ]

    plug(guest, dict.fromkeys(sizes, 0))
    guest.wait_until(lambda: {2: 0, **totals(guest)} == base, f"node totals {base}")


def test_regions_are_in_srat_as_hot_pluggable_and_in_no_memory_map(guest: Guest) -> None:
    table = guest.run("cat", "/sys/firmware/acpi/tables/SRAT").stdout
    lines = guest.shell(
        "cd /sys/firmware/memmap; for e in *; do cat $e/start $e/end $e/type | tr '\\n' ' '; echo;"
        " done; dmesg | grep -o 'BIOS-e820: .mem [0-9a-fx-]*'"
    ).splitlines()

    regions = [(d["memaddr"], d["max-size"], d["node"]) for d in guest.info()["memory-devices"]]
    affinities = srat_memory(table)
    assert [entry for entry in affinities if entry[3] & 2] == [(*one, 3) for one in regions]
    assert sum(size for _, size, _, flags in affinities if flags == 1) == 512 * MIB
    firmware = [tuple(int(n, 16) for n in line.split()[:2]) for line in lines if "e820" not in line]
    e820 = [
        tuple(int(n, 16) for n in line.split()[-1].rstrip("]").split("-"))
        for line in lines
        if "e820" in line
    ]
    assert len(firmware) >= 3
    assert sorted(firmware) == sorted(e820)
    assert max(end for _, end in firmware) < min(base for base, _, _ in regions)


def srat_memory(table: bytes) -> list[tuple[int, int, int, int]]:
    """(base, size, node, flags) of all memory affinity structures."""
    found = []
    at = 48
    while at < len(table):
        kind, length = table[at], table[at + 1]
        if kind == 1:
            node, base, size = struct.unpack_from("<I2xQQ", table, at + 2)
            found.append((base, size, node, struct.unpack_from("<I", table, at + 28)[0]))
        at += length
    return found
