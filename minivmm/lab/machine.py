"""The outer machine's two processes, QEMU and virtiofsd: command lines, start, log, end.

What goes over the wire to the agent inside is link.py's.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from minivmm.errors import HostError
from minivmm.lab.host_clock import counter_khz

MIB = 1 << 20

VIRTIOFSD_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
"""Where distributions put virtiofsd, which is not in PATH."""

CPU = "max,+svm,-la57,-smap,-smep,-umip,-pku,-xsave"
"""SVM for KVM inside; without what costs emulation time and protects nobody here."""

KERNEL_OPTIONS = (
    "console=ttyS0",
    "quiet",
    # An oops or the agent's death ends QEMU at once (with -no-reboot), and the host is told.
    "oops=panic",
    "panic=-1",
    "mitigations=off",
    # With the same addresses in every process, QEMU finds its translations of the code again:
    # a Python that was started before starts in a third of the time.
    "nokaslr",
    "norandmaps",
    # The clock of a busy emulated machine looks unstable to the watchdog, and without a stable TSC
    # the inner guests have no good kvm-clock.
    "tsc=reliable",
    # virtiofsd writes into guest memory behind QEMU's back, which then may keep translations of
    # what was there before. Pages that the guest itself has cleared cannot have any.
    "init_on_alloc=1",
    "transparent_hugepage=always",
)


def find_qemu() -> str:
    """Path of QEMU's x86-64 machine. Raises HostError if it is not installed."""
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        raise HostError(
            "qemu-system-x86_64 not found, and the lab is a machine emulated by it:"
            " `apt-get install qemu-system-x86`"
        )
    return found


def find_virtiofsd() -> str:
    """Path of virtiofsd. Raises HostError if it is not installed."""
    for place in VIRTIOFSD_PLACES:
        if os.access(place, os.X_OK):
            return place
    found = shutil.which("virtiofsd")
    if found is None:
        raise HostError(
            "virtiofsd not found, and the lab shares the host's files through it:"
            " `apt-get install qemu-system-common` on Debian 12, `apt-get install virtiofsd` later"
        )
    return found


def usable_cpus(version: str, wanted: int) -> int:
    """How many processors are safe with the QEMU that says `version`, at most `wanted`.

    Before 8.1 it is one: QEMU may run stale code where a kernel patches itself while another
    processor runs ("Oops: int3"), as KVM does in the lab's kernel at the first and after the last
    VM, and kernels do in VMs with two processors. One is hardly slower, and takes less of the host.
    """
    found = re.search(r"version (\d+)\.(\d+)", version)
    safe = found is not None and (int(found[1]), int(found[2])) >= (8, 1)
    return wanted if safe else 1


def clock_options() -> list[str]:
    """Kernel options that spare it measuring its counter: on a busy host, that may go wrong.

    A clock that was seen to run at more than twice its speed makes all time limits inside too short
    (and its kernel refuses to correct more than one per cent later: tsc_refine_calibration_work).
    """
    khz = counter_khz()
    return [] if khz is None else [f"tsc_early_khz={khz}"]


def virtiofsd_command(program: str, listener: int, *, root: bool) -> list[str]:
    """The command line that serves / to whoever connects to the socket `listener` (a descriptor).

    cache=always: the lab trusts what it has read, as nobody else writes there in the meantime. With
    the default it would drop a file's pages at each open, and QEMU its translations of the code in
    them: Python would take five times as long to start. What the host changes during a run may be
    seen late or never; every lab starts with nothing cached.

    Without `root`, a user namespace maps us to root, and the lab's root is this user.
    """
    options = "source=/,cache=always,sandbox=chroot,announce_submounts,log_level=err"
    command = [program, "-f", f"--fd={listener}", "-o", options]
    if root:
        return command
    return ["unshare", "--user", "--map-root-user", "--", *command, "--rlimit-nofile=0"]


