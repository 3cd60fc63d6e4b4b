"""The virtio console as a person's console: keys in, text out, nothing lost and nothing endless."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from minivmm.devices.virtio_console.device import CONSOLE_PORT, VirtioConsole
from minivmm.devices.virtio_console.terminal import BACKLOG_SIZE, Terminal
from minivmm.testing.console_guest import ConsoleGuest


@pytest.fixture
def console() -> VirtioConsole:
    return VirtioConsole()


@pytest.fixture
def terminal(console: VirtioConsole) -> Terminal:
    return Terminal(console.ports[CONSOLE_PORT])


@pytest.fixture
def guest(console: VirtioConsole, terminal: Terminal) -> Iterator[ConsoleGuest]:
    """Attached, not probed; the lock is held, as always in device code."""
    lock = threading.RLock()
    with lock:
        yield ConsoleGuest(console, lock)


def test_keys_typed_early_wait_for_the_driver(terminal: Terminal, guest: ConsoleGuest) -> None:
    assert terminal.receive(b"ls\n") == 3

    guest.probe()
    guest.open(CONSOLE_PORT)

    assert guest.read(CONSOLE_PORT) == b"ls\n"


def test_what_the_guest_prints_comes_out(terminal: Terminal, guest: ConsoleGuest) -> None:
    seen: list[bytes] = []
    terminal.on_output = seen.append
    guest.probe()
    guest.open(CONSOLE_PORT)

    guest.write(CONSOLE_PORT, b"hello")

    assert seen == [b"hello"]


def test_input_is_taken_as_there_is_room(terminal: Terminal, guest: ConsoleGuest) -> None:
    spaces: list[int] = []
    terminal.on_space = lambda: spaces.append(1)
    data = bytes(BACKLOG_SIZE + 1)

    taken = [terminal.receive(data), terminal.receive(data)]
    before = len(spaces)
    guest.probe()
    guest.open(CONSOLE_PORT)

    assert taken == [BACKLOG_SIZE, 0]
    assert (before, len(spaces)) == (0, 1)
    assert terminal.receive(b"more") == 4


def test_a_reset_forgets_what_nobody_read(terminal: Terminal, guest: ConsoleGuest) -> None:
    guest.probe()
    guest.open(CONSOLE_PORT)
    spaces: list[int] = []
    terminal.on_space = lambda: spaces.append(1)
    while terminal.receive(bytes(4096)) == 4096:
        pass

    guest.reset()

    assert spaces == [1]
    assert terminal.receive(b"again") == 5
