"""Every exception minivmm raises on purpose, and the one table of exit statuses.

    MinivmmError
    ├── UsageError            an option, size or property the user gave is not acceptable
    ├── HostError             the host lacks something: /dev/kvm, a package, memory, permission
    ├── ImageError            a kernel, initrd or module cannot be used
    ├── BadState              a saved machine is damaged, or does not fit this one
    ├── MigrationError        a live migration did not come to its end
    ├── GuestFailure          the guest ended badly: panic, triple fault, never started
    ├── Timeout               our own --timeout fired
    ├── Interrupted           Ctrl-C or SIGTERM ended the work
    ├── NoSuchMachine         no running VM has that name
    ├── WaitTimeout           `--wait` gave up
    ├── Refused               a running VM refused a command (QMP error)
    ├── CommandFailed         a command in the guest, run with check=True, ended with another status
    │                         than 0 (the Python interface)
    ├── GuestAddressError     a guest physical address does not name guest RAM
    └── DeviceBroken          the driver violated the virtqueue format

The last two are caused by the guest: they never leave the device floor as exceptions, but become
an answer or DEVICE_NEEDS_RESET and a trace event.

Messages are one line: what, value, why, remedy.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of the `minivmm` command (shared/CONVENTIONS.md, "Exit codes").

    Control verbs use 0..4; `boot` uses the guest command's own status and 124 and above.
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    WAIT_TIMEOUT = 4
    TIMEOUT = 124
    MINIVMM_FAILED = 125
    INTERRUPTED = 130
    GUEST_DIED = 134


_LONGEST = 300
"""Characters that are shown of what somebody else wrote."""


def _plain(said: object) -> str:
    """`said` without anything that would move a cursor, and not for pages."""
    text = str(said)[:_LONGEST]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class MinivmmError(Exception):
    """Base of everything we raise on purpose; `str()` is the one line shown to the user."""

    control_status: ExitStatus = ExitStatus.FAILED
    """Exit status when a control verb ends with this error."""

    boot_status: ExitStatus = ExitStatus.MINIVMM_FAILED
    """Exit status when `boot` or `lab` ends with this error."""


class UsageError(MinivmmError):
    """An option, size or property that the user gave is not acceptable."""

    control_status = ExitStatus.USAGE


class HostError(MinivmmError):
    """The host lacks something that is needed; the message names the cure."""


class ImageError(MinivmmError):
    """A kernel, initrd or module file cannot be used."""


class BadState(MinivmmError):
    """What was saved of a machine, in a snapshot or a migration stream, is damaged or does not fit.

    `part` ("vmem0", "cpu1", "snapshot"), its `field` and `value`, and `why` that cannot be. All of
    them may be as the file or the other side has them: it becomes one printable line.
    """

    def __init__(self, part: str, field: str, value: object, why: str) -> None:
        line = f"saved state of {_plain(part)}: {_plain(field)} {_plain(value)}: {_plain(why)}"
        super().__init__(line)
        self.part = part
        self.field = field


class MigrationError(MinivmmError):
    """A live migration did not come to its end; the machine is where it was before."""


class GuestFailure(MinivmmError):
    """The guest ended badly: panic, triple fault, or it never became ready."""

    boot_status = ExitStatus.GUEST_DIED


class Timeout(MinivmmError):
    """`--timeout` fired before the work was done."""

    boot_status = ExitStatus.TIMEOUT


class Interrupted(MinivmmError):
    """Ctrl-C or SIGTERM ended the work."""

    control_status = ExitStatus.INTERRUPTED
    boot_status = ExitStatus.INTERRUPTED


class NoSuchMachine(MinivmmError):
    """No running VM has that name."""

    control_status = ExitStatus.NOT_RUNNING


class WaitTimeout(MinivmmError):
    """`--wait` gave up before the guest reached the requested size."""

    control_status = ExitStatus.WAIT_TIMEOUT


class Refused(MinivmmError):
    """A running VM refused a command; `error_class` is QMP's error class."""

    def __init__(self, message: str, error_class: str = "GenericError") -> None:
        super().__init__(message)
        self.error_class = error_class


class IdleRule(UserWarning):
    """A rule by which a device was to misbehave never acted: nothing was tested by it."""


class CommandFailed(MinivmmError):
    """A command in the guest had to succeed and did not; `status` is its exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class GuestAddressError(MinivmmError):
    """[`gpa`, `gpa` + `length`) (bytes) is not entirely accessible guest RAM."""

    def __init__(self, gpa: int, length: int, why: str) -> None:
        super().__init__(f"guest address {gpa:#x}+{length:#x}: {why}")
        self.gpa = gpa
        self.length = length


class DeviceBroken(MinivmmError):
    """The driver violated the virtqueue format; the device needs a reset (GEN-D-2)."""
