"""The scenarios that every suite may use; docs/matrix.md says what each figure means."""

from __future__ import annotations

from minivmm.matrix.fragments import fragmented
from minivmm.matrix.guest import PLAIN, Failed, Guest, Resized, Setup
from minivmm.matrix.scenario import AUTO_MOVABLE, Note, Scenario, scenario
from minivmm.units import MIB, format_size

GROW = "grow-seconds-per-gib"
SHRINK = "shrink-seconds-per-gib"
UNPLUGGED = "unplugged-fraction"
MOVABLE = "movable-fraction"
GAIN = "gain-fraction"

UNDER_LOAD_QUIET = 30.0
"""Seconds without a change after which a resize under load is over."""

BESIDES = Setup(balloon=True, next_kernel=True)
"""A guest with what few scenarios need; it is larger, so the others do without."""

BALLOON = 128 * MIB
"""Bytes that the balloon takes."""

_LOAD = """
mkdir -p /tmp/load && mount -t tmpfs -o size=90% load /tmp/load && touch /tmp/load/on
(while [ -e /tmp/load/on ]; do
    dd if=/dev/zero of=/tmp/load/file bs=1M count={count} 2>/dev/null && echo >>/tmp/load/rounds
done) </dev/null >/dev/null 2>&1 &
"""
_STOP = """
rm /tmp/load/on
while ps | grep -q '[d]d if=/dev/zero'; do sleep 0.2; done
wc -l </tmp/load/rounds
umount /tmp/load
"""


def _grow(guest: Guest, note: Note, size: int) -> Resized:
    grown = guest.resize(size).check()
    note(GROW, grown.seconds_per_gib)
    return grown


def _shrink(guest: Guest, note: Note, *, quiet: float | None = None) -> Resized:
    shrunk = guest.resize(0, quiet=quiet)
    note(SHRINK, shrunk.seconds_per_gib)
    note(UNPLUGGED, shrunk.fraction)
    return shrunk


def _zones(guest: Guest) -> list[str]:
    """The zones of each memory block."""
    return guest.shell("cat /sys/devices/system/memory/memory*/valid_zones").splitlines()


def _expect_memory(guest: Guest, before: int, size: int) -> None:
    """Linux must have `size` bytes more than `before`, but for a little that it needs for them."""
    gained = guest.memory_total() - before
    if not 0.97 * size <= gained <= size:
        raise Failed(f"{format_size(size)} are plugged, but MemTotal grew by {gained} bytes")


@scenario()
def idle(guest: Guest, note: Note) -> None:
    """Grow, and shrink a guest that does nothing."""
    before = guest.memory_total()
    _grow(guest, note, guest.amount)
    _expect_memory(guest, before, guest.amount)
    _shrink(guest, note).check()


@scenario()
def load(guest: Guest, note: Note) -> None:
    """Shrink while a process writes a file in memory anew, again and again."""
    _grow(guest, note, guest.amount)
    guest.shell(_LOAD.format(count=guest.amount // 8 // MIB))
    try:
        _shrink(guest, note, quiet=UNDER_LOAD_QUIET)
    finally:
        rounds = guest.shell(_STOP)
    note("rounds-count", float(rounds))


def fragmentation(guest: Guest, note: Note) -> None:
    """Shrink a guest whose memory is fragmented as fragments.py says."""
    before, blocks = guest.memory_total(), len(_zones(guest))
    _grow(guest, note, guest.amount)
    zones = _zones(guest)
    note(MOVABLE, zones.count("Movable") / (len(zones) - blocks))
    note(GAIN, (guest.memory_total() - before) / guest.amount)
    with fragmented(guest, guest.amount):
        _shrink(guest, note)


@scenario(online="offline")
def offline(guest: Guest, note: Note) -> None:
    """Plug memory that nobody onlines, and take it back."""
    before, size = guest.memory_total(), guest.part(4)
    _grow(guest, note, size)
    if guest.memory_total() != before:
        raise Failed("MemTotal changed though nothing onlines memory")
    states = guest.shell("cat /sys/devices/system/memory/memory*/state").split()
    note("offline-count", states.count("offline"))
    _shrink(guest, note).check()


@scenario()
def reboot(guest: Guest, note: Note) -> None:
    """Push the reset button: all is unplugged, and comes again."""
    before, size = guest.memory_total(), guest.part(2)
    _grow(guest, note, size)
    note("reboot-seconds", guest.reboot())
    _await_memory(guest, before, size)


@scenario(setup=BESIDES)
def kexec(guest: Guest, note: Note) -> None:
    """Start another kernel: without a reset, its driver finds memory plugged and gives it back."""
    before, size = guest.memory_total(), guest.part(2)
    _grow(guest, note, size)
    note("kexec-seconds", guest.kexec())
    _await_memory(guest, before, size)


def _await_memory(guest: Guest, before: int, size: int) -> None:
    """A new kernel has its boot memory, and what is requested is plugged again."""
    guest.wait_until(lambda: guest.plugged == size, "plugged memory after the new start")
    guest.wait_until(lambda: guest.memory_total() > before + size * 0.97, "memory that was plugged")


@scenario(setup=BESIDES)
def balloon(guest: Guest, note: Note) -> None:
    """Grow and shrink while a balloon holds memory; the balloon keeps its size."""
    boot_memory = PLAIN.memory
    left = boot_memory - BALLOON
    guest.qmp("balloon", value=left)
    guest.wait_until(lambda: _left(guest) == left, "inflated balloon")
    before, size = guest.memory_total(), guest.part(2)
    _grow(guest, note, size)
    _expect_memory(guest, before, size)
    _shrink(guest, note).check()
    if _left(guest) != left:
        raise Failed(f"the balloon moved: the guest has {_left(guest)} bytes of boot memory")
    guest.qmp("balloon", value=boot_memory)
    guest.wait_until(lambda: _left(guest) == boot_memory, "deflated balloon")


def _left(guest: Guest) -> int:
    answer = guest.qmp("query-balloon")
    assert isinstance(answer, dict)
    return int(answer["actual"])


@scenario(setup=Setup(append=("memory_hotplug.memmap_on_memory=1",)))
def memmap_on_memory(guest: Guest, note: Note) -> None:
    """Ask Linux to take its page descriptors from the new memory: GAIN tells if it does."""
    parameter = "/sys/module/memory_hotplug/parameters/memmap_on_memory"
    if guest.shell(f"cat {parameter} 2>/dev/null || echo none") not in ("Y", "force"):
        raise Failed("this kernel has no parameter memmap_on_memory, or took it not")
    before, size = guest.memory_total(), guest.part(2)
    _grow(guest, note, size)
    note(GAIN, (guest.memory_total() - before) / size)
    _shrink(guest, note).check()


def _no_run(guest: Guest, note: Note) -> None:
    raise AssertionError("the runner measures this itself")


BOOT = Scenario("boot", _no_run, measures_boot=True)

ALL = (
    idle,
    load,
    Scenario("fragmentation", fragmentation),
    offline,
    Scenario("auto-movable", fragmentation, online=AUTO_MOVABLE),
    reboot,
    Scenario("online", fragmentation, online="online"),
    Scenario("online-kernel", fragmentation, online="online_kernel"),
    balloon,
    kexec,
    memmap_on_memory,
    BOOT,
)
"""In an order that lets most of them share a guest."""
