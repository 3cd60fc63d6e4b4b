"""The request path without a guest: doorbell, ring, device model, used ring, message; per format.

An in-process driver fills the ring as Linux does (one indirect table per request), and only the
device's side is timed. Split and packed take turns in the same run; the best turn of each counts,
as everything else on the machine only adds. The same device model without a ring shows what bounds
both. Figures are microseconds of one core, the interpreter's lock held all the time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.memory.layout import Window
from minivmm.memory.region import Region
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.testing.driver import DeviceBench
from minivmm.testing.echo import EchoDevice
from minivmm.testing.fake_queue import FakeChain, FakeQueue
from minivmm.units import GIB
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.options import VirtioOptions

TURNS = 12
REQUESTS = 320
"""Requests of a turn."""
BATCHES = (1, 32)
"""Requests in the ring at a doorbell."""
WINDOW = Window(4 * GIB, GIB)


@dataclass(frozen=True)
class Model:
    """A device model and a request to it."""

    name: str
    make: Callable[[VirtioOptions], VirtioDevice]
    request: bytes
    answer: int
    """Bytes of room for the answer."""


def _echo(options: VirtioOptions) -> VirtioDevice:
    device = EchoDevice()
    device.options = options
    return device


def _memory(options: VirtioOptions) -> VirtioDevice:
    spec = VirtioMemSpec(size=WINDOW.size, packed=options.packed, event_idx=options.event_idx)
    return VirtioMem(spec, WINDOW, Region(spec.size, spec.host_memory))


STATE = MemRequest(type=RequestType.STATE, addr=WINDOW.base, nb_blocks=1).build()
MODELS = (
    Model("echo of 10 bytes", _echo, bytes(24), 10),
    Model("virtio-mem STATE", _memory, STATE, MemResponse.SIZE),
)
FORMATS = {"split": VirtioOptions(), "packed": VirtioOptions(packed=True)}


def turn(bench: DeviceBench, model: Model, batch: int) -> float:
    """Microseconds per request of one turn, `batch` requests at each doorbell."""
    ring, kick = bench.driver.queues[0], bench.function.transport.kick
    spent = 0.0
    for _ in range(REQUESTS // batch):
        for _ in range(batch):
            ring.add([model.request], [model.answer], direct=0)
        began = time.thread_time()
        kick(0)
        spent += time.thread_time() - began
        assert len(ring.collect()) == batch, "requests were lost"
        bench.irq.take()
    return spent / REQUESTS * 1e6


def without_ring(model: Model, batch: int) -> float:
    """The same by the device model alone."""
    with DeviceBench(model.make(VirtioOptions())) as bench:
        bench.driver.start()
        spent = 0.0
        for _ in range(REQUESTS // batch):
            queue = FakeQueue(*(FakeChain(model.request, model.answer) for _ in range(batch)))
            began = time.thread_time()
            bench.device.handle_queue(0, queue)
            spent += time.thread_time() - began
            bench.irq.take()
        return spent / REQUESTS * 1e6


def measure(model: Model, batch: int) -> tuple[dict[str, float], float]:
    """Best turn of each format, and of none, in microseconds per request."""
    benches = {name: DeviceBench(model.make(options)) for name, options in FORMATS.items()}
    for bench in benches.values():
        bench.driver.start()
    best = dict.fromkeys(benches, float("inf"))
    alone = float("inf")
    for _ in range(TURNS):
        for name, bench in benches.items():
            best[name] = min(best[name], turn(bench, model, batch))
        alone = min(alone, without_ring(model, batch))
    for bench in benches.values():
        bench.close()
    return best, alone


def main() -> int:
    """Print the table."""
    columns = f"{'split':>19}{'packed':>19}{'packed/split':>14}{'model':>9}"
    print(f"{'request':<18}{'a kick':>7}{columns}")
    for model in MODELS:
        for batch in BATCHES:
            best, alone = measure(model, batch)
            cells = "".join(f"{1e6 / us:>9.0f}/s{us:>5.1f} us" for us in best.values())
            ratio = best["packed"] / best["split"]
            print(f"{model.name:<18}{batch:>7}{cells}{ratio:>14.2f}{alone:>6.1f} us")
    print("model: the device model alone, without a ring; the rest is the ring's part")
    return 0


if __name__ == "__main__":
    sys.exit(main())
