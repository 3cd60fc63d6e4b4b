"""Guests for benchmarks, each VMM in a process of its own: minivmm's command line, and QEMU's q35.

Both have the same kernel, initrd, command line, memory and virtio-mem device, and are ready for
commands when they are given out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from minivmm.control.client import Client
from minivmm.guest.kernels import find
from minivmm.matrix.guest import DEVICE_ID, PATIENCE, Setup
from minivmm.matrix.images import Files, Images, command_line
from minivmm.matrix.qemu import QemuGuest
from minivmm.runtime import machine_dir
from minivmm.stats import KVM_DEBUGFS
from minivmm.units import GIB

T = TypeVar("T")

KERNEL = "6.12"
SETUP = Setup(region=4 * GIB)
NAME = "bench"

LOOK, SILENCE = 0.01, 0.3
"""Seconds between two looks at KVM's counters; and without a change, before the VMM is asked."""


@dataclass(frozen=True)
class Running:
    """The process of a VMM whose guest is ready, and its QMP commands."""

    pid: int
    qmp: Callable[..., Any]

    @property
    def cpu_threads(self) -> set[int]:
        """Host threads of the vCPUs."""
        return {cpu["thread-id"] for cpu in self.qmp("query-cpus-fast")}

    @cached_property
    def _requests(self) -> Path:
        """The file in which KVM counts exits that the VMM serves as memory accesses."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        (folder,) = (found for task in tasks for found in KVM_DEBUGFS.glob(f"{task.name}-*"))
        return folder / "mmio_exits"

    @property
    def plugged(self) -> int:
        """What the guest has plugged, in bytes."""
        (device,) = self.qmp("query-memory-devices")
        found = device["data"]["size"]
        assert isinstance(found, int)
        return found

    def resize(self, size: int) -> float:
        """Seconds until `size` bytes are plugged. Raises SystemExit if they never are.

        Each request of the guest is an exit of its own, in both VMMs, so the time of the last one
        is seen in KVM's count. The VMM is asked only after some silence: to answer costs time.
        """
        began = time.monotonic()
        self.qmp("qom-set", path=DEVICE_ID, property="requested-size", value=size)
        requests, last, asked = 0, began, began
        while True:
            time.sleep(LOOK)
            count, now = int(self._requests.read_text()), time.monotonic()
            if count != requests:
                requests, last = count, now
            elif now - max(last, asked) > SILENCE:
                if (plugged := self.plugged) == size:
                    return last - began
                if now - began > PATIENCE:
                    raise SystemExit(f"{plugged} bytes of {size} are plugged, no more")
                asked = now


@contextmanager
def files() -> Iterator[Files]:
    """What guests are booted from; Python takes seconds in the lab to make the initrd."""
    with tempfile.TemporaryDirectory() as folder:
        yield Images(Path(folder)).files(find(KERNEL), SETUP)


@contextmanager
def ours(images: Files, *, setup: Setup = SETUP) -> Iterator[Running]:
    """A guest of minivmm. Raises SystemExit if it does not start."""
    program = [sys.executable, "-P", "-m", "minivmm"]
    words = ["boot", str(images.kernel), "--initrd", str(images.initrd), "--accel", "kvm", "-q"]
    words += ["-n", NAME, "-m", str(setup.memory), "-p", str(setup.cpus), "--console", "hvc0"]
    for option in setup.append:
        words += ["-a", option]
    if setup.device:
        device = f"virtio-mem-pci,id={DEVICE_ID},size={setup.region},requested-size=0"
        words += ["--device", device]
    process = subprocess.Popen([*program, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        wait = ["wait", NAME, "--ready", "--timeout", f"{PATIENCE:g}s"]
        end = time.monotonic() + PATIENCE
        # On a slow host its socket may be there long before somebody answers, which is an error.
        while subprocess.run([*program, *wait], stdout=subprocess.DEVNULL).returncode != 0:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("minivmm's guest does not become ready")
        with Client(machine_dir(NAME).qmp_socket) as client:
            yield Running(process.pid, client.execute)
    finally:
        process.kill()
        process.wait()


@contextmanager
def qemu(images: Files, *, setup: Setup = SETUP) -> Iterator[Running]:
    """A guest of QEMU's q35. Raises HostError, GuestFailure, WaitTimeout if it does not start."""
    with QemuGuest(images, setup, (), command_line(setup)) as guest:
        yield Running(guest.pid, guest.qmp)


def in_turns(runs: int, look: Callable[[Running], T]) -> tuple[list[T], list[T]]:
    """What `look` finds in `runs` guests of minivmm, and in as many of QEMU; one at a time."""
    found: tuple[list[T], list[T]] = [], []
    with files() as images:
        for _ in range(runs):
            for results, boot in zip(found, (ours, qemu), strict=True):
                with boot(images) as running:
                    results.append(look(running))
    return found
