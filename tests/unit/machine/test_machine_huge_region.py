"""A region of 1 TiB costs about as little as one of 1 GiB, in time, in memory, and in KVM."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minivmm.boot.cpuid import host_phys_bits
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import HostError
from minivmm.kvm.hypervisor import Hypervisor
from minivmm.kvm.system import System
from minivmm.machine import Machine
from minivmm.machine_spec import MachineSpec
from minivmm.testing.fake_kvm import FakeSystem
from minivmm.units import GIB, MIB, TIB

ROUNDS = 3
"""The quickest counts: other processes may want the CPU, too."""


@dataclass(frozen=True)
class Cost:
    seconds: float
    resident: int
    """Bytes that the process grew by."""


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cost(loop_thread: Any, image: Any, system: Hypervisor, size: int) -> Cost:
    """Of building a machine with a region of `size` bytes and plugging its last block."""
    spec = MachineSpec(memory=64 * MIB, devices=(VirtioMemSpec(size=size, protect="report"),))
    found = []
    for _ in range(ROUNDS):
        before, started = resident(), time.monotonic()
        machine = loop_thread.run(
            lambda: Machine(spec, image, system, loop_thread.loop, console=lambda _: None)
        )
        device = machine.memory_devices["vmem0"]
        machine.board.memory.plug(device.slot, size - device.block_size, device.block_size)
        found.append(Cost(time.monotonic() - started, resident() - before))
        assert machine.memslots == 2
        loop_thread.run(machine.close)
    return Cost(min(c.seconds for c in found), max(c.resident for c in found))


@pytest.fixture(params=["fake", pytest.param("kvm", marks=pytest.mark.kvm)])
def open_system(request: pytest.FixtureRequest) -> Callable[[], Hypervisor]:
    if request.param == "fake":
        return FakeSystem
    try:
        System().close()
    except HostError as error:
        pytest.skip(f"no usable KVM here: {error}")
    return System


def test_a_huge_region_costs_no_more_than_a_small_one(
    open_system: Callable[[], Hypervisor], loop_thread: Any, tiny_image: Any
) -> None:
    system = open_system()
    wide = host_phys_bits(system.supported_cpuid()) > 41

    small = cost(loop_thread, tiny_image, system, GIB)
    huge = cost(loop_thread, tiny_image, system, TIB if wide else TIB // 2)

    assert huge.resident - small.resident < 64 * MIB
    assert huge.seconds - small.seconds < 0.1
    system.close()
