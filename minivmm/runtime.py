"""Where running VMs and cached files live on the host (shared/CONVENTIONS.md, "Sockets and files").

A running VM owns one directory NAME under the runtime directory, holding qmp.sock, exec.sock,
trace.sock, console.sock, pid and spec.json. This module knows paths and liveness; it does not
speak on the sockets.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from minivmm.errors import HostError, NoSuchMachine, UsageError

SOCKET_PATH_MAX = 107
"""Longest AF_UNIX path in bytes (sun_path is 108 with its terminator; unix(7))."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def runtime_root() -> Path:
    """Directory that holds one directory per running VM; created with mode 0700."""
    override = os.environ.get("MINIVMM_RUNTIME_DIR")
    if override:
        root = Path(override)
    elif os.environ.get("XDG_RUNTIME_DIR"):
        root = Path(os.environ["XDG_RUNTIME_DIR"]) / "minivmm"
    else:
        root = Path(f"/tmp/minivmm-{os.getuid()}")
    _make(root, "runtime directory", "MINIVMM_RUNTIME_DIR")
    if root.lstat().st_uid != os.getuid():  # not stat: in /tmp anybody can put a link to ours
        raise HostError(
            f"runtime directory {root} belongs to another user: set MINIVMM_RUNTIME_DIR to your own"
        )
    return root


def cache_root() -> Path:
    """Directory for kernels and initramfs images; created when missing."""
    base = os.environ.get("XDG_CACHE_HOME")
    root = (Path(base) if base else _home() / ".cache") / "minivmm"
    _make(root, "cache directory", "XDG_CACHE_HOME")
    return root


def config_file() -> Path:
    """The user's configuration, which need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else _home() / ".config") / "minivmm" / "config.json"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and no entry in passwd
        raise HostError("the home directory of this user is unknown: set HOME") from None


def _make(directory: Path, what: str, variable: str) -> None:
    """Create `directory` for this user alone, if it is missing. Raises HostError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"{what} {directory} cannot be made: {error.strerror}: set {variable} to a place"
            " where you may write"
        ) from None


@dataclass(frozen=True)
class MachineDir:
    """The runtime directory of one VM: paths only, whether or not it runs."""

    path: Path

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.path.name

    @property
    def qmp_socket(self) -> Path:
        """QMP control socket."""
        return self.path / "qmp.sock"

    @property
    def exec_socket(self) -> Path:
        """Socket for `minivmm exec` (minivmm.frames on the wire)."""
        return self.path / "exec.sock"

    @property
    def trace_socket(self) -> Path:
        """Socket of the event stream (docs/trace.md)."""
        return self.path / "trace.sock"

    @property
    def console_socket(self) -> Path:
        """Socket of the console: raw bytes both ways, for any number of clients."""
        return self.path / "console.sock"

    @property
    def gdb_socket(self) -> Path:
        """Socket for GDB, in a lab; elsewhere `boot --gdb` says where."""
        return self.path / "gdb.sock"

    @property
    def sockets(self) -> tuple[Path, ...]:
        """All of them."""
        return (
            self.qmp_socket,
            self.exec_socket,
            self.trace_socket,
            self.console_socket,
            self.gdb_socket,
        )

    @property
    def pid_file(self) -> Path:
        """File with the decimal pid of the `minivmm boot` process."""
        return self.path / "pid"

    @property
    def spec_file(self) -> Path:
        """JSON of the machine's spec, as `--config` takes it."""
        return self.path / "spec.json"

    def pid(self) -> int | None:
        """Pid of the `minivmm boot` process; None once it is gone."""
        try:
            return int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None

    def alive(self) -> bool:
        """True if something answers on the control socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2.0)
            try:
                probe.connect(str(self.qmp_socket))
            except OSError:
                return False
            return True

    def owned(self) -> bool:
        """True while the process that claimed the directory lives (it may still be starting).

        It holds a lock on the pid file; unlike a pid, a lock cannot come to mean another process.
        """
        try:
            probe = os.open(self.pid_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(probe)
        return False

    def remove(self) -> None:
        """Delete the directory and what we put in it; a missing one is fine.

        Nothing else is touched: the runtime directory may be a place that has other things too.
        """
        for file in (*self.sockets, self.spec_file, self.pid_file):
            with contextlib.suppress(OSError):
                file.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()
        lock = _locks.pop(self.path, None)
        if lock is not None:
            os.close(lock)


_locks: dict[Path, int] = {}
"""Open pid files of the directories that this process claimed; their locks end with the process."""


def machine_dir(name: str) -> MachineDir:
    """The directory of VM `name`. Raises UsageError for names that make bad paths."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"VM name {name!r} is not usable: letters, digits, '.', '_' and '-', at most 64,"
            " starting with a letter or digit"
        )
    found = MachineDir(runtime_root() / name)
    longest = max(found.sockets, key=lambda path: len(path.name))
    length = len(os.fsencode(longest))
    if length > SOCKET_PATH_MAX:
        raise HostError(
            f"socket path {longest} has {length} bytes, the system's limit is"
            f" {SOCKET_PATH_MAX}: use a shorter name or set MINIVMM_RUNTIME_DIR"
        )
    return found


