"""The peer's side without QEMU: its agent over sockets, and what /proc tells of a process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from minivmm.errors import GuestFailure, WaitTimeout
from minivmm.matrix.processes import _mappings, process_use
from minivmm.matrix.qemu_agent import QemuAgent
from minivmm.units import GIB, KIB


@pytest.fixture
def ends() -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """Ours and the guest's: control, output, errors."""
    pairs = [socket.socketpair() for _ in range(3)]
    yield [one for one, _ in pairs], [two for _, two in pairs]
    for pair in pairs:
        for one in pair:
            one.close()


def play(guest: list[socket.socket], act: Callable[[str], None]) -> threading.Thread:
    """Answer the next command as the guest's agent would."""
    thread = threading.Thread(target=lambda: act(guest[0].recv(1 << 16).decode()))
    thread.start()
    return thread


Ends = tuple[list[socket.socket], list[socket.socket]]


def test_a_command_gives_status_and_both_outputs(ends: Ends) -> None:
    ours, guest = ends
    agent = QemuAgent(ours)
    guest[0].sendall(b"ready 6.12-x\n")
    agent.wait_ready(1)
    assert agent.release == "6.12-x"
    seen = []

    def act(line: str) -> None:
        seen.append(line)
        guest[1].sendall(b"out\n" * 10)
        guest[2].sendall(b"err\n")
        guest[0].sendall(b"exit 1 3\n")

    guest[1].sendall(b"stale")
    thread = play(guest, act)
    ran = agent.run("echo $x", 5)
    thread.join()

    assert (ran.status, ran.stdout, ran.stderr) == (3, "out\n" * 10, "err\n")
    assert seen[0].split()[:5] == ["exec", "1", "-", "1", "2"]


def test_a_guest_that_restarts_or_stays_silent_ends_a_command(ends: Ends) -> None:
    ours, guest = ends
    agent = QemuAgent(ours)
    thread = play(guest, lambda line: guest[0].sendall(b"ready 6.12-x\n"))
    with pytest.raises(GuestFailure, match="started anew during 'true'"):
        agent.run("true", 5)
    thread.join()
    with pytest.raises(WaitTimeout, match="'true' has not ended after"):
        agent.run("true", 0.01)
    with pytest.raises(WaitTimeout, match="not ready"):
        agent.wait_ready(0.01)


def test_a_peer_that_died_is_told(ends: Ends) -> None:
    ours, guest = ends
    guest[0].close()
    with pytest.raises(GuestFailure, match="QEMU has ended"):
        QemuAgent(ours).wait_ready(1)


def test_a_process_counts_its_files_and_threads() -> None:
    before = process_use(os.getpid())
    with open(os.devnull, "rb"):  # noqa: PTH123 - just a file
        assert process_use(os.getpid()).fds == before.fds + 1
    assert before.threads >= 1
    assert before.resident > 1 << 20


def test_large_mappings_are_the_guests_memory() -> None:
    smaps = b"".join(
        b"%x-%x rw-p 00000000 00:00 0 %s\nSize: 1 kB\nRss:  %d kB\n" % row
        for row in [
            (0x1000, 0x3000, b"[heap]", 8),
            (0x100000000, 0x180000000, b"", 4096),
            (0x200000000, 0x201000000, b"/usr/lib/x.so", 16),
        ]
    )
    assert _mappings(smaps) == (24 * KIB, ((2 * GIB, 4096 * KIB),))
