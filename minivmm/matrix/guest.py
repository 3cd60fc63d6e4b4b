"""The guest of a scenario, whichever VMM it runs on: what can be asked of it, and how it is made.

    minivmm.matrix.ours    minivmm's own, in this process
    minivmm.matrix.qemu    QEMU's, as a process

All that is timed here is timed on the host's clock, and in the same way for both: by looking.
"""

from __future__ import annotations

import base64
import shlex
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from minivmm.closing import Closing
from minivmm.errors import CommandFailed, MinivmmError, WaitTimeout
from minivmm.guest.next_kernel import INITRD, KERNEL, load_program, start_program
from minivmm.units import GIB, MIB, align_down, format_size, parse_size

DEVICE_ID = "vmem0"
"""What the virtio-mem device of every guest is called."""

REGION = 2 * GIB
"""Bytes of the device's region in guests of scenarios."""

SHORTEST_LOOK, LONGEST_LOOK = 0.001, 0.05
"""Seconds between two looks at what is plugged; between, it is a fiftieth of the time so far."""

BLOCK = 128 * MIB
"""Bytes of a memory block of Linux in guests of this size (x86-64, less than 64 GiB)."""

QUIET = 15.0
"""Seconds without a change after which a resize is over; far less than Linux' timer of 50 s."""

PATIENCE = 180.0
"""Seconds that a resize, or a start, may take; slow hosts emulate every step."""

TAIL = 40
"""Lines of the console that are kept of a guest that failed."""

COMMAND_TIME = 120.0
"""Seconds that a command in the guest may take."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A guest to boot; scenarios with an equal one may share a guest."""

    memory: int = 512 * MIB
    cpus: int = 1
    append: tuple[str, ...] = ()
    """Words for the kernel's command line."""
    device: bool = True
    """Whether there is a virtio-mem device."""
    region: int = REGION
    """Bytes of its region."""
    balloon: bool = False
    """Whether there is a balloon beside it."""
    next_kernel: bool = False
    """Whether the guest has the files for `Guest.kexec`."""


PLAIN = Setup()
"""The guest that most scenarios have."""


@dataclass(frozen=True)
class Resized:
    """How a resize came out: bytes, and seconds until the last change of what is plugged."""

    before: int
    requested: int
    plugged: int
    seconds: float

    @property
    def done(self) -> bool:
        """Whether exactly what was asked for is plugged."""
        return self.plugged == self.requested

    @property
    def fraction(self) -> float:
        """The part of the way that it went, 0 to 1."""
        way = self.requested - self.before
        return 1.0 if way == 0 else (self.plugged - self.before) / way

    @property
    def seconds_per_gib(self) -> float | None:
        """Seconds for each GiB that came or went; None if nothing did."""
        moved = abs(self.plugged - self.before)
        return self.seconds * GIB / moved if moved else None

    def check(self) -> Resized:
        """Itself. Raises Failed if it is not done."""
        if not self.done:
            raise Failed(
                f"asked to go from {format_size(self.before)} to {format_size(self.requested)},"
                f" it stayed at {format_size(self.plugged)}"
            )
        return self


class Skipped(MinivmmError):
    """A scenario cannot be run with this kernel or VMM; the message says why."""


class Failed(MinivmmError):
    """A scenario did not come out as it must; the message is the reason in its cell."""


@dataclass(frozen=True)
class HostUse:
    """What a guest costs its host: open files and threads of the VMM's process, bytes."""

    fds: int
    threads: int
    resident: int
    """Host memory of the VMM, without the guest's memory."""
    held: int
    """Host memory of the virtio-mem region beyond what is plugged."""


@dataclass(frozen=True)
class Ran:
    """A command that ended in the guest."""

    status: int
    stdout: str
    stderr: str = ""


@dataclass(frozen=True)
class BootCost:
    """Seconds from the VMM's start of the machine until the guest runs commands; exits by then."""

    seconds: float
    exits: int | None = None
    """Exits of the guest by then, those that KVM handles as well; None where it does not tell."""


