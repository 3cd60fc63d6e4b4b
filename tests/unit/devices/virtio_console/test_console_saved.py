"""The saved state of a console: ports, bytes on their way, messages; and who owns them then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minivmm.devices.virtio_console.device import CONSOLE_PORT, CONTROL_PORT, VirtioConsole
from minivmm.devices.virtio_console.saved import CONSOLE
from minivmm.devices.virtio_console.terminal import Terminal
from minivmm.errors import BadState
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio_console import Event
from minivmm.testing.console_guest import PAGE, ConsoleGuest
from minivmm.testing.fake_queue import FakeSignals


@pytest.fixture
def guest() -> Iterator[ConsoleGuest]:
    lock = threading.RLock()
    with lock:
        guest = ConsoleGuest(VirtioConsole(), lock)
        guest.probe()
        guest.open(CONSOLE_PORT)
        yield guest


def test_keys_that_nobody_has_read_yet_are_read_in_the_new_process(guest: ConsoleGuest) -> None:
    keys = b"x" * (40 * PAGE)  # more than the guest has buffers for
    guest.device.ports[CONSOLE_PORT].send(keys)
    assert guest.device.ports[CONSOLE_PORT].pending

    guest.move(VirtioConsole())

    got = b""
    while len(got) < len(keys):
        got += guest.read(CONSOLE_PORT)
    assert got == keys
    assert guest.device.ports[CONSOLE_PORT].drained


def test_keys_and_output_go_on(guest: ConsoleGuest) -> None:
    new = VirtioConsole()
    terminal, shown = Terminal(new.ports[CONSOLE_PORT]), []
    terminal.on_output = shown.append
    guest.move(new)

    terminal.receive(b"ls\n")
    guest.write(CONSOLE_PORT, b"bin dev\n")

    assert guest.read(CONSOLE_PORT) == b"ls\n"
    assert shown == [b"bin dev\n"]


def test_ports_are_as_open_as_they_were_and_nobody_is_told(guest: ConsoleGuest) -> None:
    guest.open(CONTROL_PORT)
    guest.device.ports[4].set_host_open(False)
    new, told = VirtioConsole(), []
    for port in new.ports:
        port.on_guest_open = told.append
        port.on_open_change = told.append

    guest.move(new)

    assert [port.id for port in new.ports if port.guest_open] == [CONSOLE_PORT, CONTROL_PORT]
    assert [port.id for port in new.ports if not port.host_open] == [4]
    assert told == []
    new.ports[4].set_host_open(True)
    assert guest.ports[4].host_open


def test_messages_that_wait_for_buffers_are_sent_by_the_new_process(guest: ConsoleGuest) -> None:
    data = CONSOLE.parse(guest.device.save_state())
    data.outbox = [{"port": 3, "event": int(Event.PORT_OPEN), "value": 0}]
    new = VirtioConsole()
    old, guest.device = guest.device, new
    new.attach(old.memory, guest)
    new.load_state(CONSOLE.build(data))
    new.adopt((None,) * len(new.traits.queue_sizes))
    assert guest.ports[3].host_open

    for index in range(len(new.traits.queue_sizes)):
        guest.kick(index)

    assert not guest.ports[3].host_open


def test_ports_are_not_added_twice(guest: ConsoleGuest) -> None:
    guest.move(VirtioConsole())
    ports = dict(guest.ports)

    guest.send_message(0xFFFF_FFFF, Event.DEVICE_READY, 1)

    assert guest.ports == ports


def test_every_process_is_a_life_of_its_own(guest: ConsoleGuest) -> None:
    lives = []
    for _ in range(3):
        new = VirtioConsole()
        new.on_restore = lambda new=new: lives.append(new.lives)
        guest.move(new)

    assert lives == [1, 2, 3]


def test_driver_without_ports_has_its_console(guest: ConsoleGuest) -> None:
    device = VirtioConsole()
    device.attach(GuestMemory(), FakeSignals())
    assert device.accept_features(1 << 32)
    device.start(())

    new = VirtioConsole()
    new.load_state(device.save_state())

    assert new.ports[CONSOLE_PORT].guest_open
    assert new.save_state() == device.save_state()


def with_port(saved: Any, **changes: Any) -> None:
    saved.ports[2].update(changes)


def message(**changes: int) -> dict[str, int]:
    return {"port": 1, "event": int(Event.PORT_OPEN), "value": 1} | changes


DAMAGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "a port less": ("ports", lambda saved: saved.ports.pop()),
    "a port that is not there is ready": (
        "ready ports",
        lambda saved: saved.update({"ready": 1 << 11}),
    ),
    "message of no port": ("message", lambda saved: saved.update({"outbox": [message(port=11)]})),
    "message of the driver": (
        "message",
        lambda saved: saved.update({"outbox": [message(event=0)]}),
    ),
    "message twice": (
        "messages",
        lambda saved: saved.update({"outbox": [message(), message(value=0)]}),
    ),
    "drained, but not": ("port 2", lambda saved: with_port(saved, drained=True, backlog=b"x")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_no_guest_can_cause_is_refused(guest: ConsoleGuest, damage: str) -> None:
    saved = CONSOLE.parse(guest.device.save_state())
    field, act = DAMAGES[damage]
    act(saved)

    with pytest.raises(BadState) as caught:
        VirtioConsole().load_state(CONSOLE.build(saved))

    assert caught.value.field == field
