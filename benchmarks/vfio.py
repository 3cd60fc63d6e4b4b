"""What passthrough costs when memory grows and shrinks: minivmm beside QEMU, in the same lab run.

A passed-on device pins what is plugged. Each figure is the best of some rounds, from the request on
the control socket until everything is plugged, or unplugged; Linux puts memory online as it comes.
Needs a device bound to vfio-pci at ADDRESS; `scripts/bench vfio` has a lab with one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minivmm.control.client import Client
from minivmm.errors import NoSuchMachine
from minivmm.guest.build import build_initramfs
from minivmm.guest.kernels import Kernel, find
from minivmm.matrix.images import Files
from minivmm.matrix.qemu_words import linux_words, machine_words, memory_device_words
from minivmm.units import GIB, MIB

ADDRESS = "0000:00:10.0"
ROUNDS = 3
SETTLE = 10
"""Seconds until Linux has put online what was plugged, which shrinking would wait for."""
PATIENCE = 300
"""Seconds that a guest may take to start, or to change its size."""

COMMAND_LINE = "console=ttyS0 quiet panic=-1 memhp_default_state=online_movable"


def ours(qmp: Path, kernel: Kernel, *, passed_on: bool) -> list[str]:
    """Command line of minivmm."""
    words = [sys.executable, "-m", "minivmm", "boot", str(kernel.image), "--accel", "kvm"]
    words += ["--modules", str(kernel.modules), "-m", "512M", "--qmp", str(qmp)]
    words += ["--device", "virtio-mem-pci,id=vmem0,size=1G,block-size=2M"]
    return words + (["--device", f"vfio-pci,host={ADDRESS}"] if passed_on else [])


def qemu(qmp: Path, files: Files, *, passed_on: bool) -> list[str]:
    """Command line of QEMU for the same machine."""
    words = machine_words(files.kernel, memory=512 * MIB, hotplug=2 * GIB)
    words += [*linux_words(files, COMMAND_LINE), "-serial", "stdio"]
    words += ["-qmp", f"unix:{qmp},server=on,wait=off", "-device", "virtio-serial-pci"]
    words += memory_device_words(GIB, ("block-size=2M",))
    return words + (["-device", f"vfio-pci,host={ADDRESS}"] if passed_on else [])


@contextmanager
def running(command: Sequence[str], qmp: Path) -> Iterator[Client]:
    """The VM that `command` starts, and a connection to it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                client = Client(qmp)
                break
            except NoSuchMachine as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"vfio: {command[0]} did not start: {error}") from error
                time.sleep(0.2)
        with client:
            yield client
    finally:
        process.kill()
        process.wait()
        qmp.unlink(missing_ok=True)


def resize(client: Client, size: int) -> float:
    """Seconds until `size` bytes are plugged."""
    began = time.monotonic()
    client.execute("qom-set", path="vmem0", property="requested-size", value=size)
    while True:
        (device,) = client.execute("query-memory-devices")
        now = time.monotonic()
        if device["data"]["size"] == size:
            return now - began
        if now - began > PATIENCE:
            raise SystemExit(f"vfio: {device['data']['size']} bytes of {size} after {PATIENCE} s")
        time.sleep(0.02)


def measure(command: Sequence[str], qmp: Path) -> tuple[float, float]:
    """Least seconds to grow by a GiB, and to shrink by it again."""
    with running(command, qmp) as client:
        resize(client, GIB)  # once, so that the guest is up; caches are warm
        resize(client, 0)
        grow, shrink = [], []
        for _ in range(ROUNDS):
            grow.append(resize(client, GIB))
            time.sleep(SETTLE)
            shrink.append(resize(client, 0))
    return min(grow), min(shrink)


def main() -> None:
    """Measure all four, print a table."""
    kernel = find("6.12")
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        initrd, qmp = Path(directory, "initrd"), Path(directory, "qmp")
        initrd.write_bytes(build_initramfs(kernel.release, kernel.modules))
        print(f"Linux {kernel.release}, 1 vCPU, blocks of 2M; seconds per GiB, best of {ROUNDS}")
        print(f"{'':<26}{'grow':>8}{'shrink':>8}", flush=True)
        for passed_on in (False, True):
            suffix = ", vfio-pci" if passed_on else ""
            for name, command in (
                ("minivmm", ours(qmp, kernel, passed_on=passed_on)),
                ("QEMU", qemu(qmp, Files(kernel.image, initrd), passed_on=passed_on)),
            ):
                grow, shrink = measure(command, qmp)
                print(f"{name + suffix:<26}{grow:8.2f}{shrink:8.2f}", flush=True)


if __name__ == "__main__":
    main()
