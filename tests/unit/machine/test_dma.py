"""DMA mappings: one for each window of RAM and for each plugged block; nothing else, ever."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from minivmm.dma import DmaMappings
from minivmm.errors import HostError
from minivmm.memory.region import Region
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType, ResponseType
from minivmm.testing.dma_checks import check_mappings
from minivmm.testing.fake_container import FakeContainer
from minivmm.testing.fake_queue import FakeChain, FakeQueue
from minivmm.testing.mem_bench import Mappings, MemBench
from minivmm.testing.slow_host import SlowHost
from minivmm.units import GIB, MIB

BLOCK = 2 * MIB
RAM = 64 * MIB
VMEM = 4 * GIB

ACK, BUSY = ResponseType.ACK, ResponseType.BUSY


class Passed:
    """A device with 64 MiB of blocks, 64 MiB of RAM, and a container that follows both."""

    def __init__(self, limit: int | None = None) -> None:
        self.bench = MemBench(size=64 * MIB, requested_size=64 * MIB, block_size=BLOCK)
        self.memory, self.driver = self.bench.memory, self.bench.driver
        self.memory.add(0, Region(RAM), name="low RAM")
        self.container = FakeContainer(limit)
        self.dma = DmaMappings(self.container, {"vmem0": BLOCK})
        self.memory.subscribe(self.dma, pins=True)

    def mapped(self) -> list[int]:
        """Numbers of the blocks that devices reach."""
        return [(one.iova - VMEM) // BLOCK for one in self.container.mappings if one.iova >= VMEM]

    def check(self) -> None:
        check_mappings(self.memory, self.container)
        assert self.dma.count == len(self.container.mappings)
        assert self.dma.size == sum(one.size for one in self.container.mappings)
        assert self.dma.mapped() == [(one.iova, one.size) for one in self.container.mappings]


@pytest.fixture
def passed() -> Iterator[Passed]:
    made = Passed()
    yield made
    made.bench.close()


def test_ram_is_one_mapping_from_the_start(passed: Passed) -> None:
    assert [(one.iova, one.size) for one in passed.container.mappings] == [(0, RAM)]
    assert passed.container.translate(0x1234) == passed.memory.slots[0].region.hva + 0x1234


def test_each_plugged_block_is_a_mapping_of_its_own(passed: Passed) -> None:
    assert passed.driver.plug(3, 4) is ACK

    assert passed.mapped() == [3, 4, 5, 6]
    passed.check()


def test_a_block_inside_a_run_is_unmapped_alone(passed: Passed) -> None:
    passed.driver.plug(0, 8)

    assert passed.driver.unplug(3) is ACK

    assert passed.mapped() == [0, 1, 2, 4, 5, 6, 7]
    assert passed.container.translate(VMEM + 3 * BLOCK) is None
    passed.check()


def test_a_run_is_unmapped_by_one_request(passed: Passed) -> None:
    passed.driver.plug(0, 32)
    before = passed.container.calls

    passed.driver.unplug(8, 16)

    assert passed.container.calls == before + 1
    passed.check()


def test_unplug_all_unmaps_each_run_and_leaves_ram(passed: Passed) -> None:
    passed.driver.plug(0, 4)
    passed.driver.plug(9, 2)
    before = passed.container.calls

    assert passed.driver.unplug_all() is ACK

    assert passed.mapped() == []
    assert passed.container.calls == before + 2
    passed.check()


def test_memory_is_populated_before_it_is_mapped(passed: Passed) -> None:
    resident: list[int] = []
    real = passed.container.map

    def look(iova: int, hva: int, size: int) -> None:
        resident.append(passed.bench.region.resident_in(iova - VMEM, size))
        real(iova, hva, size)

    passed.container.map = look  # type: ignore[method-assign]

    passed.driver.plug(1, 2)

    assert resident == [BLOCK, BLOCK]


def test_memory_is_unmapped_before_it_is_discarded(passed: Passed) -> None:
    passed.driver.plug(0, 4)
    seen: list[list[int]] = []
    real = passed.bench.region.discard

    def look(offset: int, length: int) -> None:
        seen.append(passed.mapped())
        real(offset, length)

    passed.bench.region.discard = look  # type: ignore[method-assign]

    passed.driver.unplug(1, 2)

    assert seen == [[0, 3]]


def test_what_kvm_has_no_memslot_for_is_unmapped_again(passed: Passed) -> None:
    others = Mappings(BLOCK)
    passed.memory.subscribe(others)
    others.full = True

    assert passed.driver.plug(0, 4) is BUSY

    passed.check()
    assert passed.bench.region.usage().resident == 0


def test_pinning_is_done_aside_of_the_lock(passed: Passed) -> None:
    """Like populating, it takes long; so does unpinning."""
    host = SlowHost()
    device = passed.bench.device
    device.use(host)
    plug = MemRequest(type=RequestType.PLUG, addr=VMEM, nb_blocks=16).build()
    unplug = MemRequest(type=RequestType.UNPLUG, addr=VMEM, nb_blocks=16).build()
    for request, before, after in ((plug, 0, 16), (unplug, 16, 0)):
        queue = FakeQueue(chain := FakeChain(request, MemResponse.SIZE))

        device.handle_queue(0, queue)

        assert len(passed.mapped()) == before and not chain.written
        host.finish()
        device.handle_queue(0, queue)
        assert len(passed.mapped()) == after
        assert MemResponse.parse(chain.written).type == ACK


def test_a_reset_in_the_middle_of_pinning_waits_for_it(passed: Passed) -> None:
    host = SlowHost()
    device = passed.bench.device
    device.use(host)
    request = MemRequest(type=RequestType.PLUG, addr=VMEM, nb_blocks=16).build()
    device.handle_queue(0, FakeQueue(FakeChain(request, MemResponse.SIZE)))

    device.reset()

    assert len(passed.mapped()) == 16
    passed.check()


def test_a_mapping_that_fails_is_busy_and_leaves_nothing_behind(passed: Passed) -> None:
    passed.container.maps_until_failure = 3

    assert passed.driver.plug(0, 8) is BUSY

    assert passed.mapped() == []
    assert passed.bench.region.usage().resident == 0
    passed.check()
    assert passed.driver.plug(0, 8) is ACK
    passed.check()


def test_an_unmapping_that_fails_is_busy_and_the_block_stays(passed: Passed) -> None:
    passed.driver.plug(0, 2)
    passed.memory.write(VMEM, b"mine")
    passed.container.fails = "unmap"

    assert passed.driver.unplug(0) is BUSY

    assert passed.memory.read(VMEM, 4) == b"mine"
    passed.check()
    passed.container.fails = ""
    assert passed.driver.unplug(0) is ACK
    passed.check()


def test_a_discard_that_fails_maps_again(passed: Passed) -> None:
    passed.driver.plug(0, 2)
    real = passed.bench.region.discard
    passed.bench.host_refuses("discard")

    assert passed.driver.unplug(0) is BUSY

    passed.bench.region.discard = real  # type: ignore[method-assign]
    passed.check()


def test_what_could_not_be_unmapped_is_once_more_before_it_is_mapped_anew(passed: Passed) -> None:
    slot = passed.bench.device.slot
    passed.container.maps_until_failure = 2
    passed.container.fails = "unmap"
    with pytest.raises(OSError):
        passed.dma.on_plug(slot, 0, 2 * BLOCK)
    assert passed.mapped() == [0]
    passed.container.fails = ""

    passed.dma.on_plug(slot, 0, 2 * BLOCK)

    assert passed.mapped() == [0, 1]


def test_a_host_without_a_mapping_left_is_busy_and_says_what_helps() -> None:
    passed = Passed(limit=1 + 3)
    assert passed.driver.plug(0, 3) is ACK

    assert passed.driver.plug(3) is BUSY

    why = passed.bench.device.shortage.why
    assert "vmem0: cannot map 2M at 0x100600000 for DMA" in why
    assert "block-size" in why
    passed.check()
    passed.bench.close()


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOMEM, "locked"), (errno.EFAULT, "tmpfs"), (errno.EIO, "kernel log")],
)
def test_a_refusal_is_explained(number: int, words: str) -> None:
    class Refusing(FakeContainer):
        def map(self, iova: int, hva: int, size: int) -> None:
            raise OSError(number, "no")

    bench = MemBench(size=64 * MIB, block_size=BLOCK)
    dma = DmaMappings(Refusing(), {"vmem0": BLOCK}, lambda: "too much is locked")

    with pytest.raises(HostError, match=words):
        dma.on_plug(bench.device.slot, 0, BLOCK)

    bench.close()


def test_what_is_plugged_already_is_mapped_by_a_late_subscription() -> None:
    bench = MemBench(size=64 * MIB, requested_size=64 * MIB, block_size=BLOCK)
    bench.driver.plug(5, 2)
    container = FakeContainer()

    bench.memory.subscribe(DmaMappings(container, {"vmem0": BLOCK}), pins=True)

    check_mappings(bench.memory, container)
    assert [one.size for one in container.mappings] == [BLOCK, BLOCK]
    bench.close()


def test_a_system_reset_unmaps_all_blocks(passed: Passed) -> None:
    passed.driver.plug(0, 7)

    passed.bench.device.system_reset()

    assert passed.mapped() == []
    passed.check()


def test_pinned_ram_is_cleared_in_place(passed: Passed) -> None:
    discards: list[int] = []
    passed.memory.slots[0].region.discard = lambda at, _size: discards.append(at)  # type: ignore[method-assign]
    passed.memory.write(0x5000, b"old")

    passed.memory.clear_ram()

    assert passed.memory.read(0x5000, 3) == bytes(3)
    assert not discards


def test_nobody_else_discards_what_is_pinned(passed: Passed) -> None:
    passed.memory.write(0x5000, b"kept")

    assert passed.memory.discard(0x5000, 4096) == 0

    assert passed.memory.read(0x5000, 4) == b"kept"


def test_guarded_memory_is_mapped_like_any_other() -> None:
    bench = MemBench(size=64 * MIB, requested_size=64 * MIB, block_size=BLOCK, protect="kill")
    container = FakeContainer()
    bench.memory.subscribe(DmaMappings(container, {"vmem0": BLOCK}), pins=True)

    bench.driver.plug(0, 4)
    bench.driver.unplug(2)

    check_mappings(bench.memory, container)
    bench.close()


def test_inspection_tells_mappings_and_pinned_bytes(passed: Passed) -> None:
    passed.driver.plug(0, 2)

    assert passed.dma.inspect() == {"count": 3, "limit": None, "pinned": RAM + 2 * BLOCK}
