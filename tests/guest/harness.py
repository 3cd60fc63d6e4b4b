"""A running guest as a test sees it: `minivmm boot` in a process, QMP and exec from this one."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any, Self

import minivmm.cli.run
from minivmm.cli.main import run
from minivmm.control import exec_client
from minivmm.control.client import Client
from minivmm.errors import NoSuchMachine
from minivmm.runtime import machine_dir

READY_SECONDS = 120
SETTLE_SECONDS = 90

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Finished:
    """What a run of the command line gave."""

    returncode: int
    stdout: str
    stderr: str


def minivmm(*words: str, timeout: float = 240) -> Finished:
    """Run the command line to its end, in a fork of this process; output as text."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = start(words, out.fileno(), err.fileno())
        child.join(timeout)
        if child.is_alive():
            child.kill()
            child.join()
        out.seek(0)
        err.seek(0)
        assert child.exitcode is not None
        return Finished(child.exitcode, out.read().decode(), err.read().decode())


def start(words: Sequence[str], out: int, err: int, *, source: int | None = None) -> ForkProcess:
    """Start the command line in a fork: in the lab, a fresh Python needs 5 s to import minivmm.

    Its standard input is descriptor `source`, or nothing.
    """
    child = ForkProcess(target=_main, args=(words, out, err, source))
    child.start()
    return child


def _main(words: Sequence[str], out: int, err: int, source: int | None) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY) if source is None else source, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(fd, mode, closefd=False) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = run(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@dataclass(frozen=True)
class Completed:
    """What a command in the guest gave."""

    status: int
    stdout: bytes
    stderr: bytes


class Guest:
    """`minivmm boot` with `options`, ready for commands once entered."""

    def __init__(self, *options: str) -> None:
        self.name = f"t{os.getpid()}-{next(_numbers)}"
        self._options = options
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the guest

    def __enter__(self) -> Self:
        words = ["boot", "-n", self.name, "--accel", "kvm", *self._options]
        keys, self._keyboard = os.pipe()
        output = self._output.fileno()
        self.process = start(words, output, output, source=keys)
        os.close(keys)
        try:
            self.directory = machine_dir(self.name)
            self.qmp = self._connect()
            self.wait_until_up()
        except BaseException:
            print(self.output())
            self.end()
            raise
        return self

    def wait_until_up(self) -> None:
        """Return once it is what a test wants to begin with: ready for commands."""
        assert self.run("true", timeout=READY_SECONDS).status == 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind:
            print(self.output())
        self.end()

    def end(self) -> None:
        """Kill whatever still runs."""
        if hasattr(self, "qmp"):
            self.qmp.close()
        if self.process.is_alive():
            self.kill()
        self._output.close()
        os.close(self._keyboard)

    def kill(self) -> None:
        """Kill its process as nothing can prepare for, and remove what it could not."""
        self.process.kill()
        self.process.join()
        self.directory.remove()

    def type(self, keys: bytes) -> None:
        """Send `keys` to the guest's serial console."""
        os.write(self._keyboard, keys)

    def wait(self, timeout: float = 60) -> int | None:
        """The exit status of the boot process, or None if it still runs after `timeout` s."""
        self.process.join(timeout)
        return self.process.exitcode

    def output(self) -> str:
        """What the boot process printed: the console, and our complaints."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def run(self, *argv: str, stdin: bytes | None = None, timeout: float = 60) -> Completed:
        """Run `argv` in the guest, `stdin` in, both outputs back."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            source = None
            if stdin is not None:
                source, writer = os.pipe()
                if os.fork() == 0:
                    os.close(source)
                    view = memoryview(stdin)
                    while view:
                        view = view[os.write(writer, view) :]
                    os._exit(0)
                os.close(writer)
            status = exec_client.run(
                self.directory.exec_socket,
                argv,
                stdin=source,
                stdout=out.fileno(),
                stderr=err.fileno(),
                timeout=timeout,
            )
            if source is not None:
                os.close(source)
                os.wait()
            out.seek(0)
            err.seek(0)
            return Completed(status, out.read(), err.read())

    def shell(self, script: str) -> str:
        """Output of a shell script in the guest, which must succeed."""
        done = self.run("sh", "-c", script)
        assert done.status == 0, done
        return done.stdout.decode().strip()

    def info(self) -> dict[str, Any]:
        """What `minivmm info --json` shows."""
        answer: dict[str, Any] = self.qmp.execute("x-minivmm-info")
        return answer

    def device(self, identifier: str = "vmem0") -> dict[str, Any]:
        """What `info` says about a memory device."""
        found: list[dict[str, Any]] = self.info()["memory-devices"]
        return next(one for one in found if one["id"] == identifier)

    def plugged(self) -> dict[str, int]:
        """Bytes plugged, by device; cheaper than `info`."""
        found = self.qmp.execute("query-memory-devices")
        return {one["data"]["id"]: one["data"]["size"] for one in found}

    def request(self, **sizes: int) -> None:
        """Set new targets in bytes, by device."""
        for identifier, size in sizes.items():
            self.qmp.execute("qom-set", path=identifier, property="requested-size", value=size)

    def resize(self, vmem0: int | None = None, **others: int) -> None:
        """Ask for sizes in bytes, by device, and wait until exactly that is plugged."""
        wanted = others if vmem0 is None else {"vmem0": vmem0, **others}
        self.request(**wanted)
        self.wait_until(lambda: wanted.items() <= self.plugged().items(), f"plugged sizes {wanted}")

    def memory_total(self) -> int:
        """MemTotal of the guest in bytes."""
        return int(self.shell("read -r _ n _ < /proc/meminfo; echo $n")) * 1024

    def wait_until(
        self, condition: Callable[[], bool], what: str, seconds: float = SETTLE_SECONDS
    ) -> None:
        """Poll `condition`; fails with `what` and the device's state after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"no {what} after {seconds} s: {self.info()}"
            time.sleep(0.2)

    def _connect(self) -> Client:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                return Client(self.directory.qmp_socket)
            except NoSuchMachine:
                assert self.process.is_alive(), self.output()
                assert time.monotonic() < deadline, "no control socket"
                time.sleep(0.1)
