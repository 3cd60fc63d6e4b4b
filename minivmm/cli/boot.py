"""`minivmm boot`: from the command line and config files to a MachineSpec, and to where it runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivmm.boot.numa import parse_numa
from minivmm.cli import boot_files, boot_incoming
from minivmm.cli.loading import loading
from minivmm.cli.machine_text import device_help, show
from minivmm.cli.text import parse_duration, say
from minivmm.control.gdb_address import DEFAULT, join_address, parse_address
from minivmm.errors import UsageError
from minivmm.machine_spec import (
    ONLINE_POLICIES,
    MachineSpec,
    parse_device,
    spec_from_json,
    spec_to_json,
)
from minivmm.options import from_mapping, to_mapping
from minivmm.runtime import config_file
from minivmm.tracing.wish import parse_details
from minivmm.ui.guard import parse_listen

if TYPE_CHECKING:
    from minivmm.snapshot.restored import Snapshot

_SPEC_OPTIONS = (
    "name",
    "memory",
    "cpus",
    "phys_bits",
    "kernel",
    "modules",
    "initrd",
    "online",
    "console",
)
"""Command-line options that are options of MachineSpec."""

_SPEC_WORDS = ("kernel_word", *_SPEC_OPTIONS, "append", "devices", "numa", "config", "incoming")
"""Attributes of the command line that say what the machine is."""

_PATHS = ("modules", "initrd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BootOptions:
    """What `boot` was asked beside the machine itself; paths are absolute, times in seconds."""

    command: tuple[str, ...] = ()
    qmp: Path | None = None
    ui: str | None = None
    """Where to serve a live view as a web page (minivmm.ui.guard); "" leaves the choice to it."""
    gdb: str | None = None
    """Where to wait for GDB (minivmm.control.gdb_server.parse_address)."""
    freeze: bool = False
    incoming: str | None = None
    """URI at which a VM comes in, which this one goes on as (minivmm.migration.transport)."""
    stats: bool = False
    json: bool = False
    timeout: float | None = None
    status: Path | None = None
    restore: Snapshot | None = None
    """The snapshot to go on from."""
    trace: Path | None = None
    trace_details: str = "requests"
    """What to trace beside what is always kept (tracing/wish.py)."""
    record: Path | None = None
    """Where to write what `minivmm replay` takes."""
    scenario: Path | None = None
    """Rules by which memory devices misbehave (docs/misbehaviour.md)."""
    verbose: bool = False
    quiet: bool = False
    debug: bool = False


def prepare(words: Sequence[str]) -> list[str]:
    """The words as argparse understands them: --ui takes only `=ADDR`, or it would eat KERNEL."""
    return join_address(["--ui=" if word == "--ui" else word for word in words])


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.usage = "minivmm boot [KERNEL] [options] [-- CMD...]"
    machine = parser.add_argument_group("machine")
    add = machine.add_argument
    add("kernel_word", nargs="?", metavar="KERNEL", help="same as -k")
    add(
        "-k",
        "--kernel",
        help="kernel: a file (bzImage, vmlinux) or a fetched release (6.12);"
        " default: the newest fetched",
    )
    add("-i", "--initrd", metavar="FILE", help="initrd in place of the built-in one")
    add("--modules", metavar="DIR", help="modules for the kernel (lib/modules/RELEASE)")
    add("-m", "--memory", metavar="SIZE", help="boot memory (default: 512M)")
    add("-p", "--cpus", metavar="N", help="number of CPUs (default: 1)")
    add(
        "--phys-bits",
        metavar="N",
        help="width of the guest's physical addresses, in bits (default: the host's)",
    )
    add("-a", "--append", metavar="WORDS", action="append", help="add to the kernel's command line")
    add("-n", "--name", help="name of the VM (default: vm1, vm2, ...)")
    add(
        "--device",
        dest="devices",
        metavar="DEVICE",
        action="append",
        help="add a device: virtio-mem-pci,id=vmem0,size=4G,...; `--device help` lists them",
    )
    add(
        "--mem-device",
        dest="devices",
        metavar="KEYS",
        action="append",
        type=_short_device,
        help="add a virtio-mem device: size=4G,...",
    )
    add(
        "--drive",
        dest="devices",
        metavar="KEYS",
        action="append",
        type=_short_drive,
        help="add a disk, a virtio-blk device: file=disk.img,readonly=on,...",
    )
    add(
        "--numa",
        metavar="ENTRY",
        action="append",
        help="add a NUMA node: node,nodeid=0,cpus=0-1,mem=256M; or a distance:"
        " dist,src=0,dst=1,val=20",
    )
    add(
        "--online",
        metavar="POLICY",
        help=f"how the guest onlines memory: {', '.join(ONLINE_POLICIES)}"
        f" (default: {MachineSpec.online})",
    )
    add(
        "--console",
        metavar="NAME",
        help="where the shell is, and keys go: hvc0 or ttyS0 (default: hvc0, ttyS0 with -i)",
    )
    add("--config", metavar="FILE", help="machine as --dry-run --json prints it; options win")
    running = parser.add_argument_group("running")
    add = running.add_argument
    add(
        "--accel",
        choices=("auto", "kvm", "lab"),
        default="auto",
        help="kvm: on this host's /dev/kvm; lab: in an emulated machine; auto (default): in the lab"
        " if /dev/kvm cannot run stock kernels",
    )
    add("--timeout", metavar="T", help="end after T (30s, 2m) with status 124")
    add("--qmp", metavar="PATH", help="listen for QMP clients here as well")
    add(
        "--ui",
        metavar="ADDR:PORT",
        help="serve a live view as a web page, as `minivmm ui` does (--ui=8000; default: any free"
        " port of 127.0.0.1)",
    )
    boot_files.configure(add, BootOptions.trace_details)
    add(
        "--gdb",
        metavar="ADDR",
        help=f"let GDB connect: PORT, HOST:PORT or unix:PATH (default: {DEFAULT}; docs/gdb.md)",
    )
    add(
        "-S",
        "--freeze",
        action="store_true",
        help="wait before the first instruction, for gdb's or QMP's `continue`",
    )
    boot_incoming.configure(add)
    add("--status", metavar="FILE", help="write how it ended to FILE, as JSON")
    add("--stats", action="store_true", help="say where time and exits went, on stderr")
    add("--dry-run", action="store_true", help="show the machine and stop")
    add("--json", action="store_true", help="with --dry-run or --stats: as JSON")
    add("-v", "--verbose", action="store_true", help="show the console of `-- CMD` on stderr")
    add("-q", "--quiet", action="store_true", help="nothing of ours on stderr but errors")


def run(args: argparse.Namespace) -> int:
    """Boot; the exit status is the command's, or says how the machine ended."""
    help_text = device_help(args.devices or [])
    if help_text:
        print(help_text)
        return 0
    snapshot = None if args.restore is None else _open_snapshot(args)
    spec = (
        spec_from(args) if snapshot is None else dataclasses.replace(snapshot.spec, name=args.name)
    )
    options = dataclasses.replace(options_from(args), restore=snapshot)
    if args.dry_run:
        show(spec, as_json=args.json)
        return 0
    if _in_lab("kvm" if options.incoming else args.accel, quiet=args.quiet):
        from minivmm.cli.lab import boot_in_lab

        return boot_in_lab(spec, options)
    with loading():
        from minivmm.cli.run import boot_here

    return boot_here(spec, options)


