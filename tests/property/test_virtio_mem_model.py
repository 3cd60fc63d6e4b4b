"""The whole device against a naive model written from the specification, with a hostile driver."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import GuestAddressError, UsageError
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.spec.virtio_mem import MemConfig
from minivmm.testing.fake_queue import FakeSignals
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB

BLOCK = GIB  # few and huge blocks: the usable region of a small target is less than the region
COUNT = 12
BASE = 4 * GIB
ACK, NACK, ERROR = 0, 1, 3
PLUGGED, UNPLUGGED, MIXED = 0, 1, 2
PAGE = 4096

blocks = st.integers(-2, COUNT + 2)
counts = st.integers(0, COUNT + 2) | st.just(65535)
skews = st.sampled_from([0, 0, 0, 0, 0, 0, 1, BLOCK // 2, -1])
targets = st.integers(0, COUNT)


class DeviceAgainstModel(RuleBasedStateMachine):
    """`plugged` maps block numbers to the byte that the guest stored in them."""

    def __init__(self) -> None:
        super().__init__()
        spec = VirtioMemSpec(size=COUNT * BLOCK, requested_size=2 * BLOCK, block_size=BLOCK)
        self.memory = GuestMemory()
        self.signals = FakeSignals()
        self.device = VirtioMem(spec, Window(BASE, spec.size), Region(spec.size, spec.host_memory))
        self.device.attach(self.memory, self.signals)
        self.device.on_size_change = self.on_size_change
        self.driver = MemDriver(self.device)
        self.plugged: dict[int, int] = {}
        self.requested = 2
        self.usable = 4
        self.reported = 0

    def teardown(self) -> None:
        self.memory.close()

    def on_size_change(self, size: int) -> None:
        assert size != self.reported, "told of a change that is none"
        self.reported = size

    # -- the guest -------------------------------------------------------------------------------

    def covered(self, block: int, count: int, skew: int) -> set[int] | None:
        """Block numbers of a request, or None if it is misaligned, empty or out of bounds."""
        if skew or count == 0 or block < 0 or block + count > self.usable:
            return None
        return set(range(block, block + count))

    def ask(self, kind: int, block: int, count: int, skew: int) -> tuple[int, int]:
        response = self.driver.request(kind, BASE + block * BLOCK + skew, count)
        return response.type, response.state

    @rule(block=blocks, count=counts, skew=skews)
    def plug(self, block: int, count: int, skew: int) -> None:
        wanted = self.covered(block, count, skew)
        if wanted is None:
            expected = ERROR
        elif len(self.plugged) + count > self.requested:
            expected = NACK
        elif wanted & self.plugged.keys():
            expected = ERROR
        else:
            expected = ACK
            self.plugged |= dict.fromkeys(wanted, 0)
        assert self.ask(0, block, count, skew) == (expected, 0)

    @rule(block=blocks, count=counts, skew=skews)
    def unplug(self, block: int, count: int, skew: int) -> None:
        wanted = self.covered(block, count, skew)
        if wanted is None or wanted - self.plugged.keys():
            expected = ERROR
        else:
            expected = ACK
            for number in wanted:
                del self.plugged[number]
        assert self.ask(1, block, count, skew) == (expected, 0)

    @rule()
    def unplug_all(self) -> None:
        before = len(self.signals.config_changes)
        assert self.ask(2, 0, 0, 0) == (ACK, 0)
        self.plugged.clear()
        self.usable = self.wanted_usable()
        assert True not in self.signals.config_changes[before:]

    @rule(block=blocks, count=counts, skew=skews)
    def state(self, block: int, count: int, skew: int) -> None:
        wanted = self.covered(block, count, skew)
        if wanted is None:
            expected = (ERROR, 0)
        else:
            have = len(wanted & self.plugged.keys())
            expected = (ACK, PLUGGED if have == count else MIXED if have else UNPLUGGED)
        assert self.ask(3, block, count, skew) == expected

    @rule(kind=st.integers(4, 65535), block=blocks)
    def nonsense(self, kind: int, block: int) -> None:
        assert self.ask(kind, block, 1, 0) == (ERROR, 0)

    @rule(block=st.integers(0, COUNT - 1), value=st.integers(1, 255))
    def store(self, block: int, value: int) -> None:
        """Through GuestMemory, hence possible in plugged blocks only."""
        try:
            self.memory.write(BASE + block * BLOCK, bytes([value]))
        except GuestAddressError:
            assert block not in self.plugged
        else:
            assert block in self.plugged
            self.plugged[block] = value

    # -- the host --------------------------------------------------------------------------------

    def wanted_usable(self) -> int:
        """In blocks of 1 GiB: two above the target rounded up to two, at most the region."""
        return min(COUNT, (self.requested + 1) // 2 * 2 + 2) if self.requested else 0

    @rule(size=targets)
    def request_size(self, size: int) -> None:
        self.device.set_requested_size(size * BLOCK)
        self.requested = size
        self.usable = max(self.usable, self.wanted_usable())
        assert self.signals.config_changes[-1] is True

    @rule(size=st.integers(1, BLOCK - 1) | st.just((COUNT + 1) * BLOCK))
    def request_impossible_size(self, size: int) -> None:
        try:
            self.device.set_requested_size(size)
        except UsageError:
            return
        raise AssertionError("accepted")

    @rule()
    def device_reset(self) -> None:
        """MEM-D-13, MEM-D-14: the model does not change at all."""
        self.device.reset()

    @rule()
    def system_reset(self) -> None:
        """MEM-D-22."""
        self.device.reset()
        self.device.system_reset()
        self.plugged.clear()
        self.usable = self.wanted_usable()

    # -- always ----------------------------------------------------------------------------------

    @invariant()
    def configuration_is_that_of_the_model(self) -> None:
        """MEM-D-2, MEM-D-3, MEM-D-8 and, with the model's own rules, MEM-D-4 to MEM-D-6."""
        assert self.driver.config() == MemConfig(
            block_size=BLOCK,
            node_id=0,
            addr=BASE,
            region_size=COUNT * BLOCK,
            usable_region_size=self.usable * BLOCK,
            plugged_size=len(self.plugged) * BLOCK,
            requested_size=self.requested * BLOCK,
        )
        assert self.requested <= self.usable <= COUNT

    @invariant()
    def host_knows_the_plugged_size(self) -> None:
        assert self.reported == len(self.plugged) * BLOCK

    @invariant()
    def plugged_blocks_keep_their_content(self) -> None:
        """MEM-D-18; a block that was just plugged reads as zero."""
        for number, value in self.plugged.items():
            assert self.memory.read(BASE + number * BLOCK, 1) == bytes([value])

    @invariant()
    def unplugged_blocks_occupy_no_host_memory(self) -> None:
        for number in set(range(COUNT)) - self.plugged.keys():
            assert self.device.region.resident_in(number * BLOCK, PAGE) == 0


DeviceAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestDeviceAgainstModel = DeviceAgainstModel.TestCase
