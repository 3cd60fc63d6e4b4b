"""Where other devices were read to deviate from the specification (peers 1.3), ours does not.

One test each, under the number that the deviation has there. The peers are Firecracker (1-3), Cloud
Hypervisor (4, 5, 11), Dragonball (5, 6, 8) and StratoVirt (7-10), as they were in 2026.
"""

from __future__ import annotations

import pytest

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import HostError, UsageError
from minivmm.memslots import Memslots
from minivmm.spec.virtio import DescriptorFlags, DeviceStatus
from minivmm.spec.virtio_mem import BlockState, MemRequest, RequestType, ResponseType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.fake_kvm import FakeVm
from minivmm.testing.host_memory import peek, poke
from minivmm.testing.mem_bench import Mappings, MemBench, make_device
from minivmm.testing.mem_driver import MemDriver, by_queue
from minivmm.testing.ring import SplitDriver
from minivmm.units import GIB, KIB, MIB

ACK, NACK = ResponseType.ACK, ResponseType.NACK
BUSY, ERROR = ResponseType.BUSY, ResponseType.ERROR
BLOCK = 2 * MIB
NEXT, WRITE = DescriptorFlags.NEXT, DescriptorFlags.WRITE


def test_1_shrinking_while_a_plug_is_on_its_way_is_no_error() -> None:
    """There ERROR is answered, and Linux marks the device broken for ever (reference A.8-3)."""
    with MemBench(size=GIB, requested_size=64 * MIB) as bench:
        bench.driver.plug(0, 16)
        bench.device.set_requested_size(32 * MIB)

        assert bench.driver.plug(16, 16) is NACK

        bench.device.set_requested_size(64 * MIB)
        assert bench.driver.plug(16, 16) is ACK


@pytest.mark.rule("MEM-D-4", "MEM-D-41")
def test_2_unplug_all_leaves_the_target_usable() -> None:
    """There nothing is, so a driver after kexec finds no room (MEM-D-4)."""
    with MemBench(size=64 * GIB, requested_size=8 * GIB) as bench:
        bench.driver.plug(0, 8)
        bench.device.set_requested_size(2 * GIB)

        assert bench.driver.unplug_all() is ACK

        config = bench.driver.config()
        assert config.requested_size == 2 * GIB
        assert 2 * GIB <= config.usable_region_size < 10 * GIB
        assert bench.driver.plug(0, 1024) is ACK


class VmOutOfSlots(FakeVm):
    """A KVM that refuses new memslots while `full`."""

    full = False

    def set_memory_region(self, slot: int, gpa: int, size: int, hva: int, **options: bool) -> None:
        if self.full and size:
            raise HostError("KVM_SET_USER_MEMORY_REGION: no space left")
        super().set_memory_region(slot, gpa, size, hva, **options)


@pytest.mark.rule("MEM-D-3", "MEM-D-28")
def test_3_a_refused_memslot_leaves_the_state_as_it_was() -> None:
    """There bitmap and plugged_size are changed first, and the answer is ERROR (MEM-D-3)."""
    vm = VmOutOfSlots()
    with MemBench(size=8 * GIB, requested_size=4 * GIB) as bench:
        bench.memory.subscribe(Memslots(vm, 509, sparse=8 * GIB, block=BLOCK))
        bench.driver.plug(0, 4)
        before, slots = bench.driver.config(), dict(vm.slots)
        vm.full = True

        assert bench.driver.plug(510, 1000) is BUSY  # three ranges, one of which has its memslot

        assert (bench.driver.config(), vm.slots) == (before, slots)
        assert bench.driver.state(510, 1000) is BlockState.UNPLUGGED
        vm.full = False
        assert bench.driver.plug(510, 1000) is ACK


@pytest.mark.rule("MEM-D-28")
@pytest.mark.parametrize("blocks", [1, 16, 64])
def test_4_a_failing_dma_mapping_is_rolled_back(blocks: int) -> None:
    """There the blocks mapped so far stay, and the answer is ERROR (MEM-D-27, MEM-D-28)."""
    first, failing, last = (Mappings(BLOCK) for _ in range(3))
    with MemBench(size=GIB, requested_size=512 * MIB) as bench:
        for listener in (first, failing, last):
            bench.memory.subscribe(listener)
        bench.driver.plug(0, 2)
        failing.full = True

        assert bench.driver.plug(2, blocks) is BUSY

        assert first.units == failing.units == last.units == {0, 1}
        assert bench.plugged == [(0, 2)]
        failing.full = False
        assert bench.driver.plug(2, blocks) is ACK
        assert len(first.units) == blocks + 2


