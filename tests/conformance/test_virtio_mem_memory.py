"""Plugged memory is memory like any other, on every backing and under every policy of protection.

`peek` and `poke` touch it where KVM would, at the host address of its memslot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.errors import UsageError
from minivmm.memory.region import Region
from minivmm.memslots import Memslots
from minivmm.spec.virtio_mem import Feature, ResponseType
from minivmm.testing.fake_kvm import FakeVm, MemorySlot
from minivmm.testing.host_memory import peek, poke
from minivmm.testing.mem_bench import MemBench
from minivmm.units import GIB, MIB

ACK = ResponseType.ACK
BLOCK = 2 * MIB
SIZES = ("addr", "region_size", "usable_region_size", "plugged_size", "requested_size")


class Shown:
    """A device beside 16 MiB of ordinary RAM, and the memslots that KVM has of both."""

    def __init__(self, **fields: object) -> None:
        self.bench = MemBench(size=GIB, requested_size=64 * MIB, **fields)
        self.vm = FakeVm()
        self.bench.memory.add(0, Region(16 * MIB), name="ram")
        self.bench.memory.subscribe(Memslots(self.vm, 509, sparse=GIB, block=BLOCK))

    def slot(self, gpa: int) -> MemorySlot:
        (found,) = (s for s in self.vm.slots.values() if s.gpa <= gpa < s.gpa + s.size)
        return found

    def hva(self, gpa: int) -> int:
        slot = self.slot(gpa)
        return slot.hva + gpa - slot.gpa


@pytest.fixture(params=["off", "report", "kill"])
def protect(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(params=["anon", "memfd", "file"])
def shown(request: pytest.FixtureRequest, protect: str, tmp_path: Path) -> Iterator[Shown]:
    fields: dict[str, object] = {"backing": request.param, "protect": protect}
    if request.param == "file":
        (tmp_path / "memory").write_bytes(b"")
        fields["path"] = str(tmp_path / "memory")
    made = Shown(**fields)
    with made.bench:
        yield made


@pytest.mark.rule("MEM-D-16", "MEM-D-19")
def test_plugged_memory_is_what_ordinary_ram_is(shown: Shown) -> None:
    """To KVM: a writable memslot with nothing special. To our devices: memory for DMA."""
    driver, memory = shown.bench.driver, shown.bench.memory
    assert driver.plug(3, 4) is ACK

    assert shown.slot(driver.address(3)).readonly is shown.slot(0).readonly is False
    for gpa in (0, driver.address(3), driver.address(5), driver.address(7) - 8):
        poke(shown.hva(gpa), b"by a cpu")
        assert memory.read(gpa, 8) == b"by a cpu"
        memory.write(gpa, b"by a dev")
        assert peek(shown.hva(gpa), 8) == b"by a dev"


@pytest.mark.rule("MEM-D-18", "MEM-D-19")
def test_nothing_that_happens_to_other_blocks_is_felt(shown: Shown) -> None:
    driver, device = shown.bench.driver, shown.bench.device
    driver.plug(4)
    poke(shown.hva(driver.address(4)), b"first")
    poke(shown.hva(driver.address(5) - 4), b"last")

    driver.plug(5, 8)
    driver.unplug(5)
    driver.plug(3)
    driver.unplug(3)
    device.set_requested_size(0)
    driver.unplug(6, 7)
    for features in (0, Feature.UNPLUGGED_INACCESSIBLE):
        device.reset()
        device.accept_features(features)

    assert peek(shown.hva(driver.address(4)), 5) == b"first"
    assert peek(shown.hva(driver.address(5) - 4), 4) == b"last"
    assert driver.config().plugged_size == BLOCK


@pytest.mark.rule("MEM-D-17")
def test_what_an_unplugged_block_held_is_gone(shown: Shown) -> None:
    """Allowed at any moment, and done at once: nobody ever finds it again."""
    driver = shown.bench.driver
    driver.plug(0, 3)
    poke(shown.hva(driver.address(1)), b"secret")

    driver.unplug(1)
    driver.plug(1)

    assert peek(shown.hva(driver.address(1)), 6) == bytes(6)


@pytest.mark.rule("MEM-D-20")
def test_a_driver_that_promised_nothing_may_read_what_is_usable(protect: str) -> None:
    """As KVM would read: the host's own page tables do not forbid it; writing is another matter."""
    with MemBench(size=4 * GIB, requested_size=GIB, protect=protect) as bench:
        assert bench.device.accept_features(0)
        driver = bench.driver
        driver.plug(1)
        last = bench.device.usable_region_size // BLOCK - 1
        for block in (0, 2, last):
            assert len(peek(bench.region.hva + block * BLOCK, 8)) == 8
            assert bench.device.intruders.read(block * BLOCK, 8) == 0
        assert bench.device.intruders.count == 0


@pytest.mark.rule("MEM-D-2", "MEM-D-5", "MEM-D-6")
@pytest.mark.parametrize("block", [MIB, 2 * MIB, 128 * MIB, GIB, 4 * GIB])
def test_sizes_are_whole_blocks_and_what_is_fixed_stays(block: int) -> None:
    """Through all that a driver, the host and resets can do to them."""
    size, thp = 64 * GIB, "off" if block < 2 * MIB else "on"
    with MemBench(size=size, requested_size=4 * GIB, block_size=block, thp=thp, node=3) as bench:
        device, driver = bench.device, bench.driver
        changes: list[Callable[[], object]] = [
            lambda: driver.plug(0),
            lambda: device.set_requested_size(8 * GIB),
            lambda: driver.plug(1),
            lambda: driver.unplug(0),
            lambda: device.set_requested_size(0),
            device.reset,
            driver.unplug_all,
            lambda: device.set_requested_size(size),
            lambda: driver.plug(size // block - 1),
            *(lambda by=by: refused(device, block + by) for by in (-1, 1, size)),
            device.system_reset,
        ]
        seen = [driver.config()]
        for change in changes:
            change()
            seen.append(driver.config())

    assert len({(c.block_size, c.node_id, c.addr, c.region_size) for c in seen}) == 1
    assert [c.plugged_size // block for c in seen] == [0, 1, 1, 2, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0]
    for config in seen:
        assert config.block_size == block and block.bit_count() == 1
        assert all(getattr(config, name) % block == 0 for name in SIZES)
        assert config.plugged_size <= config.usable_region_size <= config.region_size


def refused(device: VirtioMem, size: int) -> None:
    with pytest.raises(UsageError):
        device.set_requested_size(size)
