"""A fuzzed machine: one device of any type beside a virtio-mem device, with hostile drivers.

The drivers' steps are fuzz_guest.py's, what must always hold is fuzz_checks.py's, and how it is
proven that a device still works fuzz_talk.py's. This file builds the machine and does the host's.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any

from minivmm.bus import Bus
from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_blk.device import VirtioBlk
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.devices.virtio_console.device import VirtioConsole
from minivmm.devices.virtio_console.spec import VirtioConsoleSpec
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.devices.virtio_rng.device import VirtioRng
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.pci.host import PciHost
from minivmm.spec.virtio import DeviceStatus
from minivmm.testing.driver import bench_map
from minivmm.testing.echo import EchoDevice
from minivmm.testing.fake_irq import FakeDefer, FakeDoorbells, FakeInterruptController
from minivmm.testing.fuzz_host import LateErrands, LedgerRegion, WatchedInterrupts, WatchedMemory
from minivmm.testing.mem_bench import Mappings
from minivmm.trace import Detail, Event, Trace
from minivmm.units import GIB, MIB
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.options import VirtioOptions
from minivmm.virtio.pci import VirtioPciFunction

BLOCK, BLOCKS = MIB, 64
REGION = Window(4 * GIB, BLOCKS * BLOCK)
"""The virtio-mem device's memory."""
LOW_RAM, HIGH_RAM = Window(0, 6 * MIB), Window(6 * MIB, 2 * MIB)
"""Two regions that touch, so that buffers and rings may lie across the border."""
DISK_SIZE = MIB
MOST_DATA = 64 * 1024
"""Bytes at most that the host sends to a port at a time."""
REFUSALS = ("", "populate", "discard", "protect", "listener")
"""What the host may refuse until further notice."""


@dataclass(frozen=True)
class Setup:
    """What a machine is made of; plain data, to be printed and read back."""

    device: str
    """A key of MODELS; "mem" alone has no other device beside it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of VirtioOptions, for all devices."""
    special: dict[str, Any] = field(default_factory=dict)
    """Of the spec of `device`, unless that is "mem"."""
    memory: dict[str, Any] = field(default_factory=dict)
    """Of VirtioMemSpec."""