@pytest.mark.rule("MEM-D-26")
@pytest.mark.parametrize("requested", [0, 64 * MIB])
def test_5_out_of_range_is_an_error_even_if_it_is_too_much_as_well(requested: int) -> None:
    """There too much is looked for first, and answered with NACK (MEM-D-26)."""
    with MemBench(size=GIB, requested_size=requested) as bench:
        assert bench.driver.plug(bench.device.usable_region_size // BLOCK - 1, 34) is ERROR
        assert bench.driver.request(RequestType.PLUG, bench.driver.address(0) + 1, 34).type == ERROR


@pytest.mark.rule("MEM-D-29")
def test_6_a_request_may_cross_what_the_region_is_cut_into() -> None:
    """There the borders of mappings of 2 GiB show: such a request gets ERROR (MEM-D-29)."""
    vm = FakeVm()
    with MemBench(size=8 * GIB, requested_size=8 * GIB) as bench:
        memslots = Memslots(vm, 509, sparse=8 * GIB, block=BLOCK)
        bench.memory.subscribe(memslots)
        border = bench.driver.address(2 * GIB // BLOCK)

        assert bench.driver.plug(GIB // BLOCK, 2 * GIB // BLOCK) is ACK

        assert memslots.range_size == GIB
        assert sorted(slot.gpa for slot in vm.slots.values()) == [border - GIB, border]
        bench.memory.write(border - 4, b"crossing")
        assert bench.memory.read(border - 4, 8) == b"crossing"
        assert bench.driver.unplug(GIB // BLOCK + 1, 2 * GIB // BLOCK - 2) is ACK


def test_7_unplugging_below_the_target_is_the_drivers_right() -> None:
    """There it is NACKed, and UNPLUG_ALL with it: a driver after kexec can never begin (A.8-5)."""
    with MemBench(size=GIB, requested_size=64 * MIB) as bench:
        bench.driver.plug(0, 32)

        assert bench.driver.unplug(0, 8) is ACK
        assert bench.driver.unplug_all() is ACK

        assert bench.driver.config().plugged_size == 0


@pytest.mark.rule("MEM-D-13", "MEM-D-14")
def test_8_activating_the_device_again_keeps_block_states_and_content() -> None:
    """There the bitmap is a new one with each DRIVER_OK (MEM-D-13, MEM-D-14)."""
    device = make_device(size=GIB, requested_size=64 * MIB)
    with DeviceBench(device) as bench:
        bench.driver.start()
        driver = MemDriver(device, by_queue(bench.driver))
        driver.plug(3, 5)
        bench.memory.write(driver.address(7), b"precious")
        before = driver.config()

        for _ in range(3):
            bench.driver.start()

        assert driver.config() == before
        assert driver.state(3, 5) is BlockState.PLUGGED
        assert driver.state(0, 3) is BlockState.UNPLUGGED
        assert bench.memory.read(driver.address(7), 8) == b"precious"


@pytest.mark.rule("MEM-D-5")
@pytest.mark.parametrize("block_size", [16 * KIB, 48 * KIB, 3 * MIB, 32 * MIB + 16 * KIB])
def test_9_a_block_size_that_is_no_power_of_two_is_refused(block_size: int) -> None:
    """There multiples of 16 KiB are accepted, and others silently become 32 MiB (MEM-D-5)."""
    with pytest.raises(UsageError, match=r"is not a power of two of at least 1M \(nearest: "):
        VirtioMemSpec(size=GIB, block_size=block_size)


@pytest.mark.parametrize("protect", ["off", "report"])
def test_10_a_block_plugged_again_is_backed_by_memory(protect: str) -> None:
    """There unplugging unmaps the host's memory, and plugging again leads to where it was."""
    vm = FakeVm()
    with MemBench(size=GIB, requested_size=64 * MIB, protect=protect) as bench:
        bench.memory.subscribe(Memslots(vm, 509, sparse=GIB, block=BLOCK))
        bench.driver.plug(0, 4)
        bench.memory.write(bench.driver.address(2), b"old")

        assert bench.driver.unplug(2) is ACK
        assert bench.driver.plug(2) is ACK

        (slot,) = vm.slots.values()
        hva = slot.hva + bench.driver.address(2) - slot.gpa  # where the guest's accesses end
        assert peek(hva, 3) == bytes(3)
        poke(hva, b"new")
        assert bench.memory.read(bench.driver.address(2), 3) == b"new"
        assert bench.region.resident_in(2 * BLOCK, BLOCK) > 0


@pytest.mark.parametrize(
    ("readable", "writable"),
    [
        pytest.param((0x8000, 8, NEXT, 1), (0x9000, 10, WRITE, 0), id="short"),
        pytest.param((0x8000, 24, NEXT, 0), (0x9000, 10, WRITE, 0), id="loop"),
        pytest.param((0x8000, 24, NEXT, 999), (0x9000, 10, WRITE, 0), id="out-of-table"),
        pytest.param((1 << 60, 24, NEXT, 1), (0x9000, 10, WRITE, 0), id="no-ram"),
        pytest.param((0x8000, 24, NEXT, 1), (5 * GIB - BLOCK, 10, WRITE, 0), id="unplugged"),
        pytest.param((0x8000, 10, WRITE | NEXT, 1), (0x9000, 24, 0, 0), id="answer-first"),
    ],
)
def test_11_a_malformed_chain_does_not_end_the_service(
    readable: tuple[int, int, int, int], writable: tuple[int, int, int, int]
) -> None:
    """There the device's thread ended (until 2026): here a device reset heals, all is as before."""
    device = make_device(size=GIB, requested_size=64 * MIB)
    with DeviceBench(device) as bench:
        bench.driver.start()
        request = MemRequest(type=0, addr=4 * GIB, nb_blocks=4).build()
        assert bench.driver.request(0, request, 10) == bytes(10)
        ring = bench.driver.queues[0]
        assert isinstance(ring, SplitDriver)
        ring.set_descriptor(0, *readable)
        ring.set_descriptor(1, *writable)
        ring.offer(0)

        bench.driver.kick(0)

        assert DeviceStatus.NEEDS_RESET in bench.driver.status
        bench.driver.start()
        state = MemRequest(type=3, addr=4 * GIB, nb_blocks=4).build()
        assert bench.driver.request(0, state, 10) == bytes(10)  # ACK, PLUGGED
        assert device.plugged_size == 4 * BLOCK
