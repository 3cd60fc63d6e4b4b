"""The block device: features, configuration, and batches of requests (virtio-spec 5.2).

    requests that wait -> copied under the lock -> done aside, in order -> answered under the lock

One batch is at work at a time and has a thread of its own; what arrives meanwhile is the next one.
A flush thus comes after all that was completed before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from minivmm.devices.virtio_blk.requests import (
    MOST_DISCARDED,
    MOST_SEGMENTS,
    MOST_ZEROED,
    Abilities,
    Request,
    finish,
    perform,
    read_request,
)
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.errors import HostError
from minivmm.saved import Form, build, parse, require
from minivmm.spec.virtio_blk import DEVICE_ID, SECTOR, BlkConfig, Feature, Status
from minivmm.units import MIB
from minivmm.virtio.device import DeviceTraits, VirtioDevice
from minivmm.virtio.errands import Job
from minivmm.virtio.queue.queue import VirtQueue

_FORM = Form("minivmm.devices.virtio_blk.saved", "BLK")

QUEUE_SIZE = 128
BATCH_BYTES = 8 * MIB
"""A batch with so much data takes no more requests: copying it takes about a millisecond.

It bounds as well how long a reset waits for a batch, with the lock held.
"""

_MOST_DESCRIPTORS = 126
"""Data descriptors that we ask drivers to keep to; header and status need two more (as QEMU)."""
_ALIGNMENT = 8
"""Sectors in a block of most file systems: smaller discards free nothing."""
_WRITEBACK = BlkConfig.OFFSETS["writeback"]


@dataclass(frozen=True)
class _Batch:
    """Requests that are being performed."""

    queue: VirtQueue
    requests: list[Request]
    job: Job


class VirtioBlk(VirtioDevice):
    """The disk in `spec.file`. Construction raises HostError if that is not fit to be one."""

    traits = DeviceTraits(
        device_id=DEVICE_ID,
        name="virtio-blk",
        queue_sizes=(QUEUE_SIZE,),
        config_size=BlkConfig.SIZE,
        pci_class=0x010000,  # mass storage controller, SCSI, as QEMU has it
    )

    def __init__(self, spec: VirtioBlkSpec) -> None:
        super().__init__(spec.id, spec)
        self.spec = spec
        self.disk = spec.open()
        self.failures = 0
        """Requests that were not done."""
        self._can = Abilities(
            discard=spec.discard,
            write_zeroes=spec.write_zeroes,
            serial=(spec.serial or "").encode(),
        )
        self._writeback = True
        self._batch: _Batch | None = None

    def offered_features(self) -> int:
        """What the user allows; writes to a read-only disk are not offered in any form."""
        offered = Feature.SEG_MAX | Feature.BLK_SIZE | Feature.FLUSH
        if self.spec.readonly:
            return offered | Feature.RO
        offered |= Feature.CONFIG_WCE
        if self.spec.discard:
            offered |= Feature.DISCARD
        if self.spec.write_zeroes:
            offered |= Feature.WRITE_ZEROES
        return offered

    def accept_features(self, features: int) -> bool:
        """A driver that cannot flush gets a disk without a cache (5.2.5.2, 5.2.6.2)."""
        self._writeback = bool(features & Feature.FLUSH)
        return super().accept_features(features)

    def config_space(self) -> bytes:
        """struct virtio_blk_config as of now."""
        size = self.options.queue_size or QUEUE_SIZE
        discards = self.spec.discard and not self.spec.readonly
        zeroes = self.spec.write_zeroes and not self.spec.readonly
        return BlkConfig(
            capacity=self.disk.size // SECTOR,
            seg_max=max(1, min(size - 2, _MOST_DESCRIPTORS)),
            blk_size=SECTOR,
            writeback=self._writeback,
            num_queues=1,
            max_discard_sectors=MOST_DISCARDED if discards else 0,
            max_discard_seg=MOST_SEGMENTS if discards else 0,
            discard_sector_alignment=_ALIGNMENT if discards else 0,
            max_write_zeroes_sectors=MOST_ZEROED if zeroes else 0,
            max_write_zeroes_seg=int(zeroes),
            write_zeroes_may_unmap=zeroes,
        ).build()

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver switches the cache on or off; nothing else is writable (CONFIG_WCE)."""
        if offset == _WRITEBACK and len(data) == 1 and self.features & Feature.CONFIG_WCE:
            self._writeback = bool(data[0])
            self.signals.trace("writeback", on=self._writeback)

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        """Begin a batch, unless one is at work. Raises DeviceBroken for malformed requests."""
        if self._batch is not None:
            if not self._batch.job.over:
                return  # its end has the queue handled again
            self._conclude()
        requests = self._take(queue)
        if not requests:
            return
        work = self._work(requests, through=not self._writeback)
        job = self.errands.aside(work, lambda: self.signals.kick(index))
        self._batch = _Batch(queue, requests, job)
        if job.over:
            self._conclude()
            self.signals.kick(index)  # more may wait than a batch takes

    def conclude(self) -> None:
        """Answer the batch at work, if it is over."""
        if self._batch is not None and self._batch.job.over:
            self._conclude()

    def forget_queue(self, index: int) -> None:
        """What is at work is finished first (GEN-D-7)."""
        self._finish()

    def reset(self) -> None:
        """The same, and the cache is on again (GEN-D-5)."""
        self._finish()
        self._writeback = True
        self.features = 0

    def save_state(self) -> bytes:
        """What the driver chose, and what the file is like; all written data is stable by then.

        Raises HostError if the host cannot make it so.
        """
        try:
            self.disk.flush()
        except OSError as error:
            raise HostError(
                f"{self.identifier}: {self.spec.file} cannot be flushed: {error.strerror}: the"
                " disk may have lost data, and must not be saved"
            ) from error
        return build(
            _FORM,
            features=self.features,
            size=self.disk.size,
            changed=self.disk.changed,
            writeback=self._writeback,
            failures=self.failures,
        )

    def load_state(self, data: bytes) -> None:
        """Go on with a file that has the content of then. Raises BadState."""
        name, disk = self.identifier, self.disk
        saved = parse(name, _FORM, data)
        require(saved.size == disk.size, name, "size", saved.size, f"the file has {disk.size}")
        if saved.changed and disk.changed:
            same = saved.changed == disk.changed
            require(same, name, "file", self.spec.file, _changed(saved.changed, disk.changed))
        self.features = saved.features
        self._writeback = saved.writeback
        self.failures = saved.failures

    def close(self) -> None:
        """Let go of the file."""
        self.disk.close()

    def inspect(self) -> dict[str, object]:
        """The disk, and what is at work."""
        return {
            **super().inspect(),
            "file": self.spec.file,
            "size": self.disk.size,
            "readonly": self.spec.readonly,
            "writeback": self._writeback,
            "at-work": len(self._batch.requests) if self._batch else 0,
            "failures": self.failures,
        }

    # -- inside ------------------------------------------------------------------------------------

    def _take(self, queue: VirtQueue) -> list[Request]:
        """Requests that wait, copied, up to BATCH_BYTES of them."""
        requests: list[Request] = []
        size = 0
        for chain in queue.chains():
            requests.append(read_request(chain))
            size += requests[-1].size
            if size >= BATCH_BYTES:
                break
        return requests

    def _work(self, requests: list[Request], *, through: bool) -> Callable[[], None]:
        """What a batch does to the disk; `through`: its writes are stable when it is over."""

        def work() -> None:
            for request in requests:
                perform(request, self.disk, self._can)
            if through and any(request.writes for request in requests):
                self._flush_for(requests)

        return work

    def _flush_for(self, requests: list[Request]) -> None:
        try:
            self.disk.flush()
        except OSError as error:
            for request in requests:
                if request.writes and request.status is Status.OK:
                    request.status, request.why = Status.IOERR, error.strerror or str(error)

    def _finish(self) -> None:
        """Wait for the batch at work, if there is one, and conclude it."""
        if self._batch is not None:
            self._batch.job.wait()
            self._conclude()

    def _conclude(self) -> None:
        """The batch is over: answer its requests."""
        batch, self._batch = self._batch, None
        assert batch is not None
        if batch.job.error is not None:
            raise batch.job.error  # a bug of ours: the transport breaks the device and says so
        for request in batch.requests:
            if request.status is not Status.OK:
                self._note(request)
            batch.queue.complete(request.chain, finish(request))
        if batch.queue.publish():
            self.signals.queue(batch.queue.index)

    def _note(self, request: Request) -> None:
        self.failures += 1
        self.signals.trace(
            "failed",
            type=request.type,
            sector=request.sector,
            answer=request.status.name,
            why=request.why,
        )


def _changed(then: int, now: int) -> str:
    """What is said of a file that was written between two times, in nanoseconds since 1970."""
    return (
        f"it was last written at {_moment(now)}, when saved at {_moment(then)}, and the guest does"
        " not expect other content: put that of then back, with its time (cp -p; touch -d)"
    )


def _moment(nanoseconds: int) -> str:
    """As touch(1) reads it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(min(seconds, 10**11), UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
