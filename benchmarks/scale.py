"""What a huge, empty region costs: a device of 16 TiB beside one of 1 GiB, and starts with 1 TiB.

On any host: the device model alone, and `minivmm boot` with a guest whose first instruction ends
it. Where KVM runs stock guests: boots with such a region; what it adds to QEMU's is in the details.
Regions are as large as the CPU's addresses allow; 1 TiB needs 41 bits, the lab has fewer.
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks import boot
from benchmarks.figures import Figure, present
from minivmm.accel import probe
from minivmm.guest.kernels import find
from minivmm.matrix.guest import Setup
from minivmm.matrix.images import Images, command_line
from minivmm.matrix.qemu_words import linux_words, machine_words, memory_device_words
from minivmm.testing.mem_bench import MemBench, make_device
from minivmm.testing.start_cost import Cost, cost_of, largest_region
from minivmm.testing.tiny_kernel import INVALID, bzimage
from minivmm.units import GIB, MIB, TIB, format_size

RUNS = 5
SMALL, LARGE = GIB, 16 * TIB
BLOCK = 2 * MIB
PLUGGED = 64
"""Blocks that are plugged when the model is looked at."""

MOST_MEMORY = 64.0
MOST_SECONDS = 0.1
"""MiB and seconds that 1 TiB instead of 1 GiB may add to a start (issue 3)."""


def measure(runs: int = RUNS) -> list[Figure]:
    """Everything that this machine can do."""
    if probe().usable:
        return with_guests(runs)
    begun = starts(runs)  # first: a process has at least the most memory of the one it is made by
    return [*begun, *model(runs)]


# -- the device model --------------------------------------------------------------------------


def model(runs: int) -> list[Figure]:
    """Microseconds of what is asked of the model as a whole, and its memory."""
    found: dict[str, dict[int, list[float]]] = {}
    model_costs(SMALL)  # what is made at the first use is made
    for _ in range(runs):
        for size in (SMALL, LARGE):
            for name, value in model_costs(size).items():
                found.setdefault(name, {}).setdefault(size, []).append(value)
    return [
        Figure(
            f"{name}, region of {format_size(LARGE)}",
            "KiB" if name.startswith("memory") else "us",
            values[LARGE],
            values[SMALL],
            peer_name=f"region of {format_size(SMALL)}",
        )
        for name, values in found.items()
    ]


def model_costs(size: int) -> dict[str, float]:
    """What a region of `size` bytes costs, of which PLUGGED blocks are plugged."""
    with MemBench(size=size, requested_size=size, block_size=BLOCK) as bench:
        bench.driver.plug(0, PLUGGED)
        costs = {
            "looking at the device (inspect)": microseconds(bench.device.inspect),
            "saving its state": microseconds(bench.device.save_state),
            "UNPLUG_ALL": microseconds(bench.driver.unplug_all),
        }
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    device = make_device(size=size, block_size=BLOCK)
    costs["memory of the device model"] = (tracemalloc.get_traced_memory()[0] - before) / 1024
    tracemalloc.stop()
    device.region.close()
    return costs


def microseconds(work: Callable[[], object]) -> float:
    """That `work` takes."""
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / 1000


# -- whole processes ---------------------------------------------------------------------------


def starts(runs: int) -> list[Figure]:
    """What a region of 1 TiB adds to a process whose guest ends at once."""
    sizes = (SMALL, largest_region(TIB))
    costs: dict[int, list[Cost]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image")
        image.write_bytes(bzimage(INVALID))
        words = ["boot", "--accel", "kvm", "-q", "-m", "512M", "-k", str(image)]
        for _ in range(runs):
            for size in sizes:
                device = ["--device", f"virtio-mem-pci,id=vmem0,size={size}"]
                costs[size].append(cost_of([*words, *device, "--", "true"]))
    small, large = costs.values()
    pairs = list(zip(small, large, strict=True))
    title = f"a region of {format_size(sizes[1])} adds to a start"
    return [
        Figure(
            f"{title}: time",
            "s",
            [two.seconds - one.seconds for one, two in pairs],
            at_most=MOST_SECONDS,
        ),
        Figure(
            f"{title}: most memory",
            "MiB",
            [(two.peak - one.peak) / MIB for one, two in pairs],
            at_most=MOST_MEMORY,
        ),
    ]


def with_guests(runs: int) -> list[Figure]:
    """Linux' boot to init with the largest region; QEMU's figures are in the details."""
    sizes = (SMALL, largest_region(TIB))
    found: dict[tuple[str, int], list[boot.Boot]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        files = Images(Path(folder)).files(find(boot.KERNEL), Setup())
        linux = [*linux_words(files, command_line(Setup())), "-serial", "stdio"]
        ours = boot.commands(files)["minivmm"]

        def qemu(size: int) -> list[str]:
            words = machine_words(files.kernel, memory=boot.MEMORY, hotplug=size + GIB)
            return [*words, *linux, *memory_device_words(size, ())]

        def minivmm(size: int) -> list[str]:
            return [*ours, "--device", f"virtio-mem-pci,id=vmem0,size={size}"]

        for _ in range(runs):
            for name, command in (("minivmm", minivmm), ("q35", qemu)):
                for size in sizes:
                    found[name, size].append(boot.boot(command(size)))
    title = f"region of {format_size(sizes[1])}"
    return [
        _grown(f"boot to init, {title}", "s", found, sizes, lambda one: one.seconds),
        _grown(
            f"exits until init, {title}",
            "exits",
            found,
            sizes,
            lambda one: one.counters["kvm exits"],
        ),
    ]


def _grown(
    name: str,
    unit: str,
    found: dict[tuple[str, int], list[boot.Boot]],
    sizes: tuple[int, int],
    value: Callable[[boot.Boot], float],
) -> Figure:
    small, large = ([value(one) for one in found["minivmm", size]] for size in sizes)
    detail = {f"q35 with {format_size(size)}": value(found["q35", size][-1]) for size in sizes}
    peer = f"region of {format_size(sizes[0])}"
    return Figure(name, unit, large, small, peer_name=peer, detail=detail)


if __name__ == "__main__":
    present(measure)
