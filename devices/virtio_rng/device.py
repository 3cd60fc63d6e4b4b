"""The entropy device: fills the driver's buffers with the host's random bytes (virtio-spec 5.4)."""

from __future__ import annotations

import os
from collections.abc import Callable

from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.saved import Form, build, parse, require
from minivmm.spec.virtio_rng import DEVICE_ID, REQUEST_QUEUE
from minivmm.virtio.device import DeviceTraits, VirtioDevice
from minivmm.virtio.queue.queue import VirtQueue

_FORM = Form("minivmm.devices.virtio_rng.saved", "RNG")
NO_LIMIT = (1 << 64) - 1
"""What is saved as the bytes left of a period that may have any number."""

MOST_BYTES = 4096
"""Random bytes put into one buffer at most, which the device may do (5.4.6.2): 10 us of work."""


class VirtioRng(VirtioDevice):
    """Random bytes come from the kernel's own generator (getrandom), which never runs dry."""

    traits = DeviceTraits(
        device_id=DEVICE_ID,
        name="virtio-rng",
        queue_sizes=(8,),
        config_size=0,
        pci_class=0x00FF00,  # no class of PCI fits
    )

    def __init__(self, spec: VirtioRngSpec) -> None:
        super().__init__(spec.id, spec)
        self.spec = spec
        self.source: Callable[[int], bytes] = os.urandom
        """Gives so many random bytes; tests that must repeat put their own here."""
        self.given = 0
        """Random bytes that the guest was given in all."""
        self._left = spec.max_bytes
        self._period_runs = False

    def offered_features(self) -> int:
        """None are defined (5.4.3)."""
        return 0

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        """Fill the buffers that wait; what exceeds max-bytes waits for the next period.

        Readable buffers, which drivers must not place, are ignored (5.4.6.1).
        """
        for chain in queue.chains() if self._left != 0 else ():
            size = min(chain.writable, MOST_BYTES, self._left or MOST_BYTES)
            chain.write(self.source(size))
            queue.complete(chain, size)
            self._spend(size)
            if self._left == 0:
                break
        if queue.publish():
            self.signals.queue(index)

    def save_state(self) -> bytes:
        """What was given, and what is left of this period."""
        return build(
            _FORM,
            features=self.features,
            given=self.given,
            left=NO_LIMIT if self._left is None else self._left,
            period_runs=self._period_runs,
        )

    def load_state(self, data: bytes) -> None:
        """Go on with a period that begins now. Raises BadState."""
        name, most = self.identifier, self.spec.max_bytes
        saved = parse(name, _FORM, data)
        left = None if saved.left == NO_LIMIT else saved.left
        fits = left is most if left is None or most is None else left <= most
        require(fits, name, "bytes left", left, f"max-bytes is {most}")
        self.features = saved.features
        self.given = saved.given
        self._left = left
        if saved.period_runs and not self._period_runs:
            self._run_period()

    def inspect(self) -> dict[str, object]:
        """Bytes given so far, and those left in this period (None: no limit)."""
        return {**super().inspect(), "given": self.given, "left": self._left}

    def _spend(self, size: int) -> None:
        self.given += size
        if self._left is None:
            return
        self._left -= size
        if not self._period_runs:
            self._run_period()

    def _run_period(self) -> None:
        self._period_runs = True
        self.errands.later(self.spec.period / 1000, self._begin_period)

    def _begin_period(self) -> None:
        self._period_runs = False
        self._left = self.spec.max_bytes
        self.signals.kick(REQUEST_QUEUE)
