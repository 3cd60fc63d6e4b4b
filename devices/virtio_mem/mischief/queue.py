"""MischievousQueue: the real queue, but what rules say becomes of requests and their answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.host_side import HostSide, Work
from minivmm.devices.virtio_mem.mischief.turn import Turn
from minivmm.devices.virtio_mem.state import Range
from minivmm.spec.virtio_mem import BlockState, MemResponse, RequestType, ResponseType
from minivmm.virtio.queue.chain import BufferChain
from minivmm.virtio.queue.passing import PassingQueue
from minivmm.virtio.queue.queue import Chain, VirtQueue
from minivmm.virtio.queue.split import SplitQueue

_USED_IDX = 2
"""Offset of used.idx in the used ring."""

_NOBODY = 0xFFFF
"""A head, or buffer id, that no queue of ours has."""

WHY = "a rule says so"


class Decide(Protocol):
    """What rules make of a request."""

    def __call__(self, chain: Chain) -> Turn | None:
        """None: nothing. Raises DeviceBroken for a chain that holds no request."""


class MischievousQueue(PassingQueue):
    """`real` is what the driver shares, `decide` the rules. The device works on this one."""

    def __init__(self, real: VirtQueue, device: VirtioMem, decide: Decide) -> None:
        super().__init__(real)
        self._device = device
        self._decide = decide
        self._turns: dict[Chain, tuple[Turn, bytes]] = {}
        """Of chains that the device works on: what is to become of them, and their old buffer."""
        self._interrupts = 1
        self._ahead = 0

    def pop(self) -> Chain | None:
        """The next chain that the device is to see, or None."""
        while (chain := self.real.pop()) is not None:
            if self._passes(chain):
                return chain
        return None

    def chains(self) -> Iterator[Chain]:
        """Available chains that the device is to see, one by one."""
        for chain in self.real.chains():
            if self._passes(chain):
                yield chain

    def complete(self, chain: Chain, written: int = 0) -> None:
        """Hand `chain` back, as its rules say."""
        found = self._turns.pop(chain, None)
        if found is None:
            self.real.complete(chain, written)
            return
        turn, before = found
        _refuse(self._device.host_side, refuse=False)
        self._hand_back(turn, chain, written, before)

    def publish(self) -> bool:
        """Make completed chains visible; True if an interrupt is due, and may be sent."""
        wanted = self.real.publish()
        interrupts, self._interrupts = self._interrupts, 1
        if self._ahead:
            self._move_index()
        if wanted:
            for _ in range(interrupts - 1):
                self._device.signals.queue(self.index)
        return wanted and interrupts > 0

    # -- before the device ------------------------------------------------------------------------

    def _passes(self, chain: Chain) -> bool:
        """Is `chain` for the device? If not, it is dealt with."""
        turn = self._decide(chain)
        if turn is None or turn.plain:
            return True
        if turn.done:
            parts = chain.writable_parts if turn.written is not None else ()
            before = b"".join(self._device.memory.read(gpa, size) for gpa, size in parts)
            self._turns[chain] = turn, before
            _refuse(self._device.host_side, refuse=turn.refused)
            return True
        self._device.service.read_request(chain)  # for those who follow
        if not turn.silent:
            self._answer(turn, chain)
        return False

    def _answer(self, turn: Turn, chain: Chain) -> None:
        """Without the device; those who ask it for a diagnosis learn of the answer all the same."""
        assert turn.answer is not None
        kind, request, device = turn.answer, turn.request, self._device
        if kind in set(ResponseType):
            said = request.type == RequestType.STATE and kind == ResponseType.ACK
            device.ledger.enter(
                device.service.signals,
                request,
                ResponseType(kind),
                plugged=device.plugged_size,
                found=BlockState(turn.state) if said and turn.state in set(BlockState) else None,
                why=WHY,
            )
        data = kind.to_bytes(2, "little") + bytes(6) + turn.state.to_bytes(2, "little")
        chain.write(data)
        self._hand_back(turn, chain, len(data), b"")
        if self.publish():
            device.signals.queue(self.index)

    # -- behind it --------------------------------------------------------------------------------

    def _hand_back(self, turn: Turn, chain: Chain, written: int, before: bytes) -> None:
        if turn.response is not None:
            chain.write(turn.response)
            written = len(turn.response)
        if turn.written is not None:
            chain.write(before[turn.written : MemResponse.SIZE], turn.written)
            written = turn.written
        if turn.used_length is not None:
            written = turn.used_length
        if turn.seconds:
            self._device.errands.later(turn.seconds, lambda: self._late(turn, chain, written))
        else:
            self._use(turn, chain, written)

    def _late(self, turn: Turn, chain: Chain, written: int) -> None:
        self._use(turn, chain, written)
        if self.publish():
            self._device.signals.queue(self.index)

    def _use(self, turn: Turn, chain: Chain, written: int) -> None:
        self._interrupts, self._ahead = turn.interrupts, turn.ahead
        if self._ahead and isinstance(chain, BufferChain) and not _is_split(chain):
            chain.head, self._ahead = _NOBODY, 0
        for _ in range(turn.copies - 1):
            if isinstance(chain, BufferChain):
                self.real.complete(_twin(chain), written)
        if turn.copies:
            self.real.complete(chain, written)

    def _move_index(self) -> None:
        """used.idx is not what it should be, until the next answer."""
        ahead, self._ahead = self._ahead, 0
        place = getattr(getattr(self.real, "real", self.real), "layout", None)
        if place is not None:
            memory, gpa = self._device.memory, place.device + _USED_IDX
            index = int.from_bytes(memory.read(gpa, 2), "little") + ahead
            memory.write(gpa, (index & 0xFFFF).to_bytes(2, "little"))


def _is_split(chain: BufferChain) -> bool:
    return isinstance(chain.owner, SplitQueue)


def _twin(chain: BufferChain) -> BufferChain:
    """A chain that looks like `chain` in the ring, and was never there."""
    twin = BufferChain(chain.owner, chain.head)
    twin.slots = 0 if _is_split(chain) else chain.slots  # a packed ring has no other place for it
    return twin


def _refuse(host: HostSide, *, refuse: bool) -> None:
    """Have the host's part of the next requests fail, or no longer."""
    if not refuse:
        for name in ("plug", "unplug"):
            vars(host).pop(name, None)
        return

    def fail() -> None:
        raise OSError("the host refuses: a rule says so")

    def plug(offset: int, length: int) -> Work:
        return replace(HostSide.plug(host, offset, length), length=length, aside=fail)

    def unplug(shown: list[Range], whole: Range) -> Work:
        return replace(HostSide.unplug(host, shown, whole), aside=fail)

    vars(host).update(plug=plug, unplug=unplug)