class Guest(Closing):
    """A guest with the agent of minivmm's initramfs, and one virtio-mem device."""

    vmm: str
    boot: BootCost
    amount: int = GIB
    """Bytes by which scenarios grow it; the suite says."""

    @abstractmethod
    def run(self, command: str, timeout: float = COMMAND_TIME) -> Ran:
        """Run `command` by the guest's shell. Raises MinivmmError if the guest does not."""

    @property
    @abstractmethod
    def requested(self) -> int:
        """What the guest should have plugged, in bytes."""

    @property
    @abstractmethod
    def plugged(self) -> int:
        """What it has."""

    @abstractmethod
    def qmp(self, command: str, **arguments: object) -> object:
        """What a QMP command returns. Raises Refused."""

    @abstractmethod
    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """Return once a guest that was reset, or starts a kernel, runs commands again."""

    @abstractmethod
    def host_use(self) -> HostUse:
        """What it costs the host now."""

    @abstractmethod
    def console(self) -> str:
        """The end of what the guest printed."""

    # -- made of those -----------------------------------------------------------------------------

    def request(self, size: int) -> None:
        """Set what the guest should have plugged, in bytes."""
        self.qmp("qom-set", path=DEVICE_ID, property="requested-size", value=size)

    def reset(self) -> None:
        """Push the reset button; `wait_ready` waits for the new start."""
        self.qmp("system_reset")

    def part(self, divisor: int) -> int:
        """A part of `amount`, of whole memory blocks of Linux: 128 MiB at least."""
        return max(BLOCK, align_down(self.amount // divisor, BLOCK))

    def shell(self, script: str, timeout: float = COMMAND_TIME) -> str:
        """What `script` prints; it must end with 0. Raises CommandFailed."""
        ran = self.run(script, timeout)
        if ran.status != 0:
            said = (ran.stderr.strip() or ran.stdout.strip()).rpartition("\n")[2]
            raise CommandFailed(
                f"{script.strip()[:60]!r} ended with status {ran.status}: {said or 'no output'}",
                ran.status,
            )
        return ran.stdout.strip()

    def memory_total(self) -> int:
        """MemTotal of the guest, in bytes."""
        return 1024 * int(self.shell("read -r _ n _ </proc/meminfo; echo $n"))

    def resize(self, size: int | str, *, quiet: float | None = None) -> Resized:
        """Ask for `size` bytes, or "1G"; wait until it is there, or `quiet` s brought no change.

        It does not raise for a guest that does not do it: `check()` the result.
        """
        target = parse_size(size) if isinstance(size, str) else size
        before = self.plugged
        began = time.monotonic()
        self.request(target)
        plugged, at = self._settle(target, began, before, QUIET if quiet is None else quiet)
        return Resized(before, target, plugged, at - began)

    def reboot(self) -> float:
        """Reset the guest and wait until it runs commands; seconds that took."""
        began = time.monotonic()
        self.reset()
        self.wait_ready()
        return time.monotonic() - began

    def kexec(self) -> float:
        """Have the guest start another kernel, its own once more; seconds until that is ready.

        For a guest with Setup.next_kernel.
        """
        line = self.shell("cat /proc/cmdline")
        self._put("load", load_program(line))
        self.shell(f"/tmp/load 3<{KERNEL} 4<{INITRD}")
        self._put("start", start_program())
        self.shell("(sleep 0.5; /tmp/start) </dev/null >/dev/null 2>&1 &")
        began = time.monotonic()
        self.wait_ready()
        return time.monotonic() - began - 0.5

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Ask `condition` until it holds. Raises WaitTimeout, naming `what`."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise WaitTimeout(f"no {what} within {seconds:g} s")
            time.sleep(0.1)

    def _settle(self, target: int, began: float, plugged: int, quiet: float) -> tuple[int, float]:
        """What is plugged in the end, and when (CLOCK_MONOTONIC) that was first seen."""
        changed = began
        while True:
            seen, now = self.plugged, time.monotonic()
            if seen != plugged:
                plugged, changed = seen, now
            if plugged == target:
                return plugged, now if changed == began else changed
            if now - changed > quiet or now - began > PATIENCE:
                return plugged, changed
            time.sleep(min(LONGEST_LOOK, max(SHORTEST_LOOK, (now - began) / 50)))

    def _put(self, name: str, program: bytes) -> None:
        text = shlex.quote(base64.b64encode(program).decode())
        self.shell(f"echo {text} | base64 -d >/tmp/{name} && chmod +x /tmp/{name}")
