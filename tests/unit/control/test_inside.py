"""Looking inside a guest takes bounded time and amount, whatever the guest does."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minivmm.control import exec_client, inside
from minivmm.errors import GuestFailure

DEVICE = {"id": "vmem0", "pci-address": "0000:00:02.0", "memaddr": 4 << 30, "max-size": 1 << 30}


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., int]], None]:
    """Have `run` be what a command in the guest does."""
    return lambda run: monkeypatch.setattr(exec_client, "run", run)


def test_the_script_and_its_words_are_sent(guest: Callable[..., None]) -> None:
    sent: list[Any] = []

    def run(path: Path, argv: list[str], *, stdout: int, **rest: object) -> int:
        sent.append((path, argv))
        os.write(stdout, b"device vmem0\ndriver bound\n\xff\n")
        return 0

    guest(run)
    text = inside.look_inside(Path("/sock"), [DEVICE], 10)

    assert text == "device vmem0\ndriver bound\n\ufffd\n"
    ((path, argv),) = sent
    assert path == Path("/sock")
    assert argv[:2] == ["sh", "-c"]
    assert argv[3:] == ["inside", "vmem0", "0000:00:02.0", str(4 << 30), str(1 << 30)]


def test_a_guest_that_hangs_is_left_alone_in_time(guest: Callable[..., None]) -> None:
    over = threading.Event()

    def run(path: Path, argv: list[str], *, stdout: int, **rest: object) -> int:
        os.write(stdout, b"block 4096\n")
        over.wait(10)
        return 0

    guest(run)
    began = time.monotonic()
    text = inside.look_inside(Path("/sock"), [DEVICE], 0.2)
    over.set()

    assert text == "block 4096\n"
    assert time.monotonic() - began < 5


def test_a_guest_that_never_stops_talking_is_cut_off(guest: Callable[..., None]) -> None:
    ended = threading.Event()

    def run(path: Path, argv: list[str], *, stdout: int, **rest: object) -> int:
        try:
            while True:
                os.write(stdout, b"log x\n" * 1000)
        finally:
            ended.set()

    guest(run)
    text = inside.look_inside(Path("/sock"), [DEVICE], 30)

    assert inside.MOST <= len(text) <= 2 * inside.MOST
    assert ended.wait(10), "the other side notices that nobody listens"


def test_a_failure_is_told_in_place_of_facts(guest: Callable[..., None]) -> None:
    def run(path: Path, argv: list[str], **rest: object) -> int:
        raise GuestFailure("cannot start a process")

    guest(run)

    assert inside.look_inside(Path("/sock"), [DEVICE], 10) == "cannot start a process\n"


def test_no_socket_is_a_failure_like_any_other(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        assert "no VM answers" in inside.look_inside(Path("none.sock"), [DEVICE], 10)