def claim(name: str) -> MachineDir:
    """Create the directory for a VM about to start, replacing a stale one.

    Raises UsageError if a VM of that name runs already.
    """
    found = machine_dir(name)
    # Made elsewhere and moved into place complete, so that nobody takes it for a stale one.
    staging = MachineDir(found.path.with_name(f".{name}.{os.getpid()}"))
    staging.remove()
    try:
        staging.path.mkdir(mode=0o700)
        lock = os.open(staging.pid_file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(
            f"cannot write to runtime directory {found.path.parent}: {error.strerror}:"
            " set MINIVMM_RUNTIME_DIR to another"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, f"{os.getpid()}\n".encode())
        if found.path.exists() and not (found.alive() or found.owned()):
            found.remove()
        staging.path.rename(found.path)
    except OSError:  # a directory that is not empty is in the way
        os.close(lock)
        staging.remove()
        if not (found.alive() or found.owned()):
            raise HostError(
                f"{found.path} is in the way, and not ours: remove it, or choose another name (-n)"
            ) from None
        raise UsageError(
            f"a VM named {name!r} is running already: choose another with -n, or"
            f" `minivmm stop {name}`"
        ) from None
    _locks[found.path] = lock
    return found


def free_name() -> str:
    """The first of vm1, vm2, ... that no VM uses."""
    taken = {entry.name for entry in running()}
    return next(name for n in range(1, 100_000) if (name := f"vm{n}") not in taken)


def running() -> list[MachineDir]:
    """All live VMs by name; directories that nothing answers for are removed on the way."""
    found: list[MachineDir] = []
    for path in sorted(runtime_root().iterdir()):
        entry = MachineDir(path)
        if not path.is_dir() or not _NAME.fullmatch(path.name):
            continue
        if entry.alive() or entry.owned():
            found.append(entry)
        else:
            entry.remove()
    return found


def starting(name: str | None) -> bool:
    """Is `name`, if there is one, that of a VM which does not answer yet, or not any more?"""
    return name is not None and machine_dir(name).owned()


def find(name: str | None) -> MachineDir:
    """The live VM called `name`, or the only one when `name` is None. Raises NoSuchMachine."""
    if name is None:
        entries = running()
        if len(entries) != 1:
            names = ", ".join(entry.name for entry in entries) or "none"
            raise NoSuchMachine(f"{len(entries)} VMs run ({names}): name the one you mean")
        entry = entries[0]
    else:
        entry = machine_dir(name)
    if entry.alive():
        return entry
    if entry.owned():
        raise NoSuchMachine(f"VM {entry.name!r} is only starting: try again in a moment")
    entry.remove()
    raise NoSuchMachine(f"no VM named {entry.name!r} is running (see `minivmm list`)")
