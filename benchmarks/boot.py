"""Seconds and exits to init for one stock kernel: minivmm beside QEMU's q35 and microvm, in turns.

Time runs from the start of the process to the first line of our init on the serial console; exits
are KVM's own count (debugfs) at that moment. Needs root, KVM that runs stock kernels, and QEMU.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, present
from minivmm.console_watch import INIT_BANNER
from minivmm.guest.kernels import find
from minivmm.matrix.guest import Setup
from minivmm.matrix.images import Files, Images, command_line
from minivmm.matrix.processes import counters_of
from minivmm.matrix.qemu_words import MICROVM, Q35, linux_words, machine_words
from minivmm.units import MIB

RUNS = 3
KERNEL = "6.12"
MEMORY = 512 * MIB
TIMEOUT = 180.0
"""Seconds after which a guest that has not reached init never will."""

MOST_EXITS = 2000
MOST_OF_Q35 = 0.7
"""Goals of issue 9."""


@dataclass(frozen=True)
class Boot:
    """One boot to init: seconds from the start of the process, and KVM's counters."""

    seconds: float
    counters: dict[str, int]


def boot(command: Sequence[str]) -> Boot:
    """Start `command`, whose standard output is a serial console; stop it once init speaks."""
    began = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert isinstance(process.stdout, io.BufferedReader)
        seen = b""
        try:
            while INIT_BANNER not in seen:
                data = process.stdout.read1(4096)
                if not data or time.monotonic() - began > TIMEOUT:
                    text = seen.decode("ascii", "replace")
                    raise SystemExit(f"boot: {command[0]} did not reach init:\n{text}")
                seen = seen[-4096:] + data
            return Boot(time.monotonic() - began, counters_of(process.pid))
        finally:
            process.terminate()


def commands(files: Files) -> dict[str, list[str]]:
    """VMM -> what starts it with the guest of `files`."""
    ours = [sys.executable, "-P", "-m", "minivmm", "boot", "--accel", "kvm", "-m", str(MEMORY)]
    linux = [*linux_words(files, command_line(Setup())), "-serial", "stdio"]
    peers = {
        name: [*machine_words(files.kernel, machine=machine, memory=MEMORY), *linux]
        for name, machine in (("q35", Q35), ("microvm", MICROVM))
    }
    return {"minivmm": [*ours, str(files.kernel), "--initrd", str(files.initrd)], **peers}


def measure(runs: int = RUNS) -> list[Figure]:
    """Boot each of them `runs` times, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        starts = commands(Images(Path(folder)).files(find(KERNEL), Setup()))
        found: dict[str, list[Boot]] = {name: [] for name in starts}
        for _ in range(runs):
            for name, command in starts.items():
                found[name].append(boot(command))
    ours = found.pop("minivmm")
    return [one for name, peer in found.items() for one in _figures(name, ours, peer)]


def _figures(name: str, ours: Sequence[Boot], peer: Sequence[Boot]) -> list[Figure]:
    main = name == "q35"
    return [
        Figure(
            f"boot to init, beside {name}",
            "s",
            [one.seconds for one in ours],
            [one.seconds for one in peer],
            peer_name=name,
            ratio_at_most=MOST_OF_Q35 if main else None,
        ),
        Figure(
            f"exits until init, beside {name}",
            "exits",
            [one.counters["kvm exits"] for one in ours],
            [one.counters["kvm exits"] for one in peer],
            peer_name=name,
            at_most=MOST_EXITS if main else None,
            detail={
                f"{who} {kind.removeprefix('kvm ')}": count
                for who, boots in (("minivmm", ours), (name, peer))
                for kind, count in boots[-1].counters.items()
            },
        ),
    ]


if __name__ == "__main__":
    present(measure)
