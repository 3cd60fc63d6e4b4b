"""What can be done wrong about a request; each call here gives an Action for RequestRule.do().

Several may go together: they change one Turn, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivmm.devices.virtio_mem.mischief.turn import Action, Turn
from minivmm.errors import UsageError
from minivmm.options import unknown
from minivmm.spec.virtio_mem import BlockState, MemResponse, ResponseType
from minivmm.units import format_size

LONGEST_DELAY = 3600.0
"""Seconds."""

MOST_COPIES = 64
"""Used elements, or interrupts, for one request."""

_U16, _U32 = 1 << 16, 1 << 32


def answer(kind: str | int, state: str | int = 0) -> Action:
    """Answer `kind` ("BUSY", "NACK", "ERROR", "ACK" or any 16-bit number) and do nothing.

    `state` is what an ACK to STATE says. Raises UsageError.
    """
    value, found = _named(ResponseType, kind, "answer"), _named(BlockState, state, "state")
    return _setting(f"answer {kind}", answer=value, state=found)


def respond(data: bytes) -> Action:
    """Do it, but put `data` where the answer belongs; at most 10 bytes. Raises UsageError."""
    if len(data) > MemResponse.SIZE:
        raise UsageError(f"response of {len(data)} bytes: an answer has {MemResponse.SIZE}")
    return _setting(f"respond {data.hex() or 'nothing'}", response=data)


def shorten(length: int) -> Action:
    """Do it, but write only the first `length` bytes of the answer. Raises UsageError."""
    _check("shorten", length, MemResponse.SIZE)
    return _setting(f"write {length} bytes", written=length)


def used_length(length: int) -> Action:
    """Do it, but claim to have written `length` bytes (32 bits). Raises UsageError."""
    _check("used-length", length, _U32)
    return _setting(f"used length {length}", used_length=length)


def delay(seconds: float) -> Action:
    """Do it, but answer `seconds` later. Raises UsageError."""
    if not 0 <= seconds <= LONGEST_DELAY:
        raise UsageError(f"delay {seconds:g} s is out of range: use 0 to {LONGEST_DELAY:g}")
    return _setting(f"delay {seconds:g} s", seconds=seconds)


def silence() -> Action:
    """Do nothing, and never answer."""
    return _setting("silence", silent=True)


def twice(copies: int = 2) -> Action:
    """Do it, and hand the answer back `copies` times. Raises UsageError."""
    _check("twice", copies, MOST_COPIES)
    return _setting(f"{copies} used elements", copies=copies)


def drop_interrupt() -> Action:
    """Do it and answer, but send no interrupt."""
    return _setting("no interrupt", interrupts=0)


def repeat_interrupt(times: int = 2) -> Action:
    """Do it and answer, and send the interrupt `times` times. Raises UsageError."""
    _check("repeat-interrupt", times, MOST_COPIES)
    return _setting(f"{times} interrupts", interrupts=times)


def break_index(ahead: int = 1) -> Action:
    """Do it and answer, with used.idx `ahead` of the truth; it is right again the next time.

    A packed ring has no such index: there the used descriptor names a buffer that there is not.
    Raises UsageError.
    """
    _check("break-index", ahead, _U16)
    return _setting(f"used index ahead by {ahead}", ahead=ahead)


def refuse_host() -> Action:
    """The host fails to populate (PLUG) or to discard (UNPLUG, UNPLUG_ALL): the answer is BUSY."""
    return _setting("the host refuses", refused=True)


def resize(size: int) -> Action:
    """The host sets requested_size to `size` bytes before the device sees the request.

    It is done as by the user: with an interrupt. Sizes that cannot be are ignored.
    """

    def apply(turn: Turn) -> None:
        resize_device(turn.device, size)

    return Action(f"resize to {format_size(size)}", apply)


def shrink_usable(size: int) -> Action:
    """usable_region_size becomes `size` bytes before the device sees the request, and it tells.

    MEM-D-8 forbids that; blocks that are plugged behind it stay plugged.
    """

    def apply(turn: Turn) -> None:
        turn.device.state.usable_region_size = size
        turn.device.kick()

    return Action(f"usable region of {format_size(size)}", apply)


def call(function: Callable[[Turn], None]) -> Action:
    """Anything else: `function` may change the Turn, or look at it."""
    return Action(getattr(function, "__name__", "call"), function)


def resize_device(device: Any, size: int) -> None:
    """As the user would; nothing if that would be refused."""
    try:
        device.set_requested_size(size)
    except UsageError as error:
        device.signals.trace("refused", why=str(error))


def _setting(text: str, **fields: object) -> Action:
    def apply(turn: Turn) -> None:
        for name, value in fields.items():
            setattr(turn, name, value)

    return Action(text, apply)


def _named(kind: Any, value: str | int, what: str) -> int:
    if isinstance(value, int):
        _check(what, value, _U16)
        return int(value)
    names = [member.name for member in kind]
    if value.upper() not in names:
        raise UsageError(unknown(what, value, names))
    return int(kind[value.upper()])


def _check(what: str, value: int, end: int) -> None:
    """Raises UsageError unless 0 <= `value` < `end`."""
    if not 0 <= value < end:
        raise UsageError(f"{what} {value} is out of range: use 0 to {end - 1}")
