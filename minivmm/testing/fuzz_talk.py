"""How a fuzzed device is put into order again, and the known-good conversation that shows it is.

reset -> nothing touches guest memory any more -> set up -> converse -> interrupts arrived
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minivmm.devices.virtio_blk.device import VirtioBlk
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_blk import SECTOR, RequestHeader, RequestType, Status
from minivmm.testing.conversations import (
    Bench,
    talk_to_balloon,
    talk_to_console,
    talk_to_disk,
    talk_to_memory,
    talk_to_rng,
)
from minivmm.testing.fuzz_checks import check_host_memory
from minivmm.testing.fuzz_guest import FuzzGuest
from minivmm.testing.fuzz_host import require
from minivmm.testing.fuzz_snapshot import snapshot
from minivmm.testing.fuzz_world import BLOCK
from minivmm.virtio.device import VirtioDevice

_TARGET = 16 * BLOCK
"""Bytes of device memory that are asked for: more than a conversation plugs."""
_FEW = 0xFF
"""The first queues, which suffice: the console has many."""
_SIZE = 16
"""Descriptors of each ring, if the device takes so many."""
_EVERYTHING = (1 << 128) - 1


class Talk:
    """`guest` as the Bench of a conversation."""

    def __init__(self, guest: FuzzGuest) -> None:
        self.driver = guest
        self.device: VirtioDevice = guest.function.device
        self.memory = guest.world.memory
        self.allocator = guest.allocator


def recover(guests: Sequence[FuzzGuest], number: int, how: int, interrupts: int) -> None:
    """Reset the device of that number, and show that it is as good as new, whatever it was before.

    `how`: 0 by device_status, 1 by function level reset if that is offered, 2 the whole machine,
    3 as 0, and nothing else lives. `interrupts` as for FuzzGuest.begin.
    """
    guest = guests[number % len(guests)]
    world = guest.world
    _reset(guests, guest, how % 4)
    world.calm()
    world.pass_time()
    world.calm()
    check_host_memory(world)
    if world.mem.requested_size < _TARGET:
        world.mem.set_requested_size(_TARGET)
    guest.begin(_EVERYTHING, _EVERYTHING if how == 2 else _FEW, _SIZE, 0, interrupts % 2)
    status = guest.status
    require(status & DeviceStatus.DRIVER_OK, "recover", f"{status!r} after a proper start")
    if _has_room(guest):
        _converse(guest)
    trouble = guest.function.transport.trouble
    require(DeviceStatus.NEEDS_RESET not in guest.status, "recover", trouble)


def _reset(guests: Sequence[FuzzGuest], guest: FuzzGuest, how: int) -> None:
    """Afterwards nothing may be done for a driver that is gone (GEN-D-5)."""
    world = guest.world
    if how == 2:
        world.restart()
        for each in guests:
            each.queues.clear()
    else:
        for each in guests:  # the others' BARs may lie in the way
            each.settle()
    if how == 3:
        for each in guests:
            each.reset()
    elif how < 2:
        guest.flr() if how == 1 and guest.can_flr else guest.reset()
    status = guest.function.transport.status
    require(status == DeviceStatus(0), "PCI-D-12", f"{status!r} after a reset")
    unfinished = world.errands[guests.index(guest)].unfinished
    require(not unfinished, "GEN-D-5", f"{unfinished} jobs go on after a reset")
    guest.settle()
    found = snapshot(guest)
    require(found == guest.defaults, "reset", f"{found.items() - guest.defaults.items()}")
    if how >= 2:
        world.irq.messages.clear()
        with world.memory.untouched("after a reset"):
            world.calm()
            world.pass_time()
            world.calm()
        require(not world.irq.messages, "GEN-D-5", "a message after a reset")


def _converse(guest: FuzzGuest) -> None:
    world, name = guest.world, guest.function.device.traits.name
    world.irq.messages.clear()
    TALKS[name](Talk(guest))
    if guest.function.msix and guest.function.msix.enabled:
        require(world.irq.messages, "interrupt", f"no message of {name}")
    else:
        require(guest.isr() & 1, "interrupt", f"no interrupt of {name}")
    world.irq.messages.clear()


def _has_room(guest: FuzzGuest) -> bool:
    """Can its queues take a request? All fit into a table."""
    options, sizes = guest.function.device.options, [r.size for r in guest.queues.values()]
    return options.indirect_desc or min(sizes) >= 4


def _talk_to_any_disk(bench: Bench) -> None:
    """One that is read-only refuses what the other does."""
    assert isinstance(bench.device, VirtioBlk)
    if not bench.device.spec.readonly:
        talk_to_disk(bench)
        return
    header = RequestHeader(type=RequestType.OUT).build()
    (used,) = bench.driver.submit(0, header, bytes(SECTOR), writable=(1,))
    assert used.data == bytes((Status.IOERR,))


def _talk_to_echo(bench: Bench) -> None:
    (used,) = bench.driver.submit(1, b"still ", b"alive", writable=(3, 8))
    assert used.data == b"still alive"


TALKS: dict[str, Callable[[Bench], None]] = {
    "virtio-mem": talk_to_memory,
    "virtio-blk": _talk_to_any_disk,
    "virtio-rng": talk_to_rng,
    "virtio-balloon": talk_to_balloon,
    "virtio-console": talk_to_console,
    "echo": _talk_to_echo,
}
