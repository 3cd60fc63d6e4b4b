"""A guest that runs commands as guest/agent.sh does, except that they are processes of this host.

Commands are real shells with real pipes, so that what tests see of bytes, statuses and signals is
the truth. The protocol is described in control/agent.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

from minivmm.devices.virtio_console.device import CONTROL_PORT
from minivmm.testing.console_guest import ConsoleGuest

_OCTAL = re.compile(rb"\\0([0-7]{3})")


def decode_script(encoded: str) -> bytes:
    """What printf %b makes of `encoded`."""
    return _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), encoded.encode("ascii"))


class FakeAgent:
    """Serves the control port of `guest`, which must have been probed, until `stop`."""

    def __init__(self, guest: ConsoleGuest, release: str = "6.12.0-fake") -> None:
        self._guest = guest
        self._release = release
        self._threads: list[threading.Thread] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Open the control port, say `ready`, and serve in a thread."""
        self._guest.open(CONTROL_PORT)
        self._guest.write(CONTROL_PORT, f"ready {self._release}\n".encode())
        self._spawn(self._serve)

    def stop(self) -> None:
        """Die: all commands are killed and all ports closed."""
        for process in list(self._processes.values()):
            _signal_group(process, signal.SIGKILL)
        for number in range(len(self._guest.device.ports)):
            self._guest.close(number)
        for thread in self._threads:
            thread.join(timeout=10)

    @property
    def running(self) -> list[int]:
        """Ids of commands that have not ended."""
        return [number for number, p in self._processes.items() if p.returncode is None]

    def _spawn(self, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _serve(self) -> None:
        buffered = b""
        with suppress(OSError):  # an answer on its way as the port closes
            while data := self._guest.read(CONTROL_PORT):
                *lines, buffered = (buffered + data).split(b"\n")
                for line in lines:
                    self._handle_line(line.decode("ascii"))

    def _handle_line(self, line: str) -> None:
        verb, *words = line.split(" ")
        if verb == "exec":
            number, source, output, errors, script = words
            ports = [None if name == "-" else int(name) for name in (source, output, errors)]
            self._spawn(lambda: self._session(int(number), ports, decode_script(script)))
        elif verb == "hello":
            self._guest.write(CONTROL_PORT, f"here {self._release}\n".encode())
        elif verb == "abandon":
            for process in list(self._processes.values()):
                _signal_group(process, signal.SIGKILL)
        elif verb == "kill":
            self._spawn(lambda: self._kill(int(words[0]), int(words[1])))

    def _kill(self, number: int, signum: int) -> None:
        with self._guest.changed:
            self._guest.changed.wait_for(lambda: number in self._processes, timeout=5)
        _signal_group(self._processes[number], signum)

    def _session(self, number: int, ports: list[int | None], script: bytes) -> None:
        source, output, errors = ports
        assert output is not None
        assert errors is not None
        try:
            self._guest.open(output)
            self._guest.open(errors)
            if source is not None:
                self._guest.open(source)
                self._guest.write(source, b".")
            status = self._run(number, script, source, output, errors)
            self._guest.write(CONTROL_PORT, f"exit {number} {status}\n".encode())
        except OSError:
            return  # reset or stopped: nobody listens any more
        finally:
            # `source` is closed already, and may be somebody else's by now.
            self._guest.close(output)
            self._guest.close(errors)

    def _run(self, number: int, script: bytes, source: int | None, output: int, errors: int) -> int:
        with subprocess.Popen(
            [b"sh", b"-c", script],
            stdin=subprocess.DEVNULL if source is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        ) as process:
            with self._guest.changed:
                self._processes[number] = process
                self._guest.changed.notify_all()
            assert process.stdout is not None
            assert process.stderr is not None
            out, err = process.stdout.fileno(), process.stderr.fileno()
            pumps = [
                self._spawn(lambda: self._pump_out(out, output)),
                self._spawn(lambda: self._pump_out(err, errors)),
            ]
            if source is not None:
                pumps.append(self._spawn(lambda: self._pump_in(process, source)))
            for pump in pumps[:2]:
                pump.join()
            status = process.wait()
            if source is not None:
                self._guest.close(source)
                pumps[2].join()
        return status if status >= 0 else 128 - status

    def _pump_out(self, fd: int, port: int) -> None:
        while data := os.read(fd, 64 * 1024):
            try:
                self._guest.write(port, data)
            except OSError:
                return

    def _pump_in(self, process: subprocess.Popen[bytes], port: int) -> None:
        assert process.stdin is not None
        try:
            while data := self._guest.read(port):
                os.write(process.stdin.fileno(), data)
        except OSError:
            pass  # the command does not read any more
        finally:
            process.stdin.close()


def _signal_group(process: subprocess.Popen[bytes], signum: int) -> None:
    try:
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        return
