"""The console socket: many watch, many type, and nobody holds up the guest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from minivmm.control.console_hub import BACKLOG, ConsoleHub
from minivmm.control.console_server import LOST, WAITING_MAX, ConsoleServer
from minivmm.loop import EventLoop


class Guest:
    """What is typed at its console; it takes `room` bytes more."""

    def __init__(self) -> None:
        self.typed = b""
        self.room = 1 << 20
        self.on_space: Callable[[], None] = lambda: None

    def receive(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.typed += taken
        return len(taken)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Bench:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = EventLoop(asyncio.get_running_loop())
        self.hub = ConsoleHub(self.loop)
        self.guest = Guest()
        self.hub.connect(self.guest)
        self.server = ConsoleServer(self.hub, self.loop)

    def print(self, data: bytes) -> None:
        with self.loop.lock:
            self.hub.print(data)

    async def connect(self) -> Streams:
        before = len(self.server._clients)
        streams = await asyncio.open_unix_connection(str(self.path))
        await until(lambda: len(self.server._clients) > before)
        await asyncio.sleep(0)
        return streams


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def serve(tmp_path: Path, talk: Callable[[Bench], Awaitable[None]]) -> None:
    """Run `talk` with a server."""

    async def run() -> None:
        bench = Bench(tmp_path / "console.sock")
        await bench.server.start(bench.path)
        try:
            await talk(bench)
        finally:
            await bench.server.close()
        assert not bench.hub._watchers
        assert not bench.hub._keyboards

    asyncio.run(run())


async def close(streams: Streams) -> None:
    streams[1].close()
    with contextlib.suppress(OSError):
        await streams[1].wait_closed()


def test_all_see_what_the_guest_prints(tmp_path: Path) -> None:
    async def talk(bench: Bench) -> None:
        clients = [await bench.connect() for _ in range(3)]

        for byte in b"hello":
            bench.print(bytes((byte,)))

        for reader, _ in clients:
            assert await reader.readexactly(5) == b"hello"
        for client in clients:
            await close(client)

    serve(tmp_path, talk)


def test_all_can_type(tmp_path: Path) -> None:
    async def talk(bench: Bench) -> None:
        clients = [await bench.connect() for _ in range(2)]

        for number, (_, writer) in enumerate(clients):
            writer.write(b"ls%d\r" % number)
            await until(lambda n=number: bench.guest.typed.endswith(b"ls%d\r" % n))

        for client in clients:
            await close(client)

    serve(tmp_path, talk)


def test_who_comes_late_sees_the_end_of_what_was(tmp_path: Path) -> None:
    async def talk(bench: Bench) -> None:
        for number in range(5000):
            bench.print(b"line %d of the boot\r\n" % number)
            if number % 10 == 0:
                await asyncio.sleep(0)
        client = await bench.connect()

        lines = (await client[0].readuntil(b"line 4999 of the boot\r\n")).split(b"\r\n")

        assert lines[0].startswith(b"line ")  # no half of one
        assert sum(map(len, lines)) + 2 * len(lines) <= BACKLOG + 2
        assert len(lines) > 1000
        await close(client)

    serve(tmp_path, talk)


def test_a_client_that_does_not_read_loses_output_and_holds_up_nobody(tmp_path: Path) -> None:
    async def talk(bench: Bench) -> None:
        lazy = await asyncio.open_unix_connection(str(bench.path), limit=1 << 16)
        awake = await bench.connect()
        await until(lambda: len(bench.server._clients) == 2)
        piece = b"x" * (64 << 10)

        for _ in range(3 * WAITING_MAX // len(piece)):
            bench.print(piece)
            assert await awake[0].readexactly(len(piece)) == piece
        read = await drain(lazy[0])
        bench.print(b"the end")

        assert await lazy[0].readexactly(len(LOST) + 7) == LOST + b"the end"
        assert read < 2 * WAITING_MAX
        await close(lazy)
        await close(awake)

    serve(tmp_path, talk)


async def drain(reader: asyncio.StreamReader) -> int:
    """Read until nothing comes; how many bytes."""
    count = 0
    with contextlib.suppress(TimeoutError):
        while True:
            count += len(await asyncio.wait_for(reader.read(1 << 20), 0.3))
    return count


def test_keys_wait_for_a_guest_that_takes_them_slowly(tmp_path: Path) -> None:
    async def talk(bench: Bench) -> None:
        bench.guest.room = 10
        client = await bench.connect()
        client[1].write(b"0123456789abcdefghij")
        await until(lambda: bench.guest.typed == b"0123456789")

        bench.guest.room = 100
        bench.guest.on_space()

        await until(lambda: bench.guest.typed == b"0123456789abcdefghij")
        await close(client)

    serve(tmp_path, talk)


@pytest.mark.parametrize("room", [0, 100], ids=["full", "free"])
def test_clients_that_leave_are_forgotten_although_the_guest_is_silent(
    tmp_path: Path, room: int
) -> None:
    async def talk(bench: Bench) -> None:
        bench.guest.room = room
        for _ in range(20):
            client = await bench.connect()
            client[1].write(b"keys")
            await client[1].drain()
            await close(client)

        await until(lambda: not bench.server._clients)

    serve(tmp_path, talk)


def test_who_has_no_more_to_type_still_watches(tmp_path: Path) -> None:
    async def talk(bench: Bench) -> None:
        client = await bench.connect()
        client[1].write_eof()
        await asyncio.sleep(0.7)

        bench.print(b"still here")

        assert await client[0].readexactly(10) == b"still here"
        await close(client)

    serve(tmp_path, talk)


def test_the_last_words_arrive_before_the_end(tmp_path: Path) -> None:
    async def talk(bench: Bench) -> None:
        client = await bench.connect()
        bench.print(b"reboot: Power down\r\n")
        await asyncio.sleep(0)

        await bench.server.close()

        assert await client[0].read() == b"reboot: Power down\r\n"
        await close(client)

    serve(tmp_path, talk)


def test_only_its_owner_can_connect_and_it_goes_away(tmp_path: Path) -> None:
    async def talk(bench: Bench) -> None:
        assert bench.path.stat().st_mode & 0o077 == 0
        await bench.server.close()
        assert not bench.path.exists()

    serve(tmp_path, talk)
