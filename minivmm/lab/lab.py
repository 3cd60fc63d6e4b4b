"""The lab as others use it: start it, run commands in it, reach sockets in it, close it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from minivmm.closing import Closing
from minivmm.errors import HostError, UsageError
from minivmm.guest import kernels
from minivmm.guest.kernels import Kernel
from minivmm.lab import devices as passed_on
from minivmm.lab.image import build_image
from minivmm.lab.link import Link
from minivmm.lab.machine import MIB, OuterMachine
from minivmm.lab.terminal import forwarded_signals, raw_mode, terminals, window_size

DEFAULT_MEMORY = 3 << 30
"""Bytes of RAM of the outer machine."""
MINIMUM_MEMORY = 256 * MIB
START_TIMEOUT = 120.0
"""Seconds that the machine may take to come up: 5 on a free host, more when others use it too."""
RUNTIME_DIR = "/run/minivmm"
"""MINIVMM_RUNTIME_DIR inside; on the host's file system, VMs here and there would share names."""
MARK = "MINIVMM_LAB"
"""Variable that tells a command that it runs in the lab."""


class Lab(Closing):
    """A running lab. It ends with `close`, and with the thread that started it.

    `memory` in bytes; `cpus` at most, fewer if QEMU is not up to it (machine.usable_cpus); `append`
    are more options for its kernel, `qemu` for QEMU. `devices`, each as QEMU's -device has it, come
    behind an IOMMU and bound to vfio-pci (lab/devices.py). Raises HostError when something is
    missing or the machine does not come up, ImageError when the kernel is not fit for it,
    UsageError for a bad size.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        memory: int = DEFAULT_MEMORY,
        cpus: int = 2,
        append: Sequence[str] = (),
        devices: Sequence[str] = (),
        qemu: Sequence[str] = (),
        verbose: bool = False,
        timeout: float = START_TIMEOUT,
    ) -> None:
        if MARK in os.environ:
            raise HostError("this is the lab already: run the command without `minivmm lab`")
        if memory < MINIMUM_MEMORY or memory % MIB:
            raise UsageError(
                f"lab memory {memory} is not usable: a multiple of 1M, at least"
                f" {MINIMUM_MEMORY // MIB}M"
            )
        if cpus < 1:
            raise UsageError(f"lab cpus {cpus} is out of range: 1 or more")
        attached = passed_on.attach(devices)
        self._cleanup = contextlib.ExitStack()
        with contextlib.ExitStack() as starting:
            machine = OuterMachine(
                kernel.image,
                build_image(
                    kernel.release,
                    kernel.modules,
                    also=passed_on.MODULES if devices else (),
                    options=passed_on.MODULE_OPTIONS,
                    addresses=attached.addresses,
                ),
                memory=memory,
                cpus=cpus,
                append=append,
                extra=(*attached.words, *qemu),
            )
            starting.callback(machine.stop)
            helpers = [machine.files_pid]
            self._link = Link(machine.wire, machine.log, helpers=helpers, verbose=verbose)
            starting.callback(self._link.close)
            self._link.wait_ready(timeout)
            self._cleanup = starting.pop_all()

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: int = 0,
        stdout: int = 1,
        stderr: int = 2,
        tty: bool = True,
        translate: Callable[[int], int] = lambda number: number,
    ) -> int:
        """Run a command; returns its exit status (128 + number for signals, 127 if not found).

        `env` and `cwd` are this process's by default; MINIVMM_LAB and MINIVMM_RUNTIME_DIR are set.
        The descriptors stay the caller's. With `tty`, those that are terminals are one inside too.
        Called from the main thread, it forwards signals: those that `translate` makes of the ones
        that come. Raises HostError if the lab is lost.
        """
        fds = (stdin, stdout, stderr)
        terminal = terminals(fds) if tty else []
        rows, columns = window_size(fds[terminal[-1]]) if terminal else (24, 80)
        inside = {MARK: "1", "MINIVMM_RUNTIME_DIR": RUNTIME_DIR}
        request = {
            "run": list(argv),
            "env": {**(os.environ if env is None else env), **inside},
            "cwd": str(Path.cwd()) if cwd is None else cwd,
            "terminal": terminal,
            "rows": rows,
            "columns": columns,
        }
        with contextlib.ExitStack() as stack:
            if terminal:
                stack.enter_context(raw_mode(stdin))
            session = self._link.run(request, fds)
            stack.enter_context(forwarded_signals(session, stdin if terminal else None, translate))
            return session.wait()

    def forward(self, listen: Path, target: str, *, patience: float = 0.0) -> None:
        """Until close, whoever connects to Unix socket `listen` here reaches `target` inside.

        Clients that come before something listens inside wait for it up to `patience` seconds, then
        see an end of file. Raises HostError if `listen` cannot be made.
        """
        try:
            self._link.forward(listen, target, patience)
        except OSError as error:
            why = error.strerror or error  # too long a path has no errno
            raise HostError(f"cannot listen on {listen}: {why}") from error

    def forward_socket(
        self, listener: socket.socket, target: str, *, patience: float = 0.0
    ) -> None:
        """The same for a socket of any kind that listens already; closed with the lab."""
        self._link.forward_socket(listener, target, patience)

    def close(self) -> None:
        """Kill everything inside and the machine; a second call does nothing."""
        self._cleanup.close()


def lab_kernel(progress: Callable[[str], None] = lambda line: None) -> Kernel:
    """The kernel to run a lab with: a fetched 6.12, or one fetched now. It has virtiofs built in.

    `progress` gets a line for each step of fetching. Raises HostError if it cannot be fetched.
    """
    version = kernels.DEFAULT_VERSION
    for kernel in reversed(kernels.fetched()):
        if kernels.is_version_of(version, kernel.release):
            return kernel
    return kernels.fetch(version, progress)
