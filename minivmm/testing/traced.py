"""Traced: a virtio-mem device with its driver, and the scene that followers of it see."""

from __future__ import annotations

from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.mem_bench import make_device
from minivmm.tracing.scene import Scene
from minivmm.units import GIB, MIB

BLOCK = 2 * MIB
BASE = 4 * GIB


class Traced(DeviceBench):
    """A bench whose device is `mem`, 1 GiB at 4 GiB and all of it requested. Use as a context.

    `clock` is what the guest's clock shows in seconds, None for guests without.
    """

    def __init__(self) -> None:
        self.mem = make_device(size=GIB, requested_size=GIB)
        super().__init__(self.mem)
        self.driver.start()
        self.clock: float | None = 7.0
        self.scene = Scene(
            self.trace,
            name="work",
            cpus=2,
            spec={"memory": GIB},
            devices=[self.mem],
            clock=lambda: self.clock,
        )

    def ask(self, kind: RequestType, first: int = 0, count: int = 1) -> None:
        """One request, answered."""
        request = MemRequest(type=kind, addr=BASE + first * BLOCK, nb_blocks=count).build()
        self.driver.request(0, request, MemResponse.SIZE)

    def plug(self, first: int, count: int = 1) -> None:
        """Ask for `count` blocks from number `first`."""
        self.ask(RequestType.PLUG, first, count)
