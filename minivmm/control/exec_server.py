"""The exec socket of a running VM: each client connection is one command in the guest.

minivmm.frames on the wire, channel 0. The client opens with OPEN:

    {"argv": [...], "env": {}, "cwd": null, "stdin": false, "timeout": 60}

Strings are text with surrogateescape; `timeout` is how long to wait for the guest agent, in seconds
(null: forever). Then STDIN, STDIN_EOF and SIGNAL from the client; STDOUT, STDERR, CREDIT and at the
end EXIT or FAILED {"error", "class"} from here. A client sends only as much STDIN as CREDIT frames
allowed, so that signals and disconnection are noticed however little the command reads. A client
that disconnects kills its command.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path

from minivmm.control.agent import GuestAgent
from minivmm.control.agent_session import Callbacks, Session
from minivmm.control.exec_request import CREDIT, ExecRequest
from minivmm.control.listening import stop_listening
from minivmm.control.readiness import until_ready
from minivmm.errors import GuestFailure, MinivmmError, UsageError
from minivmm.frames import Decoder, Frame, FrameError, Kind
from minivmm.loop import EventLoop
from minivmm.vcpu import blame

STDIN_WINDOW = 256 * 1024
"""Bytes of stdin that may be on their way from the client to the guest's buffers."""

OUTPUT_LIMIT = 256 * 1024
"""Bytes of output waiting for the client; with more, the command is made to wait."""

_READ_SIZE = 64 * 1024


class ExecServer:
    """Listens on the exec socket; lives on the machine's asyncio loop."""

    def __init__(self, agent: GuestAgent, loop: EventLoop) -> None:
        self._agent = agent
        self._loop = loop
        self._server: asyncio.Server | None = None
        self._clients: dict[_Client, asyncio.Task[None]] = {}

    async def start(self, path: Path) -> None:
        """Listen at `path`. Raises OSError if that is impossible."""
        self._server = await asyncio.start_unix_server(self._accept, path)

    async def close(self) -> None:
        """Stop listening; clients still connected lose their connection."""
        if self._server is not None:
            await stop_listening(self._server)
        for client in self._clients:
            client.stop()
        await asyncio.gather(*self._clients.values())

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(self._agent, self._loop, reader, writer)
        task = asyncio.get_running_loop().create_task(client.serve())
        self._clients[client] = task
        task.add_done_callback(lambda _: self._clients.pop(client))


