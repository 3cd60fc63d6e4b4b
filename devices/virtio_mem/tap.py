"""What a virtio-mem device tells while somebody follows requests: what is asked, and host work.

The answers are told at any time, by the ledger. See virtio/tap.py for what every device tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from minivmm.devices.virtio_mem import messages
from minivmm.devices.virtio_mem.host_side import HostSide, Work
from minivmm.devices.virtio_mem.ledger import asked_for
from minivmm.devices.virtio_mem.messages import Request
from minivmm.devices.virtio_mem.service import Service
from minivmm.devices.virtio_mem.state import Range
from minivmm.errors import HostError
from minivmm.virtio.device import Signals
from minivmm.virtio.queue.queue import Chain
from minivmm.virtio.tap import Tap

_QUEUE = 0


class ToldHost:
    """`real`, but the steps of its works are told, with what they took; `base` is offset 0's gpa.

    `identifier` is that of the request that works are for; None: of none, the machine resets.
    """

    def __init__(self, real: HostSide, tap: Tap, base: int) -> None:
        self.real = real
        self.identifier: int | None = None
        self._tap = tap
        self._base = base

    def plug(self, offset: int, length: int) -> Work:
        """Give [offset, offset + length) to the guest."""
        work, piece = self.real.plug(offset, length), (offset, length)
        if self.real.guarded:
            work = replace(work, prepare=self._told("allow", work.prepare, piece))
        if work.length:
            work = replace(work, aside=self._told("populate", work.aside, piece))
        return replace(work, finish=self._told("show", work.finish, piece))

    def unplug(self, shown: Sequence[Range], whole: Range) -> Work:
        """Take `shown` (what is plugged) from the guest, and discard `whole`, which contains it."""
        work = self.real.unplug(shown, whole)
        return replace(
            work,
            prepare=self._told("hide", work.prepare, whole),
            aside=self._told("discard", work.aside, whole),
        )

    def _told(self, name: str, step: Callable[[], None], piece: Range) -> Callable[[], None]:
        identifier = self.identifier  # by the time of the step it may be another's

        def told() -> None:
            with self._telling(name, piece, identifier):
                step()

        return told

    @contextmanager
    def _telling(self, name: str, piece: Range, identifier: int | None) -> Iterator[None]:
        fields: dict[str, object] = {} if identifier is None else {"id": identifier}
        fields |= {"gpa": self._base + piece[0], "size": piece[1]}
        began = time.monotonic()
        try:
            yield
        except (OSError, HostError) as error:
            fields["error"] = str(error)
            raise
        finally:
            self._tap.tell(name, **fields, seconds=time.monotonic() - began)


class ToldSignals:
    """`real`, but what is told of a request bears its `identifier`, up to its answer."""

    def __init__(self, real: Signals) -> None:
        self.identifier: int | None = None
        self.queue, self.config, self.kick = real.queue, real.config, real.kick
        self._real = real

    def trace(self, name: str, **fields: object) -> None:
        """Emit an event of the device."""
        if self.identifier is not None:
            fields = {"id": self.identifier, **fields}
        if name == "answer":
            self.identifier = None
        self._real.trace(name, **fields)


def tell_requests(
    service: Service, host: HostSide, signals: Signals, tap: Tap | None, *, base: int, block: int
) -> None:
    """Have `service` tell `tap` what it is asked and does; None: have it no longer tell.

    `host` and `signals` are the real ones, `base` the region's gpa, `block` bytes of a block.
    """
    if tap is None:
        service.host, service.signals = host, signals
        service.read_request = messages.read_request
        return
    told_host, told_signals = ToldHost(host, tap, base), ToldSignals(signals)

    def read_request(chain: Chain) -> Request:
        request = messages.read_request(chain)
        identifier = tap.identify(_QUEUE, chain)
        told_host.identifier = told_signals.identifier = identifier
        tap.tell("request", id=identifier, **asked_for(request, block))
        return request

    service.host, service.signals, service.read_request = told_host, told_signals, read_request