def spec_from(args: argparse.Namespace) -> MachineSpec:
    """The machine asked for: options over --config over the user's config over defaults."""
    if args.kernel is not None and args.kernel_word is not None:
        raise UsageError(f"two kernels: {args.kernel_word!r} and -k {args.kernel!r}; give one")
    args.kernel = args.kernel_word if args.kernel is None else args.kernel
    words = {key.replace("_", "-"): getattr(args, key) for key in _SPEC_OPTIONS}
    given = {key: word for key, word in words.items() if word is not None}
    read = to_mapping(from_mapping(MachineSpec, given, what="boot"))  # complain about options first
    merged = _config(config_file(), optional=True)
    if args.config is not None:
        merged |= _config(Path(args.config), optional=False)
    merged |= {key: read[key] for key in given}
    if args.append is not None:
        merged["append"] = args.append
    changes: dict[str, Any] = {}
    if args.devices is not None:
        devices: tuple[Any, ...] = ()
        for text in args.devices:
            devices += (parse_device(text, tuple(device.id for device in devices)),)
        changes["devices"] = devices
    if args.numa is not None:
        changes["numa"] = tuple(parse_numa(text) for text in args.numa)
    # What is replaced must not be checked against what replaces the rest.
    kept = {key: value for key, value in merged.items() if key not in changes}
    return _with_full_paths(dataclasses.replace(spec_from_json(kept), **changes))


