"""The conversation recorded with QEMU 7.2: raw, by qemu.qmp's client, and by qmp-shell."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "recorded" / "qemu-7.2.json").read_text()
)
TALK: list[tuple[str, Any]] = [tuple(pair) for pair in RECORDED["conversation"]]
VALID = [
    (json.loads(said), answer)
    for said, answer in TALK
    if said.startswith('{"execute":"q') and "qmp_" not in said
    if '"bogus":1' not in said and "null}" not in said
][1:]
"""What a well-behaved client can say: the first of them came before negotiation."""


@pytest.fixture
def machine(wired: Any) -> FakeMachine:
    """Instead of the usual one: the recorded devices, before the machine runs."""
    wired.machine.state = "prelaunch"
    found: FakeMachine = wired.machine
    return found


def talk(live: MachineDir) -> list[Any]:
    """All our answers."""
    answers = []
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(str(live.qmp_socket))
        lines = raw.makefile("rb")
        lines.readline()
        for said, _ in TALK:
            raw.sendall(said.encode())
            answers.append(json.loads(lines.readline()))
        lines.close()
    return answers


def test_every_answer_is_qemus(live: MachineDir) -> None:
    for (said, theirs), ours in zip(TALK, talk(live), strict=True):
        assert ours == theirs, said


def test_two_clients_talk_at_once(live: MachineDir) -> None:
    async def drive() -> list[list[Any]]:
        talks = (asyncio.to_thread(talk, live) for _ in range(4))
        return list(await asyncio.gather(*talks))

    assert [answers == [a for _, a in TALK] for answers in asyncio.run(drive())] == [True] * 4


def test_qmp_client_gets_the_same(live: MachineDir) -> None:
    async def drive() -> None:
        client = QMPClient("recorded")
        await client.connect(str(live.qmp_socket))
        for request, theirs in VALID:
            arguments = request.get("arguments")
            ours: dict[str, Any]
            try:
                ours = {"return": await client.execute(request["execute"], arguments)}
            except ExecuteError as error:
                ours = {"error": {"class": error.error_class, "desc": str(error)}}
            assert ours == {key: theirs[key] for key in theirs if key != "id"}, request
        await client.disconnect()

    asyncio.run(drive())


def test_qmp_shell_gets_the_same(live: MachineDir) -> None:
    words = []
    for request, _ in VALID:
        arguments = request.get("arguments", {})
        pairs = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in arguments.items()
        ]
        words.append(" ".join([request["execute"], *pairs]))
    printed = _shell(live, words)

    for _, theirs in VALID:
        if "error" in theirs:
            assert theirs["error"]["desc"] in printed


def test_qmp_shell_speaks_the_recorded_monitor_lines(live: MachineDir) -> None:
    lines = ("info status", "info numa", "info cpus", "qom-set vmem0 requested-size 3", "stop 3")
    printed = _shell(live, lines, "-H")

    assert "VM status: paused (prelaunch)" in printed
    assert "node 1 size: 256 MB" in printed
    assert "* CPU #0: thread_id=4711" in printed
    for line in lines[3:]:
        assert RECORDED["monitor"][line].splitlines()[0] in printed


def _shell(live: MachineDir, lines: list[str] | tuple[str, ...], *options: str) -> str:
    shell = str(Path(sys.executable).with_name("qmp-shell"))
    done = subprocess.run(
        [shell, *options, str(live.qmp_socket)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=30,
        env={"HOME": str(live.path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
