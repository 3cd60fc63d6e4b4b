"""From the start of the process to the guest's first instruction, and `import minivmm`.

The guest's first instructions print a byte on the serial port, which every /dev/kvm that opens can
do; the clock stops when it is read from the VMM's standard output. Where KVM runs stock guests,
QEMU's q35 and microvm take turns with us: there the same kernel image is behind their firmware.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figure, present
from minivmm.accel import probe
from minivmm.matrix.host import in_lab
from minivmm.matrix.qemu_words import MICROVM, Q35, machine_words
from minivmm.testing.tiny_kernel import FOREVER, vmlinux
from minivmm.units import MIB

RUNS = 9
MEMORY = 512 * MIB
HELLO = b"!"
PRINT = b"\x66\xba\xf8\x03\xb0" + HELLO + b"\xee" + FOREVER
"""mov dx, 0x3f8; mov al, HELLO; out dx, al."""

MOST_START, MOST_IMPORT = 250.0, 60.0
"""Goals of issue 9, in milliseconds, on a host; Python in the lab is some 15 times slower."""

IMPORT = "import time; t = time.perf_counter(); import minivmm; print(time.perf_counter() - t)"


def measure(runs: int = RUNS) -> list[Figure]:
    """Start each of them `runs` times, in turns."""
    on_host = not in_lab()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "vmlinux")
        image.write_bytes(vmlinux(PRINT))
        starts = commands(image)
        imports = []
        for _ in range(runs):
            for name, command in starts.items():
                found.setdefault(name, []).append(1000 * until_hello(command))
            imports.append(1000 * import_time())
    ours = found.pop("minivmm")
    goal = MOST_START if on_host else None
    title = "start of the process to the first instruction"
    figures = [Figure(title, "ms", ours, at_most=goal)] if not found else []
    for name, peer in found.items():
        figures.append(Figure(f"{title}, beside {name}", "ms", ours, peer, peer_name=name))
    import_goal = MOST_IMPORT if on_host else None
    return [*figures, Figure("import minivmm", "ms", imports, at_most=import_goal)]


def commands(kernel: Path) -> dict[str, list[str]]:
    """VMM -> what starts it with `kernel`; QEMU only where it can run."""
    ours = [sys.executable, "-P", "-m", "minivmm", "boot", "--accel", "kvm", "-q"]
    found = {"minivmm": [*ours, "-m", str(MEMORY), "-k", str(kernel)]}
    if probe().usable:
        for name, machine in (("q35", Q35), ("microvm", MICROVM)):
            words = machine_words(kernel, machine=machine, memory=MEMORY)
            found[name] = [*words, "-serial", "stdio"]
    return found


def until_hello(command: Sequence[str]) -> float:
    """Seconds from starting `command` until its guest has printed HELLO."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            while byte := process.stdout.read(1):
                if byte == HELLO:
                    return time.perf_counter() - began
            raise SystemExit(f"start: {command[0]} ended with {process.wait()}")
        finally:
            process.kill()


def import_time() -> float:
    """Seconds that a fresh interpreter takes for `import minivmm`."""
    command = [sys.executable, "-P", "-c", IMPORT]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


if __name__ == "__main__":
    present(measure)
