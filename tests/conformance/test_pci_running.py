"""What a driver may do to a running function: move its BARs, switch decoding and DMA off.

Used with a device that has something to lose: memory that is plugged and holds data.
"""

from __future__ import annotations

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.spec import pci
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_mem import (
    BlockState,
    MemRequest,
    MemResponse,
    RequestType,
    ResponseType,
)
from minivmm.spec.virtio_pci import CapabilityType
from minivmm.testing.driver import DeviceBench, VirtioPciDriver, bench_map
from minivmm.testing.echo import EchoDevice
from minivmm.testing.mem_bench import make_device
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB

ACK = ResponseType.ACK
BLOCK = 2 * MIB
MEMORY, MASTER = pci.Command.MEMORY_SPACE, pci.Command.BUS_MASTER
BARS = (0x10, 0x14, 0x18)
ALL_ONES = 0xFFFF_FFFF


def make(**options: object) -> VirtioMem:
    return make_device(size=GIB, requested_size=64 * MIB, **options)


@pytest.fixture(params=["kvm", "exits"])
def device(request: pytest.FixtureRequest) -> VirtioMem:
    """Doorbells reach it past the vCPUs, or as exits."""
    return make(ioeventfd=request.param == "kvm")


@pytest.fixture
def driver(precious: MemDriver) -> MemDriver:
    """Block 7 is plugged and holds something."""
    return precious


def move(driver: VirtioPciDriver, index: int, gpa: int) -> None:
    """BAR `index` to `gpa`; the upper half first, as decoding may be on."""
    at = pci.BAR0 + 4 * index
    if driver.read_pci(at, 4) & pci.BarFlags.TYPE_64:
        driver.write_pci(at + 4, 4, gpa >> 32)
    driver.write_pci(at, 4, gpa & ALL_ONES)


# -- BARs that move --------------------------------------------------------------------------------


@pytest.mark.rule("PCI-D-1")
def test_the_device_works_wherever_its_bars_are_put(bench: DeviceBench, driver: MemDriver) -> None:
    """Both windows, all of them aligned to the size of a BAR; the old place is nobody's."""
    guest, old = bench.driver, bench.driver.bar_address(0)
    mmio32, mmio64 = bench_map().mmio32, bench_map().mmio64
    places = [
        mmio64.base + 0x4000,
        mmio64.end - 0x4000,
        mmio32.end - 0x4000,
        mmio64.base + 12 * GIB,
    ]
    for block, place in enumerate(places):
        move(guest, 0, place)

        assert bench.mmio.read(old, 4) == ALL_ONES
        assert not bench.doorbells.ring(old + 0x3000, 2)
        assert driver.plug(block) is ACK
        assert bench.irq.take() == [1]
        old = place


@pytest.mark.rule("PCI-D-1")
@pytest.mark.parametrize("index", [0, 2])
def test_a_bar_where_nothing_may_be_is_nowhere_until_it_is_put_back(
    bench: DeviceBench, driver: MemDriver, index: int
) -> None:
    """RAM, plugged memory, ECAM, interrupt controllers, the top of the address space."""
    guest, home = bench.driver, bench.driver.bar_address(index)
    nowhere = [0, 0x10_0000, 0xE000_0000, 0xFEC0_0000, 0xFEE0_0000, 0xFFFF_0000]
    nowhere += [driver.address(7), (1 << 64) - 0x4000] if index == 0 else []
    for place in nowhere:
        move(guest, index, place)
        bar = next(bar for bar in bench.function.bars if bar.index == index)
        assert bar.mapped is None
        assert bench.memory.read(driver.address(7), 8) == b"precious"
        move(guest, index, home)
        assert driver.state(7) is BlockState.PLUGGED


def test_a_bar_on_top_of_anothers_waits_and_the_other_works_on(device: VirtioMem) -> None:
    """The first one there keeps the place; the late one appears when it is free."""
    with DeviceBench(device) as bench:
        _, other = bench.add(EchoDevice("echo1"))
        other.start()
        guest = bench.driver.start()
        contested = guest.bar_address(0)

        move(other, 0, contested)
        other.queues[0].add([b"late"], [4])
        size = MemResponse.SIZE
        driver = MemDriver(device, lambda request: guest.request(0, request, size))
        assert driver.plug(0) is ACK
        assert other.queues[0].collect() == []

        move(guest, 0, contested + 0x10_0000)
        assert other.queues[0].collect()[0].data == b"late"
        assert other.request(1, b"fine", 4) == b"fine"
        assert driver.plug(1) is ACK