class World:
    """The machine of `setup`. Close it, or lose memory."""

    def __init__(self, setup: Setup, *, moved: bool = False) -> None:
        """`moved`: it goes on with the disk that the last one had."""
        self.setup = setup
        if not moved:
            os.ftruncate(_disk(), 0)
            os.ftruncate(_disk(), DISK_SIZE)
        self.memory = WatchedMemory()
        self.irq = FakeInterruptController()
        self.doorbells = FakeDoorbells()
        self.defer = FakeDefer()
        self.errands: list[LateErrands] = []
        """Of each function's device."""
        self.trace = Trace()
        self.bugs: list[str] = []
        """Tracebacks of exceptions that a transport caught."""
        self.told: Counter[str] = Counter()
        """How often which event was traced, answers of virtio-mem by their name."""
        self._unfollow: Callable[[], None] | None = None
        self.trace.follow(self._note)
        address_map = bench_map(HIGH_RAM.end)
        self.mmio, self.pio = Bus("mmio"), Bus("pio")
        self.pci = PciHost(self.mmio, self.pio, address_map, self.irq)
        for window in (LOW_RAM, HIGH_RAM):
            self.memory.add(window.base, Region(window.size), name="ram")
        self.mem = self._make_memory_device()
        self.mappings = Mappings(BLOCK)
        self.functions: list[VirtioPciFunction] = []
        if setup.device != "mem":
            self._plug_in(MODELS[setup.device](setup))
        self._plug_in(self.mem)
        self.memory.subscribe(self.mappings)
        self.pci.assign_bars()
        self.memory.allowed = self._is_ram

    @property
    def device(self) -> VirtioDevice:
        """The device that the machine is about."""
        return self.functions[0].device

    def close(self) -> None:
        """Give everything back to the real host."""
        for function in self.functions:
            function.device.close()
        self.memory.close()

    # -- steps of the host -------------------------------------------------------------------------

    def resize(self, blocks: int) -> None:
        """Ask for so many blocks."""
        self.mem.set_requested_size(min(blocks, BLOCKS) * BLOCK)

    def refuse(self, what: int, calls: int) -> None:
        """From now on refuse one of REFUSALS; protecting fails once, `calls` calls from now."""
        name = REFUSALS[what % len(REFUSALS)]
        region = self.mem.region
        assert isinstance(region, LedgerRegion)
        region.fails = name
        region.protects_until_failure = 1 + calls if name == "protect" else 0
        self.mappings.full = name == "listener"

    def work(self) -> None:
        """What was handed over is done."""
        for errands in self.errands:
            errands.work_off()

    def pass_time(self) -> None:
        """Timers run out."""
        for errands in self.errands:
            errands.pass_time()

    def loop(self, rounds: int) -> None:
        """The event loop comes to what was put off, at most so many calls."""
        self.defer.run(rounds)

    def access(self, offset: int, width: int, value: int | None) -> None:
        """A vCPU reads (`value` None) or writes device memory where KVM has none."""
        gpa = REGION.base + offset % REGION.size
        if value is None:
            self.mmio.read(gpa, width)
        else:
            self.mmio.write(gpa, width, value)

    def wish(self, what: int, value: int) -> None:
        """Something that only this type of device knows: the user, or whoever owns it."""
        match self.device:
            case VirtioBalloon() as balloon:
                if what % 2:
                    balloon.set_target(value * 4096)
                else:
                    balloon.statistics.poll_every(value % 3)
            case VirtioConsole() as console:
                port = console.ports[value % 4]
                if what % 4 == 0:
                    port.set_host_open(not port.host_open)
                elif what % 4 == 1:
                    port.set_throttled(not port.throttled)
                elif port.pending < MOST_DATA:
                    port.send(bytes(value % MOST_DATA))
            case VirtioRng() as rng:
                rng.signals.kick(0)
            case EchoDevice() as echo:
                echo.signals.config(notify=bool(what % 2))
            case _:
                self.mem.kick()

    def follow(self) -> None:
        """Somebody begins to follow requests, or does so no more."""
        if self._unfollow:
            self._unfollow()
            self._unfollow = None
        else:
            self._unfollow = self.trace.follow(lambda _event: None, Detail.REQUESTS)

    def restart(self) -> None:
        """The whole machine is reset."""
        for function in self.functions:
            function.system_reset()
        self.pci.reset()
        self.pci.assign_bars()

    def calm(self) -> None:
        """The host refuses nothing, and has done all of its work."""
        self.refuse(0, 0)
        while sum(errands.work_off() for errands in self.errands) or self.defer.run():
            pass

    # -- inside ------------------------------------------------------------------------------------

    def _make_memory_device(self) -> VirtioMem:
        setup = self.setup
        spec = VirtioMemSpec(
            size=REGION.size, block_size=BLOCK, thp="off", **setup.memory, **setup.options
        )
        return VirtioMem(spec, REGION, LedgerRegion(REGION.size, spec.host_memory, BLOCKS))

    def _plug_in(self, device: VirtioDevice) -> None:
        interrupts = WatchedInterrupts(self.irq)
        function = VirtioPciFunction(
            device,
            interrupts=interrupts,
            doorbells=self.doorbells,
            memory=self.memory,
            trace=self.trace,
            defer=self.defer,
        )
        interrupts.allowed = lambda: may_send(function)
        self.functions.append(function)
        self.pci.add(function)
        self.errands.append(LateErrands())
        device.use(self.errands[-1])
        if isinstance(device, VirtioMem):
            self.mmio.add(REGION.base, REGION.size, device.intruders, name="intruders")

    def _note(self, event: Event) -> None:
        text, answer = event.fields.get("traceback"), event.fields.get("answer")
        self.told[f"{event.name} {answer}" if answer else event.name] += 1
        if text:
            self.bugs.append(str(text))

    def _is_ram(self, gpa: int, length: int) -> bool:
        """Judged from the block states alone."""
        if gpa < REGION.base:
            return gpa >= 0 and gpa + length <= HIGH_RAM.end
        first, last = gpa - REGION.base, gpa - REGION.base + max(length, 1) - 1
        if last >= REGION.size:
            return False
        blocks = last // BLOCK - first // BLOCK + 1
        plugged = sum(count for _, count in self.mem.blocks.plugged_ranges(first // BLOCK, blocks))
        leaving = self.mem.state.leaving
        return plugged == blocks and not any(
            at <= last and first < at + size for at, size in leaving
        )


def may_send(function: VirtioPciFunction) -> bool:
    """May `function` send messages now? (GEN-D-1, PCI-D-32)"""
    enabled = function.msix is not None and function.msix.enabled
    started = DeviceStatus.DRIVER_OK in function.transport.status
    return function.bus_master and enabled and started


@cache
def _disk() -> int:
    return os.memfd_create("minivmm-fuzz-disk", os.MFD_CLOEXEC)


def _make_blk(setup: Setup) -> VirtioDevice:
    path = f"/proc/self/fd/{_disk()}"
    return VirtioBlk(VirtioBlkSpec(file=path, **setup.special, **setup.options))


def _make_rng(setup: Setup) -> VirtioDevice:
    device = VirtioRng(VirtioRngSpec(**setup.special, **setup.options))
    device.source = Random(setup.device).randbytes
    return device


def _make_echo(setup: Setup) -> VirtioDevice:
    device = EchoDevice()
    device.options = replace(VirtioOptions(), **setup.options)
    return device


MODELS: dict[str, Callable[[Setup], VirtioDevice]] = {
    "echo": _make_echo,
    "rng": _make_rng,
    "balloon": lambda setup: VirtioBalloon(VirtioBalloonSpec(**setup.special, **setup.options)),
    "blk": _make_blk,
    "console": lambda setup: VirtioConsole(VirtioConsoleSpec(**setup.special, **setup.options)),
}
"""Devices beside the virtio-mem one."""
DEVICES = ("mem", *MODELS)
