"""What a hostile driver does to one function, step by step; each public method is a step.

Arguments are plain numbers and bytes, and mean something in any state (an index counts modulo what
there is), so that a case still runs when steps are taken out of it. Addresses are pairs (name,
offset), as places move (fuzz_places.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from minivmm.errors import GuestAddressError
from minivmm.pci.function import Bar
from minivmm.spec import pci, platform
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.spec.virtio_pci import NO_VECTOR, CapabilityType, WindowCapability
from minivmm.testing import fuzz_rings
from minivmm.testing.buffers import GuestAllocator, RingDriver, Used
from minivmm.testing.driver import VirtioPciDriver
from minivmm.testing.fuzz_host import require
from minivmm.testing.fuzz_places import FIXED, Entry, Place
from minivmm.testing.fuzz_snapshot import snapshot
from minivmm.testing.fuzz_world import REGION, World
from minivmm.units import MIB
from minivmm.virtio.pci import VirtioPciFunction

_ROOM = 3 * MIB
"""Bytes of guest memory for rings and buffers of each driver, from 1 MiB on."""
_WINDOW = WindowCapability.OFFSETS


class FuzzGuest(VirtioPciDriver):
    """The driver of `function`, the `number`th of its machine."""

    def __init__(self, world: World, function: VirtioPciFunction, number: int) -> None:
        self.world = world
        self.function = function
        self._number = number
        self._bars = {bar.index: bar for bar in function.bars}
        super().__init__(
            world.mmio,
            world.memory,
            self._fresh_memory(),
            function.slot,
            doorbells=world.doorbells,
            defer=world.defer,
        )
        self.probe()
        self._reset_control = self._find_reset_control()
        self._window = self._find_window()
        self._homes = [(bar, self.bar_address(bar.index)) for bar in function.bars]
        self.defaults = snapshot(self)
        """What it is after a reset."""
        self.write_pci(pci.COMMAND, 2, 0)

    def bar_address(self, index: int) -> int:
        """As PciDriver, but quick."""
        bar = self._bars[index]
        return self.function.config.get(bar.offset, bar.width) & -bar.size

    def move(self, function: VirtioPciFunction) -> None:
        """Go on with `function`, which `world` has now in place of the one so far (moving.py)."""
        world, self.function = self.world, function
        self._bars = {bar.index: bar for bar in function.bars}
        self.go_on(world.mmio, world.memory, world.doorbells, world.defer)

    # -- a proper life -----------------------------------------------------------------------------

    @property
    def allocator(self) -> GuestAllocator:
        """What the driver's memory comes from."""
        return self._allocator

    @property
    def can_flr(self) -> bool:
        """Is a function level reset offered?"""
        return bool(self._reset_control)

    def settle(self) -> None:
        """BARs where they were at first, memory space and bus mastering on, as at a boot."""
        self.write_pci(pci.COMMAND, 2, 0)
        for bar, home in self._homes:
            self._write_bar(bar, home)
        self.write_pci(pci.COMMAND, 2, pci.Command.MEMORY_SPACE | pci.Command.BUS_MASTER)

    def begin(self, chosen: int, queues: int, size: int, inside: int, interrupts: int) -> None:
        """Set the device up: the offered features among `chosen`, queues by their bits.

        `inside`: rings lie in device memory. `interrupts`: 0 by the pin, 1 a vector per queue, 2
        one for all, 3 none for queues.
        """
        self.settle()
        self.reset()
        self._allocator = self._fresh_memory()
        if not self.negotiate(self.offered_features() & chosen | Feature.VERSION_1.mask):
            return
        if self.msix_capability:
            self.set_msix_control(0)
            if interrupts:
                self.enable_msix()
                self.set("config_msix_vector", 0)
        vector = (None, None, 0, NO_VECTOR)[interrupts % 4]
        for index in range(self.get("num_queues")):
            if queues >> index & 1:
                self._set_up(index, size, inside, vector)
        self.add_status(DeviceStatus.DRIVER_OK)

    def submit(self, index: int, *readable: bytes, writable: tuple[int, ...] = ()) -> list[Used]:
        """As VirtioPciDriver, in a table if possible; the host then does all its work at once."""
        ring = self.queues[index]
        ring.add(readable, writable, direct=0 if self.has(Feature.INDIRECT_DESC) else None)
        self.bell(index, 0, None, None)
        self.world.calm()
        return ring.collect()

    def chain(
        self,
        queue: int,
        readable: Sequence[bytes],
        writable: Sequence[int],
        direct: int | None,
        kick: int,
    ) -> None:
        """A proper chain; with `direct`, and if tables are possible, only so many in the ring."""
        table = direct if self.has(Feature.INDIRECT_DESC) else None
        room = writable if readable or writable else (1,)
        self._offer(queue, lambda ring: ring.add(readable, room, direct=table), kick)

    def pages(self, queue: int, ranges: Sequence[tuple[Place, int]], kick: int) -> None:
        """A chain whose writable buffers are given ranges of addresses."""
        found = [(self.place(where), size) for where, size in ranges]
        self._offer(queue, lambda ring: ring.add_at(found), kick)

    def collect(self, queue: int) -> None:
        """Take back what was used; what a hostile driver did to its ring is its own trouble."""
        with suppress(KeyError, IndexError):
            self._on_ring(queue, lambda ring: ring.collect())

    def bell(self, queue: int, way: int, width: int | None, value: int | None) -> None:
        """Ring a doorbell: `way` 0 as KVM would take it, 1 by an exit. None: as is proper."""
        index = self._index(queue)
        proper_width, proper_value = self._doorbell(index)
        structure = self.structures[CapabilityType.NOTIFY]
        gpa = self.address(CapabilityType.NOTIFY, structure.multiplier * index)
        width = width or proper_width
        if way or not self.world.doorbells.ring(gpa, width):
            self._mmio.write(gpa, width, proper_value if value is None else value)

    def renew(self, queue: int, size: int, inside: int) -> None:
        """Reset a queue and set it up again."""
        self.drop(queue)
        self._set_up(self._index(queue), size, inside, None)

    def drop(self, queue: int) -> None:
        """Reset a queue; nothing that was asked in it may go on afterwards (GEN-D-7)."""
        index, transport = self._index(queue), self.function.transport
        before = [found["index"] for found in transport.live_queues()]
        self.set("queue_select", index)
        self.set("queue_reset", 1)
        after = [found["index"] for found in transport.live_queues()]
        if index in before and index not in after:
            unfinished = self.world.errands[self._number].unfinished
            require(not unfinished, "GEN-D-7", f"{unfinished} jobs go on after a queue reset")

    def flr(self) -> None:
        """Reset the function, if that is offered."""
        if self._reset_control:
            self.write_pci(self._reset_control, 1, pci.INITIATE_RESET)
            self.queues.clear()

    # -- rings -------------------------------------------------------------------------------------

    def descriptors(self, queue: int, entries: Sequence[Entry], kick: int) -> None:
        """Any chain whatever."""
        self._on_ring(queue, lambda ring: fuzz_rings.put(ring, self._words(entries)))
        if kick:
            self.bell(queue, 0, None, None)

    def table(
        self, queue: int, at: int, entries: Sequence[Entry], surplus: int, flags: int, kick: int
    ) -> None:
        """An indirect table in the scratch memory, and a descriptor that leads to it.

        It claims the table to have `surplus` bytes more than it has.
        """
        gpa = self.place(("scratch", at))
        size = fuzz_rings.table(self.world.memory, gpa, self._words(entries)) + surplus
        self.descriptors(queue, [(("scratch", at), max(size, 0), flags, 0)], kick)

    def offer(self, queue: int, head: int) -> None:
        """Make any descriptor available, written or not."""
        self._on_ring(queue, lambda ring: fuzz_rings.offer(ring, head))

    def jump(self, queue: int, delta: int) -> None:
        """The driver goes on somewhere else in its ring."""
        self._on_ring(queue, lambda ring: fuzz_rings.jump(ring, delta))

    def hush(self, queue: int, position: int, flags: int) -> None:
        """Any event suppression."""
        self._on_ring(queue, lambda ring: fuzz_rings.suppress(ring, position, flags))

    def poke(self, queue: int, part: int, offset: int, data: bytes) -> None:
        """Any bytes into the descriptors, the driver's or the device's part: 0, 1, 2."""

        def write(ring: RingDriver) -> None:
            start, size = fuzz_rings.part(ring, part)
            self.world.memory.write(start + offset % size, data)

        self._on_ring(queue, write)

    def store(self, where: Place, data: bytes) -> None:
        """Any bytes anywhere in memory."""
        with suppress(GuestAddressError):
            self.world.memory.write(self.place(where), data)

    # -- registers ---------------------------------------------------------------------------------

    def look(self, where: Place, width: int) -> None:
        """Read `width` bytes of registers at a place."""
        value = self._mmio.read(self.place(where), width)
        assert 0 <= value < 1 << 8 * width, f"width: {value:#x} was read as {width} bytes"

    def change(self, where: Place, width: int, value: int) -> None:
        """Write `width` bytes of registers at a place: a store has no room for more of `value`."""
        self._mmio.write(self.place(where), width, value & ((1 << 8 * width) - 1))

    def field(self, name: str, value: int) -> None:
        """Write a field of the common configuration."""
        self.set(name, value)

    def window(self, bar: int, offset: int, size: int, width: int, value: int | None) -> None:
        """Access a BAR through PCI_CFG, by `width` bytes of its data; `value` None: read."""
        start = self._window
        self.write_pci(start + _WINDOW["bar"], 1, bar)
        self.write_pci(start + _WINDOW["offset"], 4, offset)
        self.write_pci(start + _WINDOW["size"], 4, size)
        if value is None:
            self.read_pci(start + _WINDOW["data"], width)
        else:
            self.write_pci(start + _WINDOW["data"], width, value)

    def ports(self, address: int, offset: int, width: int, value: int | None) -> None:
        """Configuration mechanism 1."""
        pio, port = self.world.pio, platform.PCI_CONFIG_PORT
        pio.write(port, 4, address)
        if value is None:
            pio.read(port + offset, width)
        else:
            pio.write(port + offset, width, value)

    def bar(self, which: int, where: Place) -> None:
        """Move a BAR, in two halves if it has them."""
        bars = self.function.bars
        self._write_bar(bars[which % len(bars)], self.place(where))

    def command(self, value: int) -> None:
        """Write the command register."""
        self.write_pci(pci.COMMAND, 2, value)

    def messages(self, control: int, vector: int, address: int, data: int, mask: int) -> None:
        """Write an MSI-X entry, and Message Control."""
        if self.msix_capability:
            entry = pci.MsixEntry(address & 0xFFFF_FFFF, address >> 32, data, mask)
            self.set_msix_entry(vector % self.vectors, entry)
            self.set_msix_control(control)

    # -- inside ------------------------------------------------------------------------------------

    def place(self, where: Place) -> int:
        """The address, of 64 bits, that a place has now."""
        name, offset = where
        if name in FIXED:
            base = FIXED[name]
        elif name in ("ring", "used"):
            ring = next(iter(self.queues.values()), None)
            base = fuzz_rings.part(ring, 2 if name == "used" else 0)[0] if ring else 0
        elif name == "config":
            base = self._config_base
        elif name == "msix":
            base = self.bar_address(self.function.bars[-1].index)
        else:
            kind = CapabilityType[name]
            base = self.address(kind) if kind in self.structures else 0
        return base + offset & (1 << 64) - 1

    def _words(self, entries: Sequence[Entry]) -> list[fuzz_rings.Words]:
        return [(self.place(where), length, flags, last) for where, length, flags, last in entries]

    def _index(self, queue: int) -> int:
        """A queue that is set up, if there is one."""
        return sorted(self.queues)[queue % len(self.queues)] if self.queues else queue % 4

    def _on_ring(self, queue: int, act: Callable[[RingDriver], object]) -> None:
        ring = self.queues.get(self._index(queue))
        if ring is not None:
            with suppress(GuestAddressError):
                act(ring)

    def _offer(self, queue: int, add: Callable[[RingDriver], object], kick: int) -> None:
        """Have a chain added, or room made for the next one."""
        try:
            self._on_ring(queue, add)
        except (IndexError, MemoryError):
            self.collect(queue)
        if kick:
            self.bell(queue, 0, None, None)

    def _fresh_memory(self) -> GuestAllocator:
        start = MIB + self._number * _ROOM
        return GuestAllocator(self.world.memory, start, start + _ROOM)

    def _device_memory(self) -> GuestAllocator:
        """From the first run of plugged blocks, from both ends for two drivers."""
        state = self.world.mem.state
        start, size = next(state.plugged_ranges(0, REGION.size), (0, 0))
        base = REGION.base + start + self._number * size // 2
        return GuestAllocator(self.world.memory, base, base + size // 2)

    def _set_up(self, index: int, size: int, inside: int, vector: int | None) -> None:
        """A new ring, in plugged device memory if there is room, else in RAM."""
        self.set("queue_select", index)
        most = self.get("queue_size")
        if not most:
            return
        wanted = min(size, most) if size else None
        usual = self._allocator
        for allocator in (self._device_memory(), usual) if inside else (usual,):
            self._allocator = allocator
            with suppress(MemoryError, GuestAddressError):
                self.setup_queue(index, wanted, vector=vector)
                break
        self._allocator = usual

    def _write_bar(self, bar: Bar, address: int) -> None:
        for at in range(0, bar.width, 4):
            self.write_pci(bar.offset + at, 4, address >> 8 * at & 0xFFFF_FFFF)

    def _find_window(self) -> int:
        at = self.read_pci(pci.CAPABILITIES, 1)
        while self.read_pci(at + _WINDOW["type"], 1) != CapabilityType.PCI:
            at = self.read_pci(at + 1, 1)
        return at

    def _find_reset_control(self) -> int:
        """0 if the function offers no reset."""
        at = self.read_pci(pci.CAPABILITIES, 1)
        while at and self.read_pci(at, 1) != pci.CapabilityId.ADVANCED_FEATURES:
            at = self.read_pci(at + 1, 1)
        return at + pci.AdvancedFeatures.OFFSETS["control"] if at else 0
