"""The console device against a driver that behaves like Linux's (virtio-spec 5.3)."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from minivmm.devices.virtio_console.device import PORT_NAMES, QUEUE_SIZE, VirtioConsole
from minivmm.spec.virtio_console import (
    CONTROL_RECEIVE_QUEUE,
    ConsoleConfig,
    Event,
    receive_queue,
    transmit_queue,
)
from minivmm.testing.console_guest import PAGE, ConsoleGuest, GuestBuffer


@pytest.fixture
def console() -> VirtioConsole:
    return VirtioConsole()


@pytest.fixture
def guest(console: VirtioConsole) -> Iterator[ConsoleGuest]:
    lock = threading.RLock()
    guest = ConsoleGuest(console, lock)
    with lock:  # device code always runs with the machine's lock held
        guest.probe()
        yield guest


def collect(console: VirtioConsole, number: int) -> list[bytes]:
    got: list[bytes] = []
    console.ports[number].on_data = got.append
    return got


def test_ports_are_announced_with_names_and_open(guest: ConsoleGuest) -> None:
    assert [port.name for _, port in sorted(guest.ports.items())] == list(PORT_NAMES)
    assert all(port.host_open for port in guest.ports.values())


def test_queue_numbers_follow_the_specification() -> None:
    assert [receive_queue(n) for n in range(3)] == [0, 4, 6]
    assert [transmit_queue(n) for n in range(3)] == [1, 5, 7]


def test_configuration_tells_the_number_of_ports(console: VirtioConsole) -> None:
    config = ConsoleConfig.parse(console.config_space())

    assert config == ConsoleConfig(max_nr_ports=11)
    assert len(console.traits.queue_sizes) == 24


def test_guest_data_reaches_the_owner(console: VirtioConsole, guest: ConsoleGuest) -> None:
    got = collect(console, 3)
    guest.open(3)

    guest.write(3, b"one")
    guest.write(3, b"two")

    assert got == [b"one", b"two"]


def test_open_and_close_of_the_guest_are_reported(
    console: VirtioConsole, guest: ConsoleGuest
) -> None:
    seen: list[bool] = []
    console.ports[2].on_guest_open = seen.append

    guest.open(2)
    guest.close(2)

    assert seen == [True, False]


def test_data_sent_early_waits_for_the_guest(console: VirtioConsole, guest: ConsoleGuest) -> None:
    console.ports[1].send(b"patience")
    assert console.ports[1].pending == 8

    guest.open(1)

    assert guest.read(1) == b"patience"
    assert console.ports[1].pending == 0


def test_large_input_flows_as_the_guest_reads(console: VirtioConsole, guest: ConsoleGuest) -> None:
    data = bytes(range(256)) * 1024
    taken: list[int] = []
    console.ports[1].on_taken = taken.append
    guest.open(1)

    console.ports[1].send(data)
    assert sum(taken) == QUEUE_SIZE * PAGE
    got = b"".join(guest.read(1) for _ in range(len(data) // PAGE))

    assert got == data
    assert sum(taken) == len(data)


def test_drained_means_read_by_a_process(console: VirtioConsole, guest: ConsoleGuest) -> None:
    drained: list[bool] = []
    console.ports[1].on_drained = lambda: drained.append(True)
    guest.open(1)

    console.ports[1].send(b"ab")
    guest.read(1, 1)
    half = (console.ports[1].drained, list(drained))
    guest.read(1, 1)

    assert half == (False, [])
    assert console.ports[1].drained
    assert drained == [True]


def test_closing_the_hosts_side_is_end_of_file(console: VirtioConsole, guest: ConsoleGuest) -> None:
    guest.open(1)
    console.ports[1].send(b"last")

    console.ports[1].set_host_open(False)

    assert [guest.read(1), guest.read(1)] == [b"last", b""]
    console.ports[1].set_host_open(True)
    assert guest.ports[1].host_open


def test_throttled_port_leaves_data_with_the_guest(
    console: VirtioConsole, guest: ConsoleGuest
) -> None:
    got = collect(console, 1)
    guest.open(1)
    console.ports[1].set_throttled(True)

    for number in range(QUEUE_SIZE):
        guest.write(1, bytes((number,)))
    assert got == []
    console.ports[1].set_throttled(False)

    assert got == [bytes((number,)) for number in range(QUEUE_SIZE)]


def test_throttling_inside_the_callback_stops_at_once(
    console: VirtioConsole, guest: ConsoleGuest
) -> None:
    port = console.ports[1]
    got: list[bytes] = []

    def take(data: bytes) -> None:
        got.append(data)
        port.set_throttled(True)

    guest.open(1)
    port.set_throttled(True)
    for word in (b"a", b"b", b"c"):
        guest.write(1, word)
    port.on_data = take

    port.set_throttled(False)
    assert got == [b"a"]
    port.set_throttled(False)

    assert got == [b"a", b"b"]


def test_close_comes_after_what_was_written_before_it(
    console: VirtioConsole, guest: ConsoleGuest
) -> None:
    order: list[object] = []
    console.ports[1].on_data = order.append
    console.ports[1].on_guest_open = order.append
    guest.open(1)
    console.ports[1].set_throttled(True)
    guest.write(1, b"bye")

    console.ports[1].throttled = False
    guest.close(1)

    assert order == [True, b"bye", False]


def test_unread_input_does_not_reach_the_next_opener(
    console: VirtioConsole, guest: ConsoleGuest
) -> None:
    guest.open(1)
    console.ports[1].send(b"x" * (QUEUE_SIZE + 1) * PAGE)
    guest.close(1)

    guest.open(1)
    console.ports[1].send(b"fresh")

    assert guest.read(1) == b"fresh"


def test_device_reset_closes_ports_and_a_new_probe_works(
    console: VirtioConsole, guest: ConsoleGuest
) -> None:
    seen: list[bool] = []
    console.ports[1].on_guest_open = seen.append
    got = collect(console, 1)
    guest.open(1)
    console.ports[1].send(b"lost")

    guest.reset()
    guest.probe()
    guest.open(1)
    console.ports[1].send(b"kept")
    guest.write(1, b"hello")

    assert seen == [True, False, True]
    assert guest.read(1) == b"kept"
    assert got == [b"hello"]
    assert guest.ports[1].name == PORT_NAMES[1]


@pytest.mark.parametrize(
    ("number", "event"),
    [(12, Event.PORT_READY), (0xFFFF_FFFF, Event.PORT_OPEN), (0, Event.RESIZE), (0, 99)],
)
def test_nonsense_messages_are_traced_and_ignored(
    guest: ConsoleGuest, number: int, event: int
) -> None:
    guest.send_message(number, event, 1)

    assert guest.events[-1][0] == "bad-message"


def test_flood_of_messages_without_buffers_does_not_grow(
    console: VirtioConsole, guest: ConsoleGuest
) -> None:
    guest._queues[CONTROL_RECEIVE_QUEUE].available.clear()

    for _ in range(1000):
        guest.send_message(0, Event.DEVICE_READY, 1)
        guest.send_message(5, Event.PORT_READY, 1)

    unsent = console.inspect()["unsent-messages"]
    assert isinstance(unsent, int)
    assert unsent <= 3 * len(PORT_NAMES)


def test_control_buffer_too_small_for_a_message_is_survived(
    console: VirtioConsole, guest: ConsoleGuest
) -> None:
    queue = guest._queues[CONTROL_RECEIVE_QUEUE]
    queue.available.appendleft(GuestBuffer(writable=4))

    console.ports[1].set_host_open(False)

    assert ("short-buffer", {"size": 4, "message": 8}) in guest.events
    assert not guest.ports[1].host_open