def test_what_is_rung_while_the_bar_is_away_is_made_up_for(
    bench: DeviceBench, driver: MemDriver
) -> None:
    guest, home = bench.driver, bench.driver.bar_address(0)
    move(guest, 0, 0)
    guest.queues[0].add([state_request(driver)], [10])
    bench.mmio.write(home + 0x3000, 2, 0)
    assert guest.queues[0].collect() == []

    move(guest, 0, home)

    assert guest.queues[0].collect()[0].data == bytes(10)


def state_request(driver: MemDriver) -> bytes:
    """STATE of block 7, which is plugged: the answer is ten zeroes."""
    return MemRequest(RequestType.STATE, addr=driver.address(7), nb_blocks=1).build()


# -- memory space and bus mastering ----------------------------------------------------------------


@pytest.mark.rule("PCI-D-1")
def test_without_memory_space_no_register_answers_and_isr_stays(
    bench: DeviceBench, device: VirtioMem, driver: MemDriver
) -> None:
    guest = bench.driver
    device.kick()
    guest.write_pci(pci.COMMAND, 2, MASTER)

    assert guest.read(CapabilityType.ISR, 0, 1) == 0xFF
    guest.write(CapabilityType.COMMON, 20, 1, 0)  # device_status: a reset, were it heard
    assert bench.doorbells.bound == {}
    assert bench.mmio.read(guest.bar_address(2), 4) == ALL_ONES

    guest.write_pci(pci.COMMAND, 2, MEMORY | MASTER)
    assert guest.status == DeviceStatus(0x0F)
    assert guest.isr() == 2
    assert driver.state(7) is BlockState.PLUGGED


@pytest.mark.rule("PCI-D-1")
def test_without_memory_space_interrupts_go_on(bench: DeviceBench, device: VirtioMem) -> None:
    """They are the function's own writes: bus mastering is what they need."""
    bench.driver.write_pci(pci.COMMAND, 2, MASTER)
    device.kick()
    assert bench.irq.take() == [0]


@pytest.mark.rule("PCI-D-1")
@pytest.mark.parametrize("vectors", [None, 0])
def test_without_bus_mastering_no_byte_of_memory_changes(vectors: int | None) -> None:
    """Neither for the driver's requests nor for changes by the host; all of it comes later."""
    device = make(vectors=vectors)
    with DeviceBench(device) as bench:
        guest = bench.driver.start()
        ring = guest.queues[0]
        request = MemRequest(RequestType.PLUG, addr=4 * GIB, nb_blocks=1).build()
        guest.write_pci(pci.COMMAND, 2, MEMORY)
        ring.add([request], [10])
        before = bench.memory.read(0, 16 * MIB)

        guest.kick(0)
        guest.kick(0, by_exit=True)
        device.set_requested_size(32 * MIB)
        bench.function.transport.kick_all()
        bench.defer.run()

        assert bench.memory.read(0, 16 * MIB) == before
        assert device.plugged_size == 0
        assert bench.irq.messages == []
        guest.write_pci(pci.COMMAND, 2, MEMORY | MASTER)
        assert ring.collect()[0].data == bytes(10)
        assert device.plugged_size == BLOCK
        assert bench.irq.take() == ([] if vectors == 0 else [0, 1])


def test_bus_mastering_may_come_after_driver_ok(device: VirtioMem) -> None:
    """Linux sets it first; nothing demands that. Buffers offered meanwhile are served then."""
    with DeviceBench(device) as bench:
        guest = bench.driver.probe()
        guest.write_pci(pci.COMMAND, 2, MEMORY)
        guest.negotiate()
        ring = guest.setup_queue(0)
        guest.add_status(DeviceStatus.DRIVER_OK)
        ring.add([MemRequest(RequestType.UNPLUG_ALL).build()], [10])
        guest.kick(0)
        assert ring.collect() == []

        guest.write_pci(pci.COMMAND, 2, MEMORY | MASTER)

        assert ring.collect()[0].data == bytes(10)
