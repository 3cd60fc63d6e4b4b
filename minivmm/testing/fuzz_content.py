"""Random requests to every type of device: proper ones for the most part, and what is nearly so.

Only bytes and buffer sizes; how they get into a ring is fuzz_guest.py's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from minivmm.testing.fuzz_world import BLOCK, BLOCKS, DISK_SIZE, HIGH_RAM, REGION

Request = tuple[int, bytes, tuple[int, ...]]
"""Queue, readable bytes, sizes of the writable buffers."""

_MEM = struct.Struct("<H6xQH6x")
_BLK = struct.Struct("<I4xQ")
_SEGMENT = struct.Struct("<QII")
_CONTROL = struct.Struct("<IHH")
_STAT = struct.Struct("<HQ")
_SECTORS = DISK_SIZE // 512


def number(rng: Random, most: int) -> int:
    """0 to `most`: small ones and both ends are more likely, others are drawn by their length."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.randrange(min(most, 16) + 1)
    if kind == 3:
        return most - rng.randrange(min(most, 2) + 1)
    return rng.getrandbits(rng.randrange(most.bit_length()) + 1) % (most + 1)


def memory(rng: Random) -> Request:
    """Plug, unplug, state; seldom unplug all."""
    kind = rng.choice((0, 0, 0, 0, 1, 1, 1, 3, 3, 2, 0x1234)) if rng.random() < 0.95 else 2
    block = rng.randrange(-1, BLOCKS + 1) if rng.random() < 0.3 else rng.randrange(24)
    skew = rng.choice((0,) * 12 + (1, BLOCK // 2, -(1 << 32)))
    count = rng.choice((1, 1, 1, 2, 3, 4, 8, 18, 24, 0, 65535))
    address = REGION.base + block * BLOCK + skew & (1 << 64) - 1
    data = _MEM.pack(kind, address, count)
    return 0, _damaged(rng, data), _damaged_room(rng, 10)


def disk(rng: Random) -> Request:
    """All request types, and some that do not exist."""
    kind = rng.choice((0, 0, 1, 1, 4, 8, 11, 13, 13, 2, rng.getrandbits(32)))
    sector = rng.randrange(_SECTORS) if rng.random() < 0.9 else number(rng, (1 << 64) - 1)
    data, room = b"", 0
    if kind == 0:
        room = 512 * rng.randrange(9)
    elif kind == 1:
        data = rng.randbytes(512 * rng.randrange(5))
    elif kind == 8:
        room = rng.choice((20, 20, 8, 40))
    elif kind in (11, 13):
        data = b"".join(_segment(rng) for _ in range(rng.choice((1, 1, 2, 16, 17))))
    return 0, _damaged(rng, _BLK.pack(kind, sector) + data), _damaged_room(rng, room + 1)


def randomness(rng: Random) -> Request:
    """Buffers to be filled."""
    return 0, _damaged(rng, b""), _damaged_room(rng, number(rng, 9000))


def balloon(rng: Random) -> Request:
    """Page numbers, statistics. What is reported are pages themselves: FuzzGuest.pages."""
    queue = rng.choice((0, 0, 1, 2, 3))
    if queue == 2:
        data = b"".join(
            _STAT.pack(rng.randrange(14), number(rng, (1 << 64) - 1))
            for _ in range(rng.randrange(12))
        )
    else:
        first = rng.choice(
            (0, 16, HIGH_RAM.base >> 12, (REGION.base >> 12) + 256 * rng.randrange(9))
        )
        pages = [first + rng.randrange(64) for _ in range(rng.randrange(24))]
        if rng.random() < 0.1:
            pages.append(rng.getrandbits(32))
        data = struct.pack(f"<{len(pages)}I", *pages)
    return queue, _damaged(rng, data), _damaged_room(rng, 0)


def console(rng: Random) -> Request:
    """Control messages, bytes, and buffers for both."""
    queue = rng.choice((0, 1, 2, 3, 3, 3, 4, 5, rng.randrange(24)))
    if queue % 2 == 0:
        return queue, _damaged(rng, b""), _damaged_room(rng, number(rng, 5000))
    port = rng.choice((0, 1, 2, 10, 11, 0xFFFF_FFFF))
    data = _CONTROL.pack(port, rng.randrange(9), rng.randrange(3))
    if queue != 3:
        data = rng.randbytes(number(rng, 2000))
    return queue, _damaged(rng, data), _damaged_room(rng, 0)


def anything(rng: Random) -> Request:
    """For the device that echoes."""
    return rng.randrange(2), rng.randbytes(number(rng, 3000)), _damaged_room(rng, number(rng, 3000))


REQUESTS: dict[str, Callable[[Random], Request]] = {
    "mem": memory,
    "blk": disk,
    "rng": randomness,
    "balloon": balloon,
    "console": console,
    "echo": anything,
}


def _segment(rng: Random) -> bytes:
    return _SEGMENT.pack(
        rng.randrange(_SECTORS), number(rng, 64), rng.choice((0, 0, 0, 1, 1, rng.getrandbits(32)))
    )


def _damaged(rng: Random, data: bytes) -> bytes:
    """Seldom cut, lengthened or changed."""
    kind = rng.randrange(24)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        return data + rng.randbytes(rng.randrange(40))
    if kind == 2 and data:
        at = rng.randrange(len(data))
        return data[:at] + rng.randbytes(1) + data[at + 1 :]
    return data


def _damaged_room(rng: Random, size: int) -> tuple[int, ...]:
    """Seldom in several buffers, or of another size."""
    kind = rng.randrange(16)
    if kind == 0:
        size = max(0, size + rng.choice((-1, 1, -size, 100)))
    if kind == 1 and size:
        at = rng.randrange(size + 1)
        return at, size - at
    return (size,) if size else ()