def _open_snapshot(args: argparse.Namespace) -> Snapshot:
    """The one that --restore names."""
    from minivmm.cli.restoring import snapshot_of

    return snapshot_of(args, _SPEC_WORDS)


def options_from(args: argparse.Namespace) -> BootOptions:
    """The rest of the command line."""
    parse_details(args.trace_details)
    if args.json and not (args.dry_run or args.stats):
        raise UsageError("--json needs --dry-run or --stats: a booted guest has no JSON to show")
    if args.ui is not None:
        parse_listen(args.ui)
    if args.gdb is not None:
        parse_address(args.gdb)
    if args.scenario is not None:
        from minivmm.devices.virtio_mem.mischief import read_scenario

        read_scenario(Path(args.scenario))
    boot_incoming.check(args)
    return BootOptions(
        command=tuple(args.command),
        qmp=None if args.qmp is None else Path(args.qmp).absolute(),
        ui=args.ui,
        gdb=args.gdb,
        freeze=args.freeze,
        incoming=args.incoming,
        stats=args.stats,
        json=args.json,
        timeout=None if args.timeout is None else parse_duration(args.timeout),
        status=None if args.status is None else Path(args.status).absolute(),
        trace=None if args.trace is None else Path(args.trace).absolute(),
        trace_details=args.trace_details,
        record=None if args.record is None else Path(args.record).absolute(),
        scenario=None if args.scenario is None else Path(args.scenario).absolute(),
        verbose=args.verbose,
        quiet=args.quiet,
        debug=args.debug,
    )


def _short_device(text: str) -> str:
    return f"virtio-mem-pci,{text}"


def _short_drive(text: str) -> str:
    return f"virtio-blk-pci,{text}"


def _in_lab(accel: str, *, quiet: bool) -> bool:
    """Decide where to boot; with auto, say so if it is the lab."""
    if accel != "auto":
        return accel == "lab"
    from minivmm.accel import probe

    found = probe()
    if not found.usable and not quiet:
        say(f"{found.reason}: booting in the lab")
    return not found.usable


def _config(path: Path, *, optional: bool) -> dict[str, Any]:
    """The JSON object in `path`; a missing optional file is empty. Raises UsageError."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"config file {path} is no regular file")
        data = json.loads(path.read_text())
    except FileNotFoundError:
        if optional:
            return {}
        raise UsageError(f"config file {path} does not exist") from None
    except OSError as error:
        raise UsageError(f"config file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"config file {path} is not JSON: {error}") from None
    if not isinstance(data, Mapping):
        raise UsageError(f"config file {path} does not hold a JSON object")
    return dict(data)


def _with_full_paths(spec: MachineSpec) -> MachineSpec:
    """Paths made absolute: the machine may run under another working directory (the lab)."""
    changes = {key: str(Path(value).absolute()) for key in _PATHS if (value := getattr(spec, key))}
    if spec.kernel is not None and ("/" in spec.kernel or Path(spec.kernel).is_file()):
        changes["kernel"] = str(Path(spec.kernel).absolute())
    devices = tuple(device.with_full_paths() for device in spec.devices)
    changed = spec_from_json(spec_to_json(spec) | changes)
    return dataclasses.replace(changed, devices=devices)
