"""`minivmm lab`: runs a command in the lab; and boots a machine there as if it ran here."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from minivmm import runtime
from minivmm.board import plan_board
from minivmm.boot.numa import numa_text
from minivmm.cli.boot import BootOptions
from minivmm.cli.ending import recorded
from minivmm.cli.lab_gdb import GdbDoor
from minivmm.cli.signals import ENDING, HeldSignals
from minivmm.cli.terminal import in_foreground
from minivmm.cli.text import parse_duration, say
from minivmm.cli.viewer import Viewer
from minivmm.errors import HostError, Interrupted, Timeout
from minivmm.guest.kernels import find, newest
from minivmm.lab.lab import DEFAULT_MEMORY, RUNTIME_DIR, Lab, lab_kernel
from minivmm.machine_spec import DEVICE_TYPES, MachineSpec, spec_to_json
from minivmm.options import to_mapping, to_pairs
from minivmm.units import GIB, align_up, parse_size

OVERHEAD = 2 * GIB
"""Lab memory beside that of the machine in it: a kernel, Python, page tables (bytes)."""

MOST_PHYSICAL_BITS = 52
"""Address bits that x86-64 allows; what does not fit there fits in no lab."""

PATIENCE = 25.0
"""Seconds that clients on this side wait for the sockets inside to exist."""

STDIN = 0


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = (
        "minivmm lab [-k KERNEL] [-m SIZE] [-p N] [--append WORDS] [--device DEVICE] [--qemu WORDS]"
        " [--timeout T] [-v] [-- CMD...]"
    )
    parser.add_argument("-k", "--kernel", help="kernel of the lab itself (default: 6.12)")
    parser.add_argument("-m", "--memory", metavar="SIZE", help="its memory (default: 3G)")
    parser.add_argument(
        "-p", "--cpus", metavar="N", type=int, default=2, help="its CPUs, at most (default: 2)"
    )
    parser.add_argument(
        "--append",
        metavar="WORDS",
        action="append",
        default=[],
        help="more options for its kernel; may be repeated (hugepagesz=1G hugepages=1)",
    )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        action="append",
        default=[],
        help="a PCI device as QEMU's -device has it (edu), to be passed on to a guest inside: bound"
        " to vfio-pci behind an IOMMU, the first at 00:10.0, the next at 00:11.0; may be repeated",
    )
    parser.add_argument(
        "--qemu",
        metavar="WORDS",
        action="append",
        default=[],
        help="more options for QEMU, such as a -drive for a device; may be repeated",
    )
    parser.add_argument("--timeout", metavar="T", help="end after T (30s, 2m) with status 124")
    parser.add_argument("-v", "--verbose", action="store_true", help="show its console")


def run(args: argparse.Namespace) -> int:
    """Run the command (default: a shell); the exit status is its own."""
    timeout = None if args.timeout is None else parse_duration(args.timeout)
    memory = DEFAULT_MEMORY if args.memory is None else parse_size(args.memory)
    kernel = lab_kernel(say) if args.kernel is None else find(args.kernel)
    command = args.command or [os.environ.get("SHELL", "/bin/sh")]
    with (
        _time_limit(timeout),
        Lab(
            kernel,
            memory=memory,
            cpus=args.cpus,
            append=args.append,
            devices=args.device,
            qemu=[word for words in args.qemu for word in shlex.split(words)],
            verbose=args.verbose,
        ) as lab,
    ):
        return _run(lab, command, interactive=True)


def boot_in_lab(spec: MachineSpec, options: BootOptions) -> int:
    """Boot `spec` by a minivmm in the lab, under this host's name and sockets.

    Returns the exit status, as if booted here. Raises MinivmmError for what fails on this side.
    """
    return recorded(options.status, lambda: _boot(spec, options))


def run_words(words: Sequence[str], memory: int) -> int:
    """Run `minivmm WORDS` in a lab with room for guests of `memory` bytes; its exit status."""
    program = [sys.executable, "-P", "-m", "minivmm.cli"]
    with Lab(lab_kernel(say), memory=max(DEFAULT_MEMORY, align_up(OVERHEAD + memory, GIB))) as lab:
        return _run(lab, [*program, *words], interactive=False)


def boot_arguments(spec: MachineSpec, options: BootOptions) -> list[str]:
    """The options of `boot` that mean `spec` and `options`, except for times and sockets."""
    words = _machine_arguments(spec, options)
    for flag in ("freeze", "stats", "json", "verbose", "quiet", "debug"):
        words += [f"--{flag}"] if getattr(options, flag) else []
    words += [f"--status={options.status}"] if options.status is not None else []
    if options.trace is not None:
        words += [f"--trace={options.trace}", f"--trace-details={options.trace_details}"]
    words += [f"--record={options.record}"] if options.record is not None else []
    words += [f"--scenario={options.scenario}"] if options.scenario is not None else []
    return [*words, "--", *options.command] if options.command else words


def _machine_arguments(spec: MachineSpec, options: BootOptions) -> list[str]:
    if options.restore is not None:
        return [f"--restore={options.restore.path.absolute()}", f"--name={spec.name}"]
    words: list[str] = []
    for name, value in to_mapping(spec).items():
        words.append(f"--{name}={value}")
    words += [f"--append={text}" for text in spec.append]
    for device in spec.devices:
        words.append(f"--device={_device_text(device)}")
    words += [f"--numa={numa_text(entry)}" for entry in spec.numa]
    return words


def _boot(spec: MachineSpec, options: BootOptions) -> int:
    if options.restore is not None:
        pass  # a kernel is only read at the guest's next reset
    elif spec.kernel is None:
        newest()  # complain now rather than from inside
    else:
        find(spec.kernel)
    plan_board(spec, MOST_PHYSICAL_BITS)
    for passed_on in spec.passed_on:
        raise HostError(
            f"{passed_on.id}: this host's /dev/kvm cannot run guests, and the lab, where they run"
            " instead, has none of its devices: pass on emulated ones, by"
            " `minivmm lab --device ... -- minivmm boot ...`"
        )
    for device in spec.devices:
        device.check_files()
    with HeldSignals() as signals:
        directory = runtime.claim(spec.name or runtime.free_name())
        try:
            with signals.allowed():
                return _boot_as(directory, spec, options)
        finally:
            directory.remove()


def _boot_as(directory: runtime.MachineDir, spec: MachineSpec, options: BootOptions) -> int:
    """Boot under the name and sockets of `directory`."""
    spec = dataclasses.replace(spec, name=directory.name)
    directory.spec_file.write_text(json.dumps(spec_to_json(spec)) + "\n")
    # -P: this minivmm, not one that the working directory may hold.
    words = [sys.executable, "-P", "-m", "minivmm.cli", "boot", "--accel=kvm"]
    inside = f"{RUNTIME_DIR}/{directory.name}"
    words += [] if options.gdb is None else [f"--gdb=unix:{inside}/gdb.sock"]
    words += boot_arguments(spec, options)
    with (
        _time_limit(options.timeout),
        Lab(lab_kernel(say), memory=_memory(spec), cpus=_cpus(spec)) as lab,
    ):
        lab.forward(directory.exec_socket, f"{inside}/exec.sock", patience=PATIENCE)
        lab.forward(directory.qmp_socket, f"{inside}/qmp.sock", patience=PATIENCE)
        lab.forward(directory.console_socket, f"{inside}/console.sock", patience=PATIENCE)
        lab.forward(directory.trace_socket, f"{inside}/trace.sock", patience=PATIENCE)
        if options.qmp is not None:
            lab.forward(options.qmp, f"{inside}/qmp.sock", patience=PATIENCE)
        came: list[int] = []

        def note(number: int) -> int:
            """Ctrl-C would show a traceback where it meets a Python that is only starting."""
            came.append(number)
            return signal.SIGTERM if number in ENDING else number

        viewer = nullcontext() if options.ui is None else Viewer(directory.name, options.ui)
        with viewer, _gdb_door(lab, directory, options):
            status = _run(lab, words, interactive=not options.command, translate=note)
        if came and status == 128 + signal.SIGTERM:  # it was not yet able to clean up, nor had to
            raise Interrupted(f"ended by {signal.Signals(came[0]).name}")
        return status


def _gdb_door(
    lab: Lab, directory: runtime.MachineDir, options: BootOptions
) -> AbstractContextManager[object]:
    """Where GDB connects out here, if it is to."""
    if options.gdb is None:
        return nullcontext()
    inside = f"{RUNTIME_DIR}/{directory.name}/gdb.sock"
    return GdbDoor(lab, options.gdb, inside, directory.qmp_socket, quiet=options.quiet)


def _run(
    lab: Lab,
    words: Sequence[str],
    *,
    interactive: bool,
    translate: Callable[[int], int] = lambda number: number,
) -> int:
    """Run `words` in the lab on our streams; keys are for it only if `interactive`."""
    tty = interactive and in_foreground(STDIN)
    if tty or not os.isatty(STDIN):
        return lab.run(words, tty=tty, translate=translate)
    with Path(os.devnull).open("rb") as nothing:
        return lab.run(words, stdin=nothing.fileno(), tty=False, translate=translate)


def _device_text(device: object) -> str:
    """The text that --device takes."""
    driver = next(name for name, kind in DEVICE_TYPES.items() if isinstance(device, kind))
    return f"{driver},{to_pairs(device)}"


def _memory(spec: MachineSpec) -> int:
    """Lab memory for `spec` in bytes: enough if all of it is plugged, at most what the host has.

    It is only taken as it is used.
    """
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = OVERHEAD + spec.memory + sum(device.size for device in spec.memory_devices)
    return max(DEFAULT_MEMORY, min(wanted, host // GIB * GIB))


def _cpus(spec: MachineSpec) -> int:
    return max(2, min(spec.cpus, os.cpu_count() or 1))


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raises Timeout inside the block once `seconds` have passed."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise Timeout(f"not finished after {seconds:g} s (--timeout)")

    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
