"""A thousand bad inputs: garbage, halves, megabytes without a brace, clients that just leave."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import socket
from pathlib import Path

from minivmm.control.face import Context
from minivmm.control.lexer import MAX_VALUE
from minivmm.control.qmp import QmpServer
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import GIB

ROUNDS = 1000

SEEDS = (
    b'{"execute":"qmp_capabilities"}',
    b'{"execute":"query-status","id":1}',
    b'{"execute":"qom-set","arguments":{"path":"vmem0","property":"requested-size","value":3}}',
    b'{"execute":"query-qmp-schema"}',
    b'{"execute":"x-minivmm-inspect","arguments":{"path":"a.b"}}',
    b'{"execute":"human-monitor-command","arguments":{"command-line":"info pci"}}',
    b'{"execute":"x-query-virtio-status","arguments":{"path":"\xc3\xa9"}}',
)


def mutated(choose: random.Random) -> bytes:
    """One bad input: what a broken client could send before it hangs up."""
    seed = choose.choice(SEEDS)
    kind = choose.randrange(6)
    if kind == 0:
        return choose.randbytes(choose.randrange(1, 300))
    if kind == 1:
        return seed[: choose.randrange(len(seed))]
    if kind == 2:
        data = bytearray(seed)
        for _ in range(choose.randrange(1, 5)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        return bytes(data)
    if kind == 3:
        return choose.choice(b'{["x 1').to_bytes(1, "big") * choose.randrange(1, 3000)
    if kind == 4:
        return b"".join(choose.choices(SEEDS, k=choose.randrange(1, 8)))
    depth = choose.randrange(1, 400)
    return b'{"a":' * depth + choose.choice((b"", b"1", b"]")) + b"}" * depth


async def throw(path: Path, data: bytes, *, listen: bool) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 22)
    writer.write(data)
    if listen:  # some read answers before they leave, others leave while theirs is on its way
        await reader.readline()
    writer.transport.abort()


async def ask(path: Path, *commands: bytes) -> list[object]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 22)
    answers = []
    await reader.readline()
    for command in (b'{"execute":"qmp_capabilities"}', *commands):
        writer.write(command)
        answers.append(json.loads(await reader.readline()))
    writer.close()
    await writer.wait_closed()
    return answers


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.01)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_a_thousand_bad_inputs_leave_the_server_as_it_was(tmp_path: Path) -> None:
    machine = FakeMachine("vm1", [VirtioMemSpec(id="vmem0", size=GIB)])
    choose = random.Random(5)

    async def drive() -> tuple[list[object], int, int, int]:
        path = tmp_path / "q.sock"
        server = QmpServer(Context(machine), machine.lock)
        await server.start(path)
        await ask(path, SEEDS[3])
        await settle()
        gc.collect()
        files, tasks, objects = open_files(), len(asyncio.all_tasks()), len(gc.get_objects())
        for number in range(ROUNDS):
            await throw(path, mutated(choose), listen=bool(number % 2))
        await settle()
        gc.collect()
        grown = len(gc.get_objects()) - objects
        answers = await ask(path, b'{"execute":"query-name"}')
        await settle()
        found = answers, open_files() - files, len(asyncio.all_tasks()) - tasks, grown
        await server.close()
        return found

    answers, files, tasks, grown = asyncio.run(drive())

    assert answers[-1] == {"return": {"name": "vm1"}}
    assert (files, tasks) == (0, 0)
    assert grown < ROUNDS  # not even one object is left of each client
    assert machine.state in ("running", "paused")


def test_megabytes_without_a_brace_are_answered_and_others_are_served(tmp_path: Path) -> None:
    machine = FakeMachine("vm1")

    async def drive() -> tuple[list[str], float]:
        path = tmp_path / "q.sock"
        server = QmpServer(Context(machine), machine.lock)
        await server.start(path)
        reader, writer = await asyncio.open_unix_connection(str(path))
        await reader.readline()
        writer.write(b"x" * (3 * MAX_VALUE) + b"\n" + b'{"execute":"query-name"}')
        loop = asyncio.get_running_loop()
        started = loop.time()
        await ask(path, b'{"execute":"query-name"}')
        took = loop.time() - started
        said = [(await reader.readline()).decode() for _ in range(4)]
        writer.close()
        await writer.wait_closed()
        await server.close()
        return said, took

    said, took = asyncio.run(drive())

    assert sum("value too long" in line for line in said) == 2
    assert "Expecting capabilities negotiation" in said[-1]
    assert took < 1.0


def test_a_client_that_sends_much_and_reads_nothing_holds_up_nobody(tmp_path: Path) -> None:
    machine = FakeMachine("vm1")

    async def drive() -> tuple[object, int]:
        path = tmp_path / "q.sock"
        server = QmpServer(Context(machine), machine.lock)
        await server.start(path)
        greedy = socket.socket(socket.AF_UNIX)
        greedy.connect(str(path))
        greedy.setblocking(False)
        sent = 0
        for data in (SEEDS[0], *[SEEDS[3] * 50] * 200):
            try:
                sent += greedy.send(data)
            except BlockingIOError:
                await asyncio.sleep(0.01)
        answers = await ask(path, b'{"execute":"query-name"}')
        greedy.close()
        await settle()
        await server.close()
        return answers[-1], sent

    answer, _ = asyncio.run(drive())

    assert answer == {"return": {"name": "vm1"}}
