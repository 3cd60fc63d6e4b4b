"""Exits and time to init for one stock kernel: minivmm beside QEMU (q35, SeaBIOS), same run.

Exits are KVM's own count (debugfs) at the moment our init prints its first line. Needs root, KVM
that runs stock kernels, and qemu-system-x86_64; `scripts/bench boot` provides all three.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from minivmm.console_watch import INIT_BANNER
from minivmm.guest.build import build_initramfs
from minivmm.guest.kernels import find
from minivmm.stats import kvm_counters

COMMAND_LINE = "console=ttyS0 quiet panic=-1"
TIMEOUT = 180


@dataclass(frozen=True)
class Boot:
    """One boot to init: seconds from the start of the process, and KVM's counters."""

    seconds: float
    counters: dict[str, int]


def boot(command: list[str]) -> Boot:
    """Start `command`, whose standard output is a serial console; stop it once init speaks."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    seen = b""
    try:
        while INIT_BANNER not in seen:
            data = process.stdout.read1(4096)
            if not data or time.monotonic() - began > TIMEOUT:
                raise SystemExit(
                    f"{command[0]} did not reach init:\n{seen.decode('ascii', 'replace')}"
                )
            seen = seen[-4096:] + data
        return Boot(time.monotonic() - began, kvm_counters(process.pid))
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Boot both, print both and their ratio."""
    kernel = find("6.12")
    initrd = Path("/run/minivmm-bench.initrd")
    initrd.write_bytes(build_initramfs(kernel.release, kernel.modules))
    files = [str(kernel.image), "--initrd", str(initrd)]
    ours = boot([sys.executable, "-m", "minivmm", "boot", *files, "-m", "512M", "--accel", "kvm"])
    machine = "-accel kvm -cpu host -M q35 -m 512M -nodefaults -display none -serial stdio"
    words = [*machine.split(), "-device", "virtio-serial-pci", "-kernel", str(kernel.image)]
    words += ["-initrd", str(initrd), "-append", COMMAND_LINE]
    peer = boot(["qemu-system-x86_64", *words])
    print(f"boot of {kernel.release} with quiet, 512 MiB, 1 vCPU, to the first line of init")
    print(f"{'':<16} {'minivmm':>10} {'QEMU q35':>10} {'ours/peer':>10}")
    rows = [(name, ours.counters[name], peer.counters[name]) for name in ours.counters]
    for name, mine, other in [*rows, ("seconds", ours.seconds, peer.seconds)]:
        ratio = f"{mine / other:.2f}" if other else "-"
        shown = [
            f"{value:.2f}" if isinstance(value, float) else str(value) for value in (mine, other)
        ]
        print(f"{name:<16} {shown[0]:>10} {shown[1]:>10} {ratio:>10}")


if __name__ == "__main__":
    main()