class _Client:
    """One connection. Coroutines run on the loop without the lock; on_* run with it, anywhere."""

    def __init__(
        self,
        agent: GuestAgent,
        loop: EventLoop,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._agent = agent
        self._loop = loop
        self._reader = reader
        self._writer = writer
        self._session: Session | None = None
        self._opener: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._stopped = asyncio.Event()
        # Under the lock:
        self._output: list[bytes] = []
        self._output_size = 0
        self._throttled = False
        self._last_posted = False
        self._taken = 0

    async def serve(self) -> None:
        """Until the command has ended and the client knows, or the client is gone."""
        work = (self._read(), self._write(), self._stopped.wait())
        tasks = {asyncio.ensure_future(part) for part in work}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self._opener is not None:
            tasks.add(self._opener)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._abandon()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def stop(self) -> None:
        """Have `serve` end now, whatever the client still has to read."""
        self._stopped.set()
        self._writer.transport.abort()

    def _abandon(self) -> None:
        """Kill what may still run, and let its output go nowhere."""
        with self._loop.lock:
            self._last_posted = True
            if self._session is not None:
                self._session.set_throttled(False)
                self._session.kill(signal.SIGKILL)

    # -- from the client ---------------------------------------------------------------------------

    async def _read(self) -> None:
        decoder = Decoder()
        try:
            while data := await self._reader.read(_READ_SIZE):
                for frame in decoder.feed(data):
                    self._handle(frame)
        except (FrameError, ValueError) as error:
            self._fail(UsageError(f"exec protocol: {error}"))
            await asyncio.Event().wait()  # the writer ends the connection
        except OSError:
            return

    def _handle(self, frame: Frame) -> None:
        """Raises ValueError for a frame that does not belong here."""
        if frame.kind == Kind.OPEN and self._opener is None:
            request = ExecRequest.decode(frame.payload)
            self._opener = asyncio.ensure_future(self._open(request))
        elif frame.kind == Kind.SIGNAL:
            self._handle_signal(json.loads(frame.payload))
        elif frame.kind in (Kind.STDIN, Kind.STDIN_EOF) and self._session is not None:
            with self._loop.lock:
                if frame.kind == Kind.STDIN:
                    self._session.write_stdin(frame.payload)
                else:
                    self._session.close_stdin()
        else:
            raise ValueError(f"unexpected {frame.kind.name} frame")

    def _handle_signal(self, message: object) -> None:
        number = message.get("signal") if isinstance(message, dict) else None
        if not isinstance(number, int) or not 1 <= number < signal.NSIG:
            raise ValueError(f"{number!r} is not a signal number")
        with self._loop.lock:
            if self._session is not None:
                self._session.kill(number)
                return
        if self._opener is not None:
            self._opener.cancel()
        self._on_exit(128 + number)

    async def _open(self, request: ExecRequest) -> None:
        try:
            await until_ready(self._agent, self._loop, request.timeout)
            with self._loop.lock:
                self._session = self._agent.run(
                    request.argv,
                    Callbacks(
                        on_stdout=self._on_stdout,
                        on_stderr=self._on_stderr,
                        on_exit=self._on_exit,
                        on_failed=self._fail,
                        on_stdin_taken=self._on_stdin_taken,
                    ),
                    env=request.env,
                    cwd=request.cwd,
                    stdin=request.stdin,
                )
                self._grant(STDIN_WINDOW)
        except MinivmmError as error:
            self._fail(error)
        except Exception as error:  # a bug of ours: nobody else would ever answer the client
            self._fail(GuestFailure(blame(error)))

    # -- to the client -----------------------------------------------------------------------------

    async def _write(self) -> None:
        """Send what was posted; returns after the last frame."""
        last = False
        while not last:
            await self._wake.wait()
            self._wake.clear()
            with self._loop.lock:
                posted, self._output, self._output_size = self._output, [], 0
                last = self._last_posted
            self._writer.writelines(posted)
            try:
                await self._writer.drain()
            except OSError:
                return
            with self._loop.lock:
                if self._throttled and self._session is not None:
                    self._throttled = False
                    self._session.set_throttled(False)

    def _post(self, kind: Kind, payload: bytes) -> None:
        """Have a frame sent; nothing follows EXIT or FAILED."""
        with self._loop.lock:
            if self._last_posted:
                return
            self._last_posted = kind in (Kind.EXIT, Kind.FAILED)
            self._output.append(Frame(0, kind, payload).encode())
            self._output_size += len(payload)
            if self._output_size > OUTPUT_LIMIT and self._session and not self._throttled:
                self._throttled = True
                self._session.set_throttled(True)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the machine is gone
            self._loop.asyncio.call_soon_threadsafe(self._wake.set)

    def _on_stdout(self, data: bytes) -> None:
        self._post(Kind.STDOUT, data)

    def _on_stderr(self, data: bytes) -> None:
        self._post(Kind.STDERR, data)

    def _on_exit(self, status: int) -> None:
        self._post(Kind.EXIT, json.dumps({"status": status}).encode())

    def _fail(self, error: MinivmmError) -> None:
        message = {"error": str(error), "class": type(error).__name__}
        self._post(Kind.FAILED, json.dumps(message).encode())

    def _on_stdin_taken(self, count: int) -> None:
        """Grant again what the guest took, in big pieces."""
        self._taken += count
        if self._taken >= STDIN_WINDOW // 2:
            self._grant(self._taken)
            self._taken = 0

    def _grant(self, count: int) -> None:
        self._post(Kind.CREDIT, CREDIT.pack(Kind.STDIN, count))
