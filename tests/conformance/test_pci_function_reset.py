"""Function level reset of a device that has something to lose: memory that holds data.

Linux does it so: save configuration space, reset, restore, probe again.
"""

from __future__ import annotations

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.spec import pci
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_mem import (
    BlockState,
    MemRequest,
    RequestType,
    ResponseType,
)
from minivmm.spec.virtio_pci import NO_VECTOR
from minivmm.testing.driver import MESSAGE_ADDRESS, DeviceBench
from minivmm.testing.echo import EchoDevice
from minivmm.testing.mem_bench import make_device
from minivmm.testing.mem_driver import MemDriver
from minivmm.testing.slow_host import SlowHost
from minivmm.units import GIB, MIB
from minivmm.virtio.options import VirtioOptions

ACK = ResponseType.ACK
MEMORY, MASTER = pci.Command.MEMORY_SPACE, pci.Command.BUS_MASTER
BARS = (0x10, 0x14, 0x18)


def make(**options: object) -> VirtioMem:
    return make_device(size=GIB, requested_size=64 * MIB, flr=True, **options)


def echo(**options: object) -> EchoDevice:
    device = EchoDevice("echo1")
    device.options = VirtioOptions(**options)  # type: ignore[arg-type]
    return device


@pytest.fixture(params=["kvm", "exits"])
def device(request: pytest.FixtureRequest) -> VirtioMem:
    """Doorbells reach it past the vCPUs, or as exits."""
    return make(ioeventfd=request.param == "kvm")


@pytest.fixture
def driver(precious: MemDriver) -> MemDriver:
    """Block 7 is plugged and holds something."""
    return precious


@pytest.mark.rule("MEM-D-13", "MEM-D-14", "PCI-D-13", "PCI-D-30")
def test_a_function_reset_resets_all_but_the_memory(
    bench: DeviceBench, device: VirtioMem, driver: MemDriver
) -> None:
    guest, before = bench.driver, driver.config()
    bars = [guest.read_pci(at, 4) for at in BARS]

    guest.reset_function()

    assert [guest.read_pci(at, 4) & ~0xF for at in BARS] == [0, 0, 0]
    assert guest.read_pci(pci.COMMAND, 2) == 0
    assert guest.read_pci(guest.msix_capability + 2, 2) & pci.MsixControl.ENABLE == 0
    assert bench.doorbells.bound == {}
    for at, value in zip(BARS, bars, strict=True):
        guest.write_pci(at, 4, value)
    guest.write_pci(pci.COMMAND, 2, MEMORY | MASTER)
    assert guest.status == DeviceStatus(0)
    assert guest.get("queue_enable") == guest.get("queue_desc") == guest.get("driver_feature") == 0
    assert guest.get("config_msix_vector") == guest.get("queue_msix_vector") == NO_VECTOR

    guest.start()
    assert driver.config() == before
    assert driver.state(7) is BlockState.PLUGGED
    assert bench.memory.read(driver.address(7), 8) == b"precious"
    assert driver.plug(8) is ACK


def test_a_function_reset_masks_every_vector_and_forgets_what_was_pending(
    bench: DeviceBench, device: VirtioMem
) -> None:
    guest = bench.driver
    guest.set_msix_entry(0, pci.MsixEntry(MESSAGE_ADDRESS, 0, 0, 1))
    device.kick()
    bars = [guest.read_pci(at, 4) for at in BARS]

    guest.reset_function()

    for at, value in zip(BARS, bars, strict=True):
        guest.write_pci(at, 4, value)
    guest.write_pci(pci.COMMAND, 2, MEMORY | MASTER)
    table = guest.bar_address(2)
    assert [bench.mmio.read(table + 16 * n + 12, 4) for n in range(2)] == [1, 1]
    guest.enable_msix()
    assert (bench.irq.take(), guest.isr()) == ([], 0)


def test_after_a_function_reset_nothing_touches_the_old_rings(
    bench: DeviceBench, device: VirtioMem
) -> None:
    ring = bench.driver.queues[0]
    bench.driver.reset_function()
    before = bench.memory.read(0, 16 * MIB)
    ring.add([bytes(24)], [10])
    after_add = bench.memory.read(0, 16 * MIB)
    assert after_add != before

    bench.function.transport.kick(0)
    device.set_requested_size(0)
    bench.defer.run()

    assert bench.memory.read(0, 16 * MIB) == after_add
    assert bench.irq.take() == []


def test_a_function_reset_waits_for_what_the_host_does() -> None:
    """A request that takes long is finished, not answered (as by a device reset)."""
    slow = make(prealloc=True)
    with DeviceBench(slow) as bench:
        host = SlowHost()
        slow.use(host)
        bench.driver.start()
        send = bench.driver.submit
        plug = MemRequest(RequestType.PLUG, addr=4 * GIB, nb_blocks=16).build()
        assert send(0, plug, writable=(10,)) == []
        ring = bench.driver.queues[0]

        bench.driver.reset_function()

        assert host.over
        assert slow.plugged_size == 32 * MIB
        assert ring.collect() == []


def test_a_function_reset_leaves_its_neighbour_on_the_line_alone() -> None:
    """Slots 1 and 9 share a line."""
    device = make(vectors=0)
    with DeviceBench(device) as bench:
        _, other = bench.add(echo(vectors=0), 9)
        other.start()
        bench.driver.start()
        line = bench.irq.lines[17]
        device.kick()
        other.request(0, b"x", 1)

        bench.driver.reset_function()

        assert line.level
        assert other.isr() == 1
        assert not line.level
        assert other.request(1, b"fine", 4) == b"fine"
