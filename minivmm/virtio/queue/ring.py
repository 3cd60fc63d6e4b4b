"""RingQueue: what both virtqueue formats share; how rings look is in split.py and packed.py.

How the parts of a ring are reached in guest memory is in part.py. Indices and flags are loaded and
stored by 16-bit words, one machine access each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from minivmm.errors import DeviceBroken, GuestAddressError
from minivmm.fence import full_fence
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio import Descriptor, Feature
from minivmm.virtio.queue.chain import BufferChain, ChainState
from minivmm.virtio.queue.part import Part
from minivmm.virtio.queue.queue import Chain, QueueLayout

MAX_CHAIN_LENGTH = 1024
"""Most descriptors of a chain, and entries of an indirect table; Linux stays below (SPL-D-1)."""

BURST_CHAINS, BURST_DESCRIPTORS = 128, 2048
"""chains() stops after so many, even of a larger queue: some milliseconds (C.7: bound all work)."""


def need_event(event: int, new: int, old: int) -> bool:
    """Did the index pass `event` on its way from `old` to `new`? (16-bit, virtio-spec 2.7.10)"""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


@dataclass(frozen=True, slots=True)
class RingState:
    """A ring between two calls of its device: all that was completed is published."""

    next_avail: int
    """As doorbells with NOTIFICATION_DATA tell it: 16 bits, packed with the wrap counter on top."""
    next_used: int
    """The same of the used side."""
    decided: bool
    """With EVENT_IDX: the first decision about an interrupt was made."""
    chains: tuple[ChainState, ...]
    """Popped and not handed back, oldest first."""


class RingQueue(ABC):
    """A live queue of either format. Raises DeviceBroken for what drivers must not do (C.7)."""

    def __init__(
        self,
        index: int,
        memory: GuestMemory,
        layout: QueueLayout,
        *,
        features: int,
        resumed: RingState | None = None,
    ) -> None:
        self.index = index
        self.size = layout.size
        self.memory = memory
        self.closed = False
        self.interrupted = False
        self.layout = layout
        self._indirect = bool(features & Feature.INDIRECT_DESC.mask)
        self._event_idx = bool(features & Feature.EVENT_IDX.mask)
        self._order: deque[BufferChain] | None = None
        """With IN_ORDER: chains that were popped and not yet handed back, oldest first."""
        if features & Feature.IN_ORDER.mask:
            self._order = deque()
        self._burst = min(self.size, BURST_CHAINS)
        self._taken: dict[BufferChain, None] = {}
        self._in_flight = 0  # in slots; unlike _taken, with chains that are not handed back yet
        self._decided_once = False
        self._set_up(resumed)

    # -- VirtQueue ---------------------------------------------------------------------------------

    @property
    def in_flight(self) -> tuple[Chain, ...]:
        """Chains that were popped and are not completed, oldest first."""
        return tuple(self._taken)

    def pop(self) -> BufferChain | None:
        """The next available chain, or None. Popped chains must be completed."""
        if self.closed or not self._waits():
            return None
        chain = self._take()
        self._hold(chain)
        return chain

    def chains(self) -> Iterator[BufferChain]:
        """Available chains, one by one, at most a lap or a burst; `interrupted` tells of more."""
        work = 0
        for _ in range(self._burst):
            chain = self.pop()
            if chain is None:
                return
            work += chain.descriptors
            yield chain
            if work >= BURST_DESCRIPTORS:
                break
        self.interrupted = not self.closed and self._waits()

    def complete(self, chain: Chain, written: int = 0) -> None:
        """Hand `chain` back; publish() makes it visible (SPL-D-7).

        With IN_ORDER it waits for those that were made available before it (GEN-D-9).
        """
        if self.closed:
            return
        if not isinstance(chain, BufferChain) or chain.owner is not self or chain.done:
            raise ValueError(f"queue {self.index}: completing a chain that is not in flight")
        chain.done, chain.written = True, written
        self._taken.pop(chain, None)
        if self._order is None:
            self._hand_back(chain)
            return
        while self._order and self._order[0].done:
            self._hand_back(self._order.popleft())

    def publish(self) -> bool:
        """Make completed chains visible; True if the driver wants an interrupt for them."""
        if self.closed or not self._show():
            return False
        full_fence()  # the driver may be switching interrupts on while looking at the old state
        return self._interrupt_wanted()

    def close(self) -> None:
        """The driver is gone: from now on nothing of this queue touches guest memory."""
        self.closed = True

    def inspect(self) -> dict[str, object]:
        """Where the rings are."""
        return {
            "size": self.size,
            "descriptors": f"{self.layout.descriptors:#x}",
            "driver": f"{self.layout.driver:#x}",
            "device": f"{self.layout.device:#x}",
            "in-flight": self._in_flight,
            "signalled": self._decided_once,
        }

    def state(self) -> RingState:
        """How far both sides got, for `resumed` of a queue in another process."""
        chains = self._taken if self._order is None else self._order
        held = tuple(chain.state() for chain in chains)
        return RingState(*self._positions(), self._decided_once, held)

    # -- what a format does ------------------------------------------------------------------------

    @abstractmethod
    def _set_up(self, resumed: RingState | None) -> None:
        """Check the layout; begin at the start, or go on at `resumed` without a look at memory.

        Raises DeviceBroken.
        """

    @abstractmethod
    def _positions(self) -> tuple[int, int]:
        """next_avail and next_used of a RingState."""

    @abstractmethod
    def _is_available(self) -> bool:
        """Does a chain wait?"""

    @abstractmethod
    def _ask_for_doorbell(self) -> None:
        """With EVENT_IDX: tell the driver that the next chain needs a doorbell."""

    @abstractmethod
    def _take(self) -> BufferChain:
        """The chain that waits; every descriptor's content is read once."""

    @abstractmethod
    def _hand_back(self, chain: BufferChain) -> None:
        """`chain` is done; the driver must not notice before _show()."""

    @abstractmethod
    def _show(self) -> bool:
        """Let the driver see what was handed back; False if there is nothing new."""

    @abstractmethod
    def _interrupt_wanted(self) -> bool:
        """Does the driver want to hear of the last _show()? Called behind the fence."""

    # -- inside ------------------------------------------------------------------------------------

    def _hold(self, chain: BufferChain) -> None:
        """The device has `chain`, or has handed it back out of its order."""
        self._in_flight += chain.slots
        if not chain.done:
            self._taken[chain] = None
        if self._order is not None:
            self._order.append(chain)

    def _resume(self, state: RingState, slots: int | None) -> None:
        """Take chains over; each has `slots` slots, if that is fixed."""
        self._decided_once = state.decided
        for saved in state.chains:
            chain = BufferChain.resumed(self, saved)
            if chain.done and not self._order:
                raise self._broken(chain, "is done, and was not handed back")
            if chain.slots != slots if slots else not chain.slots:
                raise self._broken(chain, f"{chain.slots} slots")
            self._hold(chain)
        if self._in_flight > self.size:
            raise DeviceBroken(f"queue {self.index}: {self._in_flight} slots in flight")

    def _waits(self) -> bool:
        """Does a chain wait? Finding none asks for a doorbell, and looks again (C.5)."""
        if self._is_available():
            return True
        if not self._event_idx:
            return False
        self._ask_for_doorbell()
        full_fence()
        return self._is_available()

    def _passed(self, event: int, new: int, old: int) -> bool:
        """need_event; but the first decision of a queue is always yes (C.5)."""
        first, self._decided_once = not self._decided_once, True
        return first or need_event(event, new, old)

    def _indirect_table(self, chain: BufferChain, gpa: int, length: int) -> tuple[memoryview, int]:
        """The indirect table at `gpa` and its number of entries; it may cross regions."""
        entries, rest = divmod(length, Descriptor.SIZE)
        if rest or not 1 <= entries <= MAX_CHAIN_LENGTH:
            raise self._broken(chain, f"indirect table size {length}")
        try:
            return self.memory.peek(gpa, length), entries
        except GuestAddressError as error:
            raise self._broken(chain, str(error)) from error

    def _part(self, name: str, gpa: int, length: int, alignment: int, *, look: bool) -> Part:
        """That part of the layout, which has to be aligned, and (with `look`) guest RAM.

        It has to lie in one region, where its indices can be loaded and stored in one access.
        """
        if gpa % alignment:
            raise DeviceBroken(f"queue {self.index}: {name} at {gpa:#x} is not aligned")
        part = Part(self.index, self.memory, gpa, length)
        if look:
            part.bytes()
        return part

    def _broken(self, chain: BufferChain, why: str) -> DeviceBroken:
        return DeviceBroken(f"queue {self.index}: chain {chain.head}: {why}")
