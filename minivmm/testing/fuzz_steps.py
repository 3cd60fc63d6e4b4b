"""Random steps: what the fuzzer tries, and how often it tries what.

A step is a name and arguments of plain data; who takes it is fuzz_case.py's. The same generator
always gives the same steps, and Hypothesis may be that generator.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from minivmm.spec.virtio import Feature
from minivmm.spec.virtio_pci import CommonConfig
from minivmm.testing.fuzz_content import REQUESTS, number
from minivmm.testing.fuzz_places import SCRATCH_SIZE, Entry, Place
from minivmm.testing.fuzz_world import BLOCK, BLOCKS, REFUSALS, Setup

Step = tuple[Any, ...]
"""Name of a step, and its arguments."""

_WIDTHS = (1, 2, 4, 8)
_FIELDS = [name for _, _, name in CommonConfig.layout()]
_FIELD_WIDTHS = {name: width for _, width, name in CommonConfig.layout()}
_VALUES = (0, 1, 2, 3, 4, 7, 8, 11, 15, 64, 128, 255, 0xFFFF, 0xFFFF_FFFF)
_REGISTERS = [
    *(["COMMON"] * 6),
    *(["config"] * 4),
    *(["DEVICE"] * 4),
    *("NOTIFY", "NOTIFY", "ISR", "msix", "msix", "ecam", "mmio64", "mmio32", "block"),
]
_EVERYTHING = (1 << 64) - 1


def steps(rng: Random, made: Setup, count: int) -> list[Step]:
    """So many steps on the machine of `made`; bursts of 10 to 50 end in a recovery.

    At the end both functions are recovered.
    """
    found: list[Step] = [_begin(rng, made)]
    left = rng.randrange(10, 50)
    while len(found) < count - 2:
        left -= 1
        if left:
            found.append(_VOCABULARY[rng.choice(_NAMES)](rng, made))
        else:
            found.append(("recover", *_recover(rng)))
            left = rng.randrange(10, 50)
    return [*found, *(("recover", who, *_recover(rng)[1:]) for who in range(2))]


def _who(rng: Random) -> int:
    """Number of the function: that of the device three times out of four."""
    return 0 if rng.random() < 0.75 else 1


def _flags(rng: Random) -> int:
    kind = rng.random()
    if kind < 0.7:
        return rng.choice((0, 1, 2, 3, 2, 0))
    return rng.randrange(8) if kind < 0.9 else rng.getrandbits(16)


def _length(rng: Random) -> int:
    if rng.random() < 0.8:
        return rng.choice((0, 1, 4, 8, 10, 16, 24, 32, 64, 512, 4096))
    return number(rng, (1 << 32) - 1)


def _buffer(rng: Random) -> Place:
    """Where a buffer, or anything else in memory, may be said to lie."""
    kind = rng.randrange(16)
    if kind < 7:
        return "scratch", rng.randrange(SCRATCH_SIZE)
    if kind < 9:
        return "block", rng.randrange(BLOCKS + 1) * BLOCK + rng.choice((0, 0, 64, -8))
    name = rng.choice(("ram", "border", "end", "last", "top", "ring", "used", "mmio32", "ecam"))
    if name == "ram":
        return name, number(rng, (1 << 64) - 1)
    return name, rng.randrange(-64, 65) if name != "ring" else rng.randrange(512)


def _entries(rng: Random) -> tuple[Entry, ...]:
    count = rng.choice((1, 1, 2, 2, 3, 4, 6, rng.randrange(1, 20)))
    proper = rng.random() < 0.7  # NEXT in all but the last, each leading to the one behind it
    found: list[Entry] = []
    for at in range(count):
        flags, following = _flags(rng), number(rng, 0xFFFF)
        if proper:
            flags, following = flags & ~1 | (at < count - 1), at + 1
        found.append((_buffer(rng), _length(rng), flags, following))
    return tuple(found)


def _register(rng: Random) -> Place:
    name = rng.choice(_REGISTERS)
    if name in ("ecam", "mmio64", "mmio32", "block"):
        return name, number(rng, 1 << 28)
    if name in ("COMMON", "config") and rng.random() < 0.9:
        return name, rng.randrange(72 if name == "COMMON" else 256)
    return name, rng.randrange(64) if rng.random() < 0.8 else number(rng, 4100)


def _value(rng: Random, width: int) -> int:
    mask = (1 << 8 * width) - 1
    return (rng.choice(_VALUES) if rng.random() < 0.7 else rng.getrandbits(64)) & mask


def _begin(rng: Random, made: Setup) -> Step:
    chosen = _EVERYTHING if rng.random() < 0.5 else rng.getrandbits(64)
    if made.options["packed"]:
        chosen |= Feature.RING_PACKED.mask
    queues = rng.choice((_EVERYTHING, 0xFF, 0xFF, 0xFF, 0xFF, rng.getrandbits(24)))
    size = rng.choice((0, 1, 2, 4, 8, 8, 16, 16, 64, 64, 3))
    return "begin", _who(rng), chosen, queues, size, int(rng.random() < 0.15), rng.randrange(4)


def _chain(rng: Random, made: Setup) -> Step:
    who = _who(rng)
    queue, data, room = REQUESTS[made.device if who == 0 else "mem"](rng)
    pieces: tuple[bytes, ...] = (data,) if data else ()
    if data and rng.random() < 0.25:
        at = rng.randrange(len(data) + 1)
        pieces = data[:at], data[at:]
    direct = rng.choice((None, 0, 0, 0, 1, 2))
    return "chain", who, queue, pieces, room, direct, int(rng.random() < 0.8)


def _pages(rng: Random, made: Setup) -> Step:
    ranges = tuple(
        (_buffer(rng), rng.choice((4096, 1 << 16, BLOCK, 1, 1 << 22)))
        for _ in range(rng.randrange(1, 4))
    )
    queue = rng.choice((4, 4, 3, 0)) if made.device == "balloon" else rng.randrange(3)
    return "pages", _who(rng), queue, ranges, int(rng.random() < 0.7)


def _recover(rng: Random) -> tuple[int, int, int]:
    return _who(rng), rng.choice((0, 0, 1, 2, 3)), rng.randrange(2)


def _window(rng: Random, made: Setup) -> Step:
    offset = rng.choice((0x0000, 0x1000, 0x2000, 0x3000)) + rng.randrange(72)
    width = rng.choice((1, 2, 4))
    value = None if rng.random() < 0.5 else _value(rng, width)
    size = rng.choice((1, 2, 4, 4, number(rng, 0xFFFF_FFFF)))
    return "window", _who(rng), rng.choice((0, 0, 0, 2, 1, 255)), offset, size, width, value


def _ports(rng: Random, made: Setup) -> Step:
    address = 0x8000_0000 | rng.randrange(4) << 11 | rng.randrange(256)
    width = rng.choice((1, 2, 4))
    value = None if rng.random() < 0.5 else _value(rng, width)
    if rng.random() < 0.1:
        address = rng.getrandbits(32)
    return "ports", _who(rng), address, rng.randrange(4, 8), width, value


def _bar(rng: Random, made: Setup) -> Step:
    name = rng.choice(("mmio64", "mmio64", "mmio32", "ecam", "block", "ram", "end", "top"))
    return "bar", _who(rng), rng.randrange(2), (name, rng.randrange(-4, 12) * 0x1000)


def _messages(rng: Random, made: Setup) -> Step:
    control = rng.choice((0, 0x4000, 0x8000, 0x8000, 0x8000, 0xC000))
    return "messages", _who(rng), control, rng.randrange(128), 0xFEE0_0000, 5, rng.randrange(2)


def _access(rng: Random, made: Setup) -> Step:
    width = rng.choice(_WIDTHS)
    value = None if rng.random() < 0.5 else _value(rng, width)
    return "access", rng.randrange(BLOCKS) * BLOCK + rng.randrange(-8, 8), width, value


def _look(rng: Random, made: Setup) -> Step:
    return "look", _who(rng), _register(rng), rng.choice(_WIDTHS)


def _change(rng: Random, made: Setup) -> Step:
    width = rng.choice(_WIDTHS)
    return "change", _who(rng), _register(rng), width, _value(rng, width)


def _field(rng: Random, made: Setup) -> Step:
    name = rng.choice(_FIELDS)
    return "field", _who(rng), name, _value(rng, _FIELD_WIDTHS[name])


def _bell(rng: Random, made: Setup) -> Step:
    odd = rng.random() < 0.2
    width, value = (rng.choice((1, 2, 4, 8)), rng.getrandbits(32)) if odd else (None, None)
    return "bell", _who(rng), rng.randrange(24), rng.randrange(2), width, value


def _queue(rng: Random) -> tuple[int, int]:
    """A function and one of its queues: the first few more often."""
    return _who(rng), number(rng, 23)


def _table(rng: Random, made: Setup) -> Step:
    surplus = rng.choice((0,) * 8 + (1, 8, 16, -16, 1 << 20))
    flags = rng.choice((4, 4, 4, 4, 6, 5, 4 | rng.getrandbits(16)))
    at = 16 * rng.randrange(SCRATCH_SIZE // 32)
    return "table", *_queue(rng), at, _entries(rng), surplus, flags, int(rng.random() < 0.8)


_Generator = Callable[[Random, Setup], Step]
_WEIGHTED: dict[str, tuple[int, _Generator]] = {
    # proper ones
    "begin": (8, _begin),
    "chain": (40, _chain),
    "pages": (3, _pages),
    "collect": (8, lambda rng, _: ("collect", *_queue(rng))),
    "bell": (5, _bell),
    "renew": (3, lambda rng, _: ("renew", *_queue(rng), rng.choice((0, 4, 16)), rng.randrange(2))),
    "drop": (2, lambda rng, _: ("drop", *_queue(rng))),
    "flr": (1, lambda rng, _: ("flr", _who(rng))),
    # rings
    "descriptors": (
        6,
        lambda rng, _: ("descriptors", *_queue(rng), _entries(rng), int(rng.random() < 0.8)),
    ),
    "table": (4, _table),
    "offer": (1, lambda rng, _: ("offer", *_queue(rng), number(rng, 0xFFFF))),
    "jump": (1, lambda rng, _: ("jump", *_queue(rng), number(rng, 0xFFFF))),
    "hush": (2, lambda rng, _: ("hush", *_queue(rng), number(rng, 0xFFFF), number(rng, 0xFFFF))),
    "poke": (
        3,
        lambda rng, _: (
            "poke",
            *_queue(rng),
            rng.randrange(3),
            number(rng, 600),
            rng.randbytes(rng.choice((1, 2, 4, 16))),
        ),
    ),
    "store": (2, lambda rng, _: ("store", _who(rng), _buffer(rng), rng.randbytes(16))),
    # registers
    "look": (8, _look),
    "change": (8, _change),
    "field": (4, _field),
    "window": (3, _window),
    "ports": (2, _ports),
    "bar": (1, _bar),
    "command": (
        1,
        lambda rng, _: ("command", _who(rng), rng.choice((0, 2, 4, 6, 6, 6, 0x406, 0xFFFF))),
    ),
    "messages": (2, _messages),
    # the host
    "resize": (3, lambda rng, _: ("resize", rng.randrange(BLOCKS + 1))),
    "refuse": (2, lambda rng, _: ("refuse", rng.randrange(len(REFUSALS)), rng.randrange(4))),
    "work": (5, lambda rng, _: ("work",)),
    "pass_time": (2, lambda rng, _: ("pass_time",)),
    "loop": (6, lambda rng, _: ("loop", rng.choice((1, 4, 16)))),
    "access": (3, _access),
    "wish": (5, lambda rng, _: ("wish", rng.randrange(8), rng.getrandbits(20))),
    "follow": (1, lambda rng, _: ("follow",)),
    "restart": (1, lambda rng, _: ("restart",)),
}
_VOCABULARY = {name: generator for name, (_, generator) in _WEIGHTED.items()}
_NAMES = [name for name, (weight, _) in _WEIGHTED.items() for _ in range(weight)]