def qemu_command(
    program: str,
    *,
    kernel: Path,
    initrd: str,
    memory: int,
    cpus: int,
    files: int,
    wire: int,
    append: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> list[str]:
    """QEMU's command line; `files` and `wire` are descriptors of connected sockets.

    `memory` in bytes, a multiple of 1 MiB; `append` goes behind the kernel's options, `extra`
    behind QEMU's. The console is stdout.

    maxcpus stays above one, or QEMU would leave the memory barriers out of the code it makes, and
    the rings shared with virtiofsd rely on them.
    """
    size = f"{memory // MIB}M"
    return [
        program,
        *("-name", "minivmm-lab", "-nodefaults", "-no-user-config", "-display", "none"),
        "-no-reboot",
        *("-accel", "tcg,thread=multi", "-cpu", CPU),
        *(
            "-machine",
            "q35,memory-backend=memory",
            "-smp",
            f"{cpus},maxcpus={max(cpus, 2)}",
            "-m",
            size,
        ),
        # virtiofsd maps the memory, so it is shared.
        *("-object", f"memory-backend-memfd,id=memory,size={size},share=on"),
        *("-chardev", "stdio,id=console,signal=off", "-device", "isa-serial,chardev=console"),
        *("-chardev", f"socket,id=files,fd={files}"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=host"),
        *("-chardev", f"socket,id=wire,fd={wire}", "-device", "virtio-serial-pci,max_ports=2"),
        *("-device", "virtserialport,chardev=wire,nr=1,name=minivmm.lab"),
        *("-kernel", str(kernel), "-initrd", initrd),
        *("-append", " ".join((*KERNEL_OPTIONS, *append))),
        *extra,
    ]


class OuterMachine:
    """QEMU and its virtiofsd, running; both are killed when the thread that made this ends.

    `wire` is our end of the agent's serial port, `log` where console and errors can be read;
    whoever takes these two descriptors closes them.
    """

    def __init__(
        self,
        kernel: Path,
        initramfs: bytes,
        *,
        memory: int,
        cpus: int,
        append: Sequence[str] = (),
        extra: Sequence[str] = (),
    ) -> None:
        qemu, virtiofsd = find_qemu(), find_virtiofsd()
        self._processes: list[subprocess.Popen[bytes]] = []
        passed: list[int] = []  # to the processes, closed here
        self.log, log_end = os.pipe()
        passed.append(log_end)
        ours, theirs = socket.socketpair()
        self.wire = ours.detach()
        try:
            passed.append(wire := theirs.detach())
            listener, connection = _private_connection()
            passed += [listener, connection]
            passed.append(initrd := _memory_file(initramfs))
            serve = virtiofsd_command(virtiofsd, listener, root=os.geteuid() == 0)
            self.files_pid = self._start(serve, [listener], log_end)
            command = qemu_command(
                qemu,
                kernel=kernel,
                initrd=f"/proc/self/fd/{initrd}",
                memory=memory,
                cpus=usable_cpus(_output([qemu, "--version"]), cpus),
                files=connection,
                wire=wire,
                append=(*clock_options(), *append),
                extra=extra,
            )
            self._start(command, [connection, wire, initrd], log_end)
        except BaseException:
            self.stop()
            os.close(self.wire)
            os.close(self.log)
            raise
        finally:
            for fd in passed:
                os.close(fd)

    def stop(self) -> None:
        """Kill what runs. The host has all the files: the lab writes through."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def _start(self, command: Sequence[str], fds: Sequence[int], output: int) -> int:
        """Start a process that dies with this thread; returns its pid."""
        try:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=fds,
                process_group=0,  # the terminal's Ctrl-C is for the command inside
            )
        except FileNotFoundError as error:
            raise HostError(f"{error.filename} not found: `apt-get install util-linux`") from error
        self._processes.append(process)
        return process.pid


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _private_connection() -> tuple[int, int]:
    """A listening socket and one connection to it, as descriptors.

    virtiofsd insists on accepting the connection itself. It takes one only, and ours is the first
    in the queue, so the socket needs neither a path nor anybody's permissions.
    """
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
        listener.bind("")  # an abstract address of the kernel's choice; unix(7), "autobind"
        listener.listen(1)
        connection.connect(listener.getsockname())
        return listener.detach(), connection.detach()


def _memory_file(content: bytes) -> int:
    """Descriptor of a nameless file with `content`."""
    fd = os.memfd_create("minivmm-lab")
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    return fd
