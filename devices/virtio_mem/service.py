"""Serves requests: asks the answer table, has the host do its part, changes blocks, answers.

A request changes all of its blocks or none. One is served at a time; while the host is busy with
one that takes long, the others wait in the ring, and the lock is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from minivmm.devices.virtio_mem import answers, messages
from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.devices.virtio_mem.host_side import Host, Work
from minivmm.devices.virtio_mem.ledger import Ledger
from minivmm.devices.virtio_mem.messages import Request
from minivmm.devices.virtio_mem.pace import LEAST, Pace
from minivmm.devices.virtio_mem.shortage import Shortage
from minivmm.devices.virtio_mem.state import Range, RegionState
from minivmm.errors import HostError
from minivmm.spec.virtio_mem import BlockState, RequestType, ResponseType
from minivmm.virtio.device import Signals
from minivmm.virtio.errands import Errands, Inline, Job
from minivmm.virtio.queue.queue import Chain, VirtQueue


@dataclass(slots=True)
class _Exchange:
    """A request that is being served, and where its answer goes."""

    queue: VirtQueue
    chain: Chain
    request: Request


@dataclass(frozen=True)
class _Pending:
    """The one exchange whose host work goes on aside of the lock."""

    exchange: _Exchange
    work: Work
    job: Job


class Service:
    """`on_change` is called when blocks changed, before the answer, with what was unplugged.

    `host`, `signals` and `read_request` may be replaced between requests (tap.py).
    """

    def __init__(
        self,
        state: RegionState,
        host: Host,
        signals: Signals,
        *,
        ledger: Ledger,
        shortage: Shortage,
        on_change: Callable[[Sequence[Range]], None],
    ) -> None:
        self.errands: Errands = Inline()
        self._state = state
        self.host = host
        self.signals = signals
        self.read_request = messages.read_request
        self._ledger = ledger
        self._shortage = shortage
        self._on_change = on_change
        self._pending: _Pending | None = None
        self._pace = Pace()

    @property
    def at_work(self) -> bool:
        """Does the host work on a request, aside of the lock?"""
        return self._pending is not None

    def serve(self, queue: VirtQueue) -> None:
        """Answer what waits in `queue`, each request with an interrupt decision of its own.

        Raises DeviceBroken for buffers too short for a request or its answer.
        """
        if self._pending:
            if not self._pending.job.over:
                return  # its end has the queue handled again
            self._conclude()
        for chain in queue.chains():
            self._begin(_Exchange(queue, chain, self.read_request(chain)))
            if self._pending:
                return

    def conclude(self) -> None:
        """Answer the request that the host's work is over for, if there is one; begin no other."""
        if self._pending and self._pending.job.over:
            self._conclude()

    def finish(self) -> None:
        """Wait for the host's work, if any goes on, and conclude it."""
        if self._pending:
            self._pending.job.wait()
            self._conclude()

    def unplug_everything(self) -> OSError | HostError | None:
        """Without being asked by a driver: the machine resets. What the host refused, if it did."""
        work = self.host.unplug(self._plugged(), (0, self._state.window.size))
        error = _attempt(work.prepare) or _attempt(work.aside)
        if error:
            self._undo(work)
        else:
            self._state.all_unplugged()
            self._on_change(work.leaving)
        return error

    def plug_exactly(self, runs: Sequence[tuple[int, int]]) -> OSError | HostError | None:
        """Have these runs of blocks (first, count) plugged and no others: a state is loaded.

        Blocks that are plugged already keep their content. What the host refused, if it did: then
        it is not told which are.
        """
        wanted = Blocks(self._state.block_size, self._state.window.size)
        for run in runs:
            wanted.plug(*run)
        for work in self._between(self._state.blocks, wanted):
            error = _attempt(work.prepare) or _attempt(work.aside) or _attempt(work.finish)
            if error:
                return error
        self._state.blocks = wanted
        return None

    def _between(self, now: Blocks, wanted: Blocks) -> Iterator[Work]:
        """What it costs the host to get from one to the other; made as it is needed."""
        size = self._state.block_size
        for run in now.plugged_ranges():
            for first, count in wanted.unplugged_ranges(*run):
                piece = first * size, count * size
                yield self.host.unplug([piece], piece)
        for run in wanted.plugged_ranges():
            for first, count in now.unplugged_ranges(*run):
                yield self.host.plug(first * size, count * size)

    def _begin(self, exchange: _Exchange) -> None:
        """Answer the request, or leave it in `_pending`."""
        request, state = exchange.request, self._state
        now = answers.Situation(
            state.blocks,
            state.window.base,
            state.usable_region_size,
            state.requested_size,
            state.migrating,
        )
        refusal = answers.refusal(request, now)
        if refusal:
            self._respond(exchange, refusal.answer, why=refusal.why)
        elif request.type == RequestType.STATE:
            self._respond(exchange, ResponseType.ACK, state=now.state(request))
        else:
            self._set_to_work(exchange, self._work_for(request))

    def _work_for(self, request: Request) -> Work:
        """What an allowed request costs the host."""
        state = self._state
        if request.type == RequestType.UNPLUG_ALL:
            if not state.blocks.plugged_size:
                return Work(0)
            # All plugged blocks lie in the usable region, so nothing else need be walked.
            return self.host.unplug(self._plugged(), (0, state.usable_region_size))
        piece = (request.addr - state.window.base, request.nb_blocks * state.block_size)
        if request.type == RequestType.PLUG:
            return self.host.plug(*piece)
        return self.host.unplug([piece], piece)

    def _plugged(self) -> list[Range]:
        return list(self._state.plugged_ranges(0, self._state.window.size))

    def _set_to_work(self, exchange: _Exchange, work: Work) -> None:
        self._state.leaving = work.leaving
        error = _attempt(work.prepare)
        if error is None and work.length > LEAST:
            work.aside = self._pace.timed(work.length, work.aside)
            if work.length > self._pace.at_once:
                job = self.errands.aside(work.aside, lambda: self.signals.kick(0))
                self._pending = _Pending(exchange, work, job)
                if job.over:
                    self._conclude()
                return
        self._finish(exchange, work, error or _attempt(work.aside))

    def _conclude(self) -> None:
        """The host's work on the pending exchange is over."""
        pending, self._pending = self._pending, None
        assert pending is not None
        error = pending.job.error
        if error is not None and not isinstance(error, OSError | HostError):
            raise error  # a bug of ours: the transport breaks the device and says so
        self._finish(pending.exchange, pending.work, error)

    def _finish(self, exchange: _Exchange, work: Work, error: OSError | HostError | None) -> None:
        """All or nothing: change the blocks and ACK, or put everything back and say BUSY."""
        error = error or _attempt(work.finish)
        self._state.leaving = ()
        if error is None:
            self._change_blocks(exchange.request)
            self._on_change(work.leaving)
            self._shortage.over()
            self._respond(exchange, ResponseType.ACK)
        else:
            self._undo(work)
            self._shortage.refused(max(work.length, self._state.block_size), str(error))
            self._respond(exchange, ResponseType.BUSY, why=str(error))

    def _undo(self, work: Work) -> None:
        """A host that refuses this as well has the last word; an audit shows what it kept."""
        error = _attempt(work.undo)
        if error:
            self.signals.trace("not-undone", why=str(error))

    def _change_blocks(self, request: Request) -> None:
        state = self._state
        if request.type == RequestType.UNPLUG_ALL:
            state.all_unplugged()
        else:
            first = (request.addr - state.window.base) // state.block_size
            plug = request.type == RequestType.PLUG
            (state.blocks.plug if plug else state.blocks.unplug)(first, request.nb_blocks)

    def _respond(
        self,
        exchange: _Exchange,
        answer: ResponseType,
        *,
        state: BlockState | None = None,
        why: str = "",
    ) -> None:
        plugged = self._state.blocks.plugged_size
        self._ledger.enter(
            self.signals, exchange.request, answer, plugged=plugged, found=state, why=why
        )
        response = messages.response(answer, state)
        exchange.chain.write(response)
        exchange.queue.complete(exchange.chain, len(response))
        if exchange.queue.publish():
            self.signals.queue(exchange.queue.index)


def _attempt(step: Callable[[], None]) -> OSError | HostError | None:
    """Do `step`; what the host said if it refused."""
    try:
        step()
    except (OSError, HostError) as error:
        return error
    return None
