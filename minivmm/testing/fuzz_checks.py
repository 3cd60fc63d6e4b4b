"""What holds for a fuzzed machine after every step, whatever its drivers did.

Judged from the outside where possible: configuration spaces, bytes, and what the host was asked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from minivmm.devices.virtio_mem.audit import audit
from minivmm.memory.region import Access
from minivmm.pci.function import PciFunction
from minivmm.spec import pci
from minivmm.spec.platform import pci_gsi
from minivmm.spec.virtio import DeviceStatus
from minivmm.testing.fuzz_host import LedgerRegion, require
from minivmm.testing.fuzz_world import BLOCK, REGION, World
from minivmm.virtio.notification import STRIDE
from minivmm.virtio.pci import VirtioPciFunction

Run = tuple[int, int]
"""First and number of neighbouring plugged blocks."""

_CONFIG = struct.Struct("<QH6xQQQQQ")  # struct virtio_mem_config (reference A.3)
_MOST_JOBS, _MOST_TIMERS = 1, 3
"""That wait for a device; its user may have set two intervals for timers."""
_MOST_DEFERRED = 256

# Plain integers: operations on enum members cost a microsecond each.
_INTERRUPT, _INTX_DISABLE = int(pci.Status.INTERRUPT), int(pci.Command.INTX_DISABLE)
_DEAD = int(DeviceStatus.NEEDS_RESET | DeviceStatus.FAILED)
_DRIVER_OK = int(DeviceStatus.DRIVER_OK)
_NOTIFY = 0x3000  # of BAR 0, as virtio/pci.py has it; drivers learn it from a capability


class Checker:
    """Checks `world` after each step; what did not change is not looked at again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sizes: tuple[object, ...] = ()
        self._blocks: tuple[object, ...] = ()
        self._doorbells: tuple[object, ...] = ()

    def check(self) -> None:
        """Raises Violation if anything is wrong."""
        world, mem = self._world, self._world.mem
        region = mem.region
        assert isinstance(region, LedgerRegion)
        runs = tuple(mem.blocks.plugged_ranges())
        sizes = (runs, mem.plugged_size, mem.requested_size, mem.usable_region_size)
        if sizes != self._sizes:
            _check_sizes(world, runs)
            self._sizes = sizes
        blocks = (runs, len(region.held), len(world.mappings.units), tuple(region.access))
        if blocks != self._blocks and not mem.at_work:
            _check_blocks(world, region, runs)
            self._blocks = blocks
        _check_work(world)
        _check_pins(world)
        for function in world.functions:
            _check_function(function)
        doorbells = (*(f.bars[0].mapped for f in world.functions), *world.doorbells.bound)
        if doorbells != self._doorbells:
            _check_doorbells(world)
            self._doorbells = doorbells


def check_host_memory(world: World) -> None:
    """Nothing is resident in unplugged blocks, as the kernel has it; walks page tables."""
    found = audit(world.mem)
    require(not found.resident_unplugged, "resident", f"unplugged memory at {found.places}")


def _check_sizes(world: World, runs: Sequence[Run]) -> None:
    """MEM-D-2 to MEM-D-6, MEM-D-8."""
    block, _, addr, region, usable, plugged, requested = _CONFIG.unpack(world.mem.config_space())
    sizes = f"plugged {plugged:#x} requested {requested:#x} usable {usable:#x}"
    constant = (block, addr, region) == (BLOCK, REGION.base, REGION.size)
    require(constant, "MEM-D-2", "a constant field of the configuration changed")
    require(plugged == BLOCK * sum(count for _, count in runs), "MEM-D-3", sizes)
    require(requested <= usable <= region, "MEM-D-4", sizes)
    require(not usable % BLOCK and not requested % BLOCK, "MEM-D-6", sizes)
    require(not runs or sum(runs[-1]) * BLOCK <= usable, "MEM-D-8", sizes)


def _check_blocks(world: World, region: LedgerRegion, runs: Sequence[Run]) -> None:
    """The host's side of what is plugged, while nothing is on its way."""
    numbers = {number for first, count in runs for number in range(first, first + count)}
    require(world.mappings.units == numbers, "mapped", "others see other blocks than are plugged")
    held = region.held - numbers
    require(not held, "held", f"unplugged blocks {sorted(held)} may hold host memory")
    closed = [number for number in numbers if region.access[number] is not Access.ALL]
    require(not closed, "MEM-D-19", f"plugged blocks {closed} are not accessible")


def _check_work(world: World) -> None:
    """What waits does not grow with what drivers do."""
    for errands in world.errands:
        require(errands.unfinished <= _MOST_JOBS, "jobs", f"{errands.unfinished} jobs wait")
        require(len(errands.looks) <= _MOST_TIMERS, "timers", f"{len(errands.looks)} timers run")
    waiting = len(world.defer.waiting)
    require(waiting <= _MOST_DEFERRED, "deferred", f"{waiting} calls wait")


def _check_pins(world: World) -> None:
    """A line is asserted while a function on it has something to tell and may (PCI-D-21)."""
    wanted: dict[int, bool] = {}
    for function in world.pci.functions:
        status, command = _word(function, pci.STATUS), _word(function, pci.COMMAND)
        gsi = pci_gsi(function.slot)
        asserts = bool(status & _INTERRUPT) and not command & _INTX_DISABLE
        wanted[gsi] = wanted.get(gsi, False) or asserts
    for gsi, level in wanted.items():
        require(world.irq.line(gsi).level is level, "pin", f"line {gsi} is not {level}")


def _check_function(function: VirtioPciFunction) -> None:
    """Interrupt status, decoding, and that only live devices have queues (GEN-D-1)."""
    silent = function.msix is not None and function.msix.enabled
    told = bool(_word(function, pci.STATUS) & _INTERRUPT)
    require(told == (bool(function.isr) and not silent), "PCI-D-21", f"ISR {function.isr}")
    for bar in function.bars:
        decoded = bar.mapped is None or bar.mapped == function.wanted_address(bar)
        require(decoded, "bar", f"{bar.name} is decoded elsewhere")
    status = int(function.transport.status)
    if not status & _DRIVER_OK or status & _DEAD:
        require(not function.transport.live_queues(), "GEN-D-1", f"a queue lives at {status:#x}")


def _check_doorbells(world: World) -> None:
    """Exactly those of decoded BARs are bound."""
    wanted = set()
    for function in world.functions:
        base = function.bars[0].mapped
        if base is not None and function.device.options.ioeventfd:
            count = len(function.transport.queue_registers)
            wanted |= {base + _NOTIFY + STRIDE * index for index in range(count)}
    bound = {gpa for gpa, _ in world.doorbells.bound}
    require(bound == wanted, "doorbells", "others than those of decoded BARs are bound")


def _word(function: PciFunction, offset: int) -> int:
    return function.config.get(offset, 2)
