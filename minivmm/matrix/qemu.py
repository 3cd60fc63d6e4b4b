"""The peer: the same guest on QEMU's q35 machine with its virtio-mem-pci device, under KVM."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivmm.control.client import Client
from minivmm.errors import HostError, NoSuchMachine
from minivmm.matrix.guest import (
    COMMAND_TIME,
    DEVICE_ID,
    PATIENCE,
    TAIL,
    BootCost,
    Guest,
    HostUse,
    Ran,
    Setup,
)
from minivmm.matrix.images import Files
from minivmm.matrix.processes import exits_of, process_use
from minivmm.matrix.qemu_agent import PORTS, QemuAgent
from minivmm.matrix.qemu_words import PROGRAM, linux_words, machine_words, memory_device_words
from minivmm.units import GIB

START_TIME = 60.0
"""Seconds until QEMU must answer on its control socket."""

_VERSION = re.compile(r"version (\d+(?:\.\d+)+)")
_PROPERTY = re.compile(r"^\s+([A-Za-z][\w-]*)=<", re.MULTILINE)


@functools.cache
def version() -> str:
    """QEMU's version. Raises HostError if there is no QEMU."""
    match = _VERSION.search(_output(["--version"]))
    return match[1] if match else "unknown"


@functools.cache
def properties() -> frozenset[str]:
    """Names of the properties that its virtio-mem-pci has. Raises HostError."""
    return frozenset(_PROPERTY.findall(_output(["-device", "virtio-mem-pci,help"])))


def _output(words: Sequence[str]) -> str:
    if shutil.which(PROGRAM) is None:
        raise HostError(f"no {PROGRAM} to compare with: `apt-get install qemu-system-x86`")
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)
    return done.stdout


class QemuGuest(Guest):
    """A guest of `setup` on QEMU, ready for commands; `options` are for its virtio-mem device.

    Raises HostError if QEMU does not start, GuestFailure or WaitTimeout if the guest does not; with
    the end of its console as a note.
    """

    vmm = "qemu"

    def __init__(
        self,
        files: Files,
        setup: Setup,
        options: Sequence[str],
        command_line: str,
        patience: float = PATIENCE,
    ) -> None:
        self._setup = setup
        self._cleanup = contextlib.ExitStack()
        with contextlib.ExitStack() as starting:
            self._folder = Path(
                starting.enter_context(tempfile.TemporaryDirectory(prefix="minivmm-matrix-"))
            )
            ends = self._start(starting, files, options, command_line)
            self._agent = QemuAgent([starting.enter_context(end) for end in ends])
            try:
                self._qmp = starting.enter_context(self._connect())
                self._agent.wait_ready(patience)
            except BaseException as error:
                error.add_note(f"last lines of the guest's console:\n{self.console()}")
                raise
            self.boot = BootCost(time.monotonic() - self._began, exits_of(self._process.pid))
            self._cleanup = starting.pop_all()

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._process.pid

    def close(self) -> None:
        """Kill QEMU."""
        self._cleanup.close()

    def run(self, command: str, timeout: float = COMMAND_TIME) -> Ran:
        """As Guest.run."""
        return self._agent.run(command, timeout)

    @property
    def requested(self) -> int:
        """As Guest.requested."""
        return self._property("requested-size")

    @property
    def plugged(self) -> int:
        """As Guest.plugged."""
        return self._property("size")

    def qmp(self, command: str, **arguments: object) -> Any:
        """As Guest.qmp."""
        return self._qmp.request(command, arguments)

    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """As Guest.wait_ready."""
        self._agent.wait_ready(timeout)

    def host_use(self) -> HostUse:
        """As Guest.host_use; what is held is found only as far as it is more than is plugged."""
        found = process_use(self._process.pid)
        plugged = self.plugged if self._setup.device else 0
        held = max(0, found.resident_of(self._setup.region) - plugged)
        return HostUse(found.fds, found.threads, found.resident, held)

    def console(self) -> str:
        """As Guest.console."""
        try:
            text = (self._folder / "console").read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.replace("\r", "").splitlines()[-TAIL:])

    def _property(self, name: str) -> int:
        value = self.qmp("qom-get", path=DEVICE_ID, property=name)
        assert isinstance(value, int)
        return value

    def _start(
        self,
        starting: contextlib.ExitStack,
        files: Files,
        options: Sequence[str],
        command_line: str,
    ) -> list[socket.socket]:
        """Start QEMU; our ends of the ports."""
        ours: list[socket.socket] = []
        words = self._machine_words(files, command_line)
        with contextlib.ExitStack() as theirs:
            passed = []
            for number, name in enumerate(PORTS, start=1):
                here, there = socket.socketpair()
                ours.append(here)
                passed.append(theirs.enter_context(there).fileno())
                words += ["-chardev", f"socket,id=port{number},fd={passed[-1]}"]
                port = f"virtserialport,bus=ports.0,nr={number},chardev=port{number},name={name}"
                words += ["-device", port]
            words += self._device_words(options)
            with (self._folder / "errors").open("wb") as errors:
                self._began = time.monotonic()
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=passed,
                    start_new_session=True,  # a Ctrl-C is for us
                )
        starting.callback(self._kill)
        return ours

    def _machine_words(self, files: Files, command_line: str) -> list[str]:
        setup, folder = self._setup, self._folder
        hotplug = setup.region + GIB  # room to align the region
        return [
            *machine_words(files.kernel, memory=setup.memory, cpus=setup.cpus, hotplug=hotplug),
            *linux_words(files, command_line),
            *("-serial", f"file:{folder}/console"),
            *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
            *("-device", "virtio-serial-pci,id=ports"),
        ]

    def _device_words(self, options: Sequence[str]) -> list[str]:
        words: list[str] = []
        if self._setup.device:
            words += memory_device_words(self._setup.region, options)
        if self._setup.balloon:
            words += ["-device", "virtio-balloon-pci,id=balloon0"]
        return words

    def _connect(self) -> Client:
        end = time.monotonic() + START_TIME
        while True:
            try:
                return Client(self._folder / "qmp.sock")
            except NoSuchMachine:
                if self._process.poll() is not None:
                    raise HostError(f"QEMU did not start: {self._said()}") from None
                if time.monotonic() > end:
                    raise HostError(f"QEMU does not answer after {START_TIME:g} s") from None
                time.sleep(0.02)

    def _said(self) -> str:
        text = (self._folder / "errors").read_text(errors="replace").strip()
        return text.rpartition("\n")[2] or f"status {self._process.returncode}"

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
