"""A saved machine whose bits were changed by one who could mend checksums: refused, or it runs."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.errors import BadState, HostError
from minivmm.machine import Machine
from minivmm.machine_spec import MachineSpec
from minivmm.saved import Section
from minivmm.snapshot.machine import load_machine, save_machine
from minivmm.testing.fake_kvm import FakeSystem
from minivmm.testing.loop_thread import LoopThread
from minivmm.testing.mem_driver import MemDriver
from minivmm.testing.tiny_kernel import tiny_image
from minivmm.units import GIB, MIB


class Bench:
    """Builds machines of one spec on a loop, and has that tell of every exception."""

    def __init__(self, disk: Path) -> None:
        self.thread = LoopThread()
        self.spec = MachineSpec(
            memory=64 * MIB,
            devices=(
                VirtioMemSpec(size=GIB, requested_size=256 * MIB),
                VirtioBlkSpec(file=str(disk), readonly=True),
                VirtioBalloonSpec(),
                VirtioRngSpec(),
            ),
        )

    def build(self) -> Machine:
        return self.thread.run(
            lambda: Machine(
                self.spec,
                tiny_image(),
                FakeSystem(),
                self.thread.loop,
                console=lambda data: None,
                empty=True,
            )
        )

    def locked(self, call: Any) -> Any:
        def with_lock() -> Any:
            with self.thread.loop.lock:
                return call()

        return self.thread.run(with_lock)

    def take(self) -> list[Section]:
        machine, came = self.build(), threading.Event()
        self.locked(machine.start)
        self.locked(lambda: MemDriver(machine.memory_devices["vmem0"]).plug(1, 3))
        self.locked(lambda: machine.board.serial.receive(b"typed"))
        self.locked(lambda: machine.quiesce(came.set))
        assert came.wait(5)
        sections: list[Section] = self.locked(lambda: save_machine(machine))
        self.thread.run(machine.close)
        return sections


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    disk = tmp_path_factory.mktemp("disk") / "disk.img"
    disk.write_bytes(b"")
    os.truncate(disk, MIB)
    made = Bench(disk)
    yield made
    made.thread.settle()
    made.thread.close()
    assert made.thread.errors == []


@pytest.fixture(scope="module")
def sections(bench: Bench) -> list[Section]:
    return bench.take()


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_changed_bits_are_refused_or_run(
    bench: Bench, sections: list[Section], data: st.DataObject
) -> None:
    changed = [*sections]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(sections) - 1))
        content = bytearray(changed[at].data)
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
        changed[at] = dataclasses.replace(changed[at], data=bytes(content))
    machine = bench.build()
    try:
        bench.locked(lambda: load_machine(machine, changed))
        bench.locked(machine.start)
        bench.locked(machine.request_reset)
        bench.thread.settle()
        assert machine.outcome is None
    except (BadState, HostError) as error:
        assert "\n" not in str(error)
    finally:
        bench.thread.run(machine.close)
