"""vCPUs that exit all the time, one, two and four of them: what an exit costs when all want one.

Real-mode code writes to a register of the serial port in a loop, on any /dev/kvm; the exits take
the product's own way: vcpu.py's threads, the lock, the bus, the device. The number of exits is the
same however many vCPUs share it, and as Python serves one exit at a time, so should the time be:
what is more was lost in handing the interpreter over. Each vCPU is the first of a VM of its own,
since only that one starts without firmware; what KVM adds within one VM is not seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.figures import Figure, present
from minivmm.accel import open_system
from minivmm.bus import Action, Bus
from minivmm.devices.serial import PORTS, Serial
from minivmm.kvm.system import System
from minivmm.kvm.vcpu import Vcpu
from minivmm.loop import EventLoop
from minivmm.memory.region import Region
from minivmm.spec.platform import SERIAL_PORT
from minivmm.spec.x86 import CpuState, Regs, Segment, Sregs, Table
from minivmm.stats import Stats
from minivmm.testing.fake_irq import FakeLine
from minivmm.vcpu import ExitServer, VcpuGroup

RUNS = 5
EXITS = 24_000
"""Of a run, by all vCPUs together."""
CPUS = (1, 2, 4)
MOST = 1.1
"""What an exit may cost more with several vCPUs: the goal of issue 9, and some noise."""

CODE = 0x1000
RAM = 0x8000
SCRATCH = SERIAL_PORT + 7
DONE_PORT = 0x81


def code(exits: int) -> bytes:
    """Real-mode code that writes `exits` times to SCRATCH, once to DONE_PORT, and halts."""
    begin = b"\x66\xb9" + exits.to_bytes(4, "little") + b"\xba" + SCRATCH.to_bytes(2, "little")
    loop = b"\xee\x66\x49\x75\xfb"  # out dx, al; dec ecx; jnz back to the out
    return begin + loop + bytes([0xE6, DONE_PORT]) + b"\xf4"


def real_mode() -> CpuState:
    """16-bit code at CODE in flat segments, interrupts off."""
    flat = Segment(limit=0xFFFF, type=3, g=0)
    segments = (Segment(limit=0xFFFF, type=11, g=0), flat, Segment(limit=0xFFFF, type=11, s=0, g=0))
    return CpuState(Regs(rip=CODE, rsp=RAM), Sregs(*segments, idt=Table(limit=0x3FF), cr0=0x10))


class Finish:
    """The device at DONE_PORT: all vCPUs write there once."""

    def __init__(self, cpus: int) -> None:
        self._left = cpus
        self.all_done = threading.Event()

    def read(self, offset: int, size: int) -> int:
        """Nothing to see."""
        return 0

    def write(self, offset: int, size: int, value: int) -> Action | None:
        """One more is done."""
        self._left -= 1
        if not self._left:
            self.all_done.set()
        return None


@contextmanager
def vcpus_of(system: System, count: int) -> Iterator[list[Vcpu]]:
    """`count` vCPUs about to run their part of EXITS."""
    made = []
    leaves = system.supported_cpuid()
    try:
        for _ in range(count):
            vm, ram = system.create_vm(), Region(RAM)
            made.append((vm, ram))
            vm.set_memory_region(0, 0, RAM, ram.hva)
            ram.view(CODE, 32)[:] = code(EXITS // count).ljust(32, b"\xf4")
        vcpus = [vm.create_vcpu(0) for vm, _ in made]
        for vcpu in vcpus:
            vcpu.initialise(leaves, real_mode())
        yield vcpus
    finally:
        for vm, ram in made:
            vm.close()
            ram.close()


def run(system: System, count: int) -> float:
    """Microseconds of an exit when `count` vCPUs make EXITS of them."""
    loop = EventLoop()  # it has the lock, and sets how long a thread may keep the interpreter
    stats, bus, finish = Stats(), Bus("pio"), Finish(count)
    bus.add(SERIAL_PORT, PORTS, Serial(FakeLine(), lambda _: None), name="serial")
    bus.add(DONE_PORT, 1, finish, name="done")
    failures: list[str] = []

    def failed(line: str) -> None:
        failures.append(line)
        finish.all_done.set()

    with vcpus_of(system, count) as vcpus:
        group = VcpuGroup(
            vcpus,
            ExitServer(Bus("mmio"), bus, stats),
            loop.lock,
            stats,
            on_action=lambda _: None,
            on_fault=lambda _: False,
            on_debug=lambda _: None,
            on_failure=failed,
        )
        group.start(held=True)
        began = time.perf_counter()
        group.resume()
        finish.all_done.wait(60)
        seconds = time.perf_counter() - began
        group.stop()
    loop.asyncio.close()
    if failures or stats.exits["io out"] != EXITS + count:
        raise SystemExit(f"vcpus: {failures or stats.exits}")
    return seconds / EXITS * 1e6


def measure(runs: int = RUNS) -> list[Figure]:
    """Each number of vCPUs `runs` times, in turns."""
    system = open_system()
    try:
        found: dict[int, list[float]] = {count: [] for count in CPUS}
        for _ in range(runs):
            for count in CPUS:
                found[count].append(run(system, count))
    finally:
        system.close()
    alone = found[1]
    return [
        Figure("an exit of port I/O, 1 vCPU", "us", alone),
        *(
            Figure(
                f"an exit of port I/O, {count} vCPUs at once",
                "us",
                found[count],
                alone,
                peer_name="1 vCPU",
                ratio_at_most=MOST,
            )
            for count in CPUS[1:]
        ),
    ]


def main() -> None:
    """Measure, and print."""
    present(measure)


if __name__ == "__main__":
    main()
