"""The console device with everything real between it and a driver: rings, MSI-X, EVENT_IDX."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.devices.virtio_console.device import (
    CONSOLE_PORT,
    PORT_NAMES,
    QUEUE_SIZE,
    VirtioConsole,
)
from minivmm.devices.virtio_console.spec import VirtioConsoleSpec
from minivmm.errors import UsageError
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.spec.virtio_console import (
    CONTROL_RECEIVE_QUEUE,
    CONTROL_TRANSMIT_QUEUE,
    NO_PORT,
    ConsoleConfig,
    ControlMessage,
    Event,
    receive_queue,
    transmit_queue,
)
from minivmm.spec.virtio_pci import CapabilityType
from minivmm.testing.driver import DeviceBench, VirtioPciDriver

PAGE = 4096
Bench = tuple[VirtioConsole, DeviceBench]


@pytest.fixture
def bench() -> Iterator[Bench]:
    console = VirtioConsole()
    with DeviceBench(console) as bench:
        yield console, bench


def fill(driver: VirtioPciDriver, index: int, count: int = QUEUE_SIZE) -> None:
    """Give the device `count` buffers; what it used stays for `collect`."""
    for _ in range(count):
        driver.queues[index].add(writable=(PAGE,))
        if driver.queues[index].wants_kick():
            driver.kick(index)


def say(driver: VirtioPciDriver, number: int, event: Event, value: int = 1) -> None:
    driver.submit(CONTROL_TRANSMIT_QUEUE, ControlMessage(number, event, value).build())


def hear(driver: VirtioPciDriver) -> list[tuple[ControlMessage, bytes]]:
    """Control messages that arrived; their buffers go back."""
    used = driver.queues[CONTROL_RECEIVE_QUEUE].collect()
    fill(driver, CONTROL_RECEIVE_QUEUE, len(used))
    return [(ControlMessage.parse(u.data), u.data[ControlMessage.SIZE :]) for u in used]


def open_port(driver: VirtioPciDriver, number: int) -> None:
    """What Linux and then a process do with a port; control messages are left alone."""
    fill(driver, receive_queue(number))
    say(driver, number, Event.PORT_READY)
    say(driver, number, Event.PORT_OPEN)


def start(driver: VirtioPciDriver) -> None:
    driver.start()
    fill(driver, CONTROL_RECEIVE_QUEUE)
    say(driver, NO_PORT, Event.DEVICE_READY)


def test_identity_and_configuration(bench: Bench) -> None:
    _, b = bench
    b.driver.start()

    assert b.driver.read_pci(0, 4) == 0x1043_1AF4
    assert b.driver.read_config(ConsoleConfig.SIZE) == ConsoleConfig(max_nr_ports=11).build()


def test_without_multiport_there_is_a_console_and_nothing_else(bench: Bench) -> None:
    console, b = bench
    got: list[bytes] = []
    console.ports[CONSOLE_PORT].on_data = got.append
    b.driver.start(Feature.VERSION_1.mask)

    fill(b.driver, receive_queue(CONSOLE_PORT), 2)
    console.ports[CONSOLE_PORT].send(b"keys")
    received = b.driver.queues[receive_queue(CONSOLE_PORT)].collect()
    b.driver.submit(transmit_queue(CONSOLE_PORT), b"text")
    ignored = b.driver.submit(CONTROL_TRANSMIT_QUEUE, ControlMessage(0, Event.PORT_READY).build())

    assert [used.data for used in received] == [b"keys"]
    assert got == [b"text"]
    assert ignored == []


def test_port_0_is_a_console(bench: Bench) -> None:
    _, b = bench
    start(b.driver)
    hear(b.driver)

    say(b.driver, CONSOLE_PORT, Event.PORT_READY)
    told = [(m.id, m.event, m.value) for m, _ in hear(b.driver)]

    assert (CONSOLE_PORT, Event.CONSOLE_PORT, 1) in told


def test_ports_are_added_once_in_the_life_of_a_driver(bench: Bench) -> None:
    _, b = bench
    start(b.driver)
    hear(b.driver)

    say(b.driver, NO_PORT, Event.DEVICE_READY)
    again = hear(b.driver)
    start(b.driver)
    new_driver = hear(b.driver)

    assert again == []
    assert [m.event for m, _ in new_driver] == [Event.PORT_ADD] * len(PORT_NAMES)


def test_a_character_is_printed_at_any_time_whatever_became_of_the_queues(bench: Bench) -> None:
    console, b = bench
    got: list[bytes] = []
    console.ports[CONSOLE_PORT].on_data = got.append
    at = ConsoleConfig.OFFSETS["emerg_wr"]
    b.driver.probe()

    b.driver.write(CapabilityType.DEVICE, at, 4, 0x1234_5641)
    b.driver.start()
    b.driver.write(CapabilityType.DEVICE, at, 1, ord("B"))
    b.driver.write(CapabilityType.DEVICE, 0, 4, ord("x"))
    b.driver.queues[CONTROL_TRANSMIT_QUEUE].add_at([(1 << 40, 8)])
    b.driver.kick(CONTROL_TRANSMIT_QUEUE)
    b.driver.write(CapabilityType.DEVICE, at, 4, ord("C"))

    assert DeviceStatus.NEEDS_RESET in b.driver.status
    assert got == [b"A", b"B", b"C"]
    assert b.driver.read_config(ConsoleConfig.SIZE) == ConsoleConfig(max_nr_ports=11).build()


def test_owners_of_ports_are_told_when_the_device_breaks(bench: Bench) -> None:
    console, b = bench
    port, told = console.ports[2], list[bool]()
    port.on_guest_open = told.append
    start(b.driver)
    open_port(b.driver, port.id)

    b.driver.queues[transmit_queue(port.id)].add_at([(1 << 40, 8)])
    b.driver.kick(transmit_queue(port.id))

    assert DeviceStatus.NEEDS_RESET in b.driver.status
    assert told == [True, False]
    assert not port.guest_open


def test_a_buffer_too_large_to_be_copied_breaks_the_device_rather_than_losing_data(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, b = bench
    got: list[bytes] = []
    console.ports[CONSOLE_PORT].on_data = got.append
    monkeypatch.setattr("minivmm.devices.virtio_console.port.MOST_BYTES", 8)
    b.driver.start()

    b.driver.submit(transmit_queue(CONSOLE_PORT), b"12345678")
    b.driver.submit(transmit_queue(CONSOLE_PORT), b"1234567", b"89")

    assert got == [b"12345678"]
    assert "a buffer of 9 bytes, more than 8" in b.function.transport.trouble


def test_the_users_switches_are_those_of_the_machines_console() -> None:
    console = VirtioConsole(VirtioConsoleSpec(packed=True, event_idx=False, vectors=0))
    with DeviceBench(console) as b:
        start(b.driver)

        assert b.driver.has(Feature.RING_PACKED) and not b.driver.has(Feature.EVENT_IDX)
        assert b.driver.vectors == 0
        assert len(hear(b.driver)) == len(PORT_NAMES)


def test_a_machine_has_one_console() -> None:
    with pytest.raises(UsageError, match="foo: a machine has one console, console0"):
        VirtioConsoleSpec(id="foo")


def test_ports_are_added_then_named_and_opened(bench: Bench) -> None:
    _, b = bench
    start(b.driver)
    added = [(m.id, m.event) for m, _ in hear(b.driver)]

    say(b.driver, 4, Event.PORT_READY)
    told = [(m.id, m.event, m.value, rest) for m, rest in hear(b.driver)]

    assert added == [(number, Event.PORT_ADD) for number in range(11)]
    assert told == [
        (4, Event.PORT_NAME, 1, PORT_NAMES[4].encode()),
        (4, Event.PORT_OPEN, 1, b""),
    ]


def test_guest_data_arrives_and_is_acknowledged_with_an_interrupt(bench: Bench) -> None:
    console, b = bench
    got: list[bytes] = []
    console.ports[1].on_data = got.append
    start(b.driver)
    open_port(b.driver, 1)
    b.irq.take()

    used = b.driver.submit(transmit_queue(1), b"he", b"llo")

    assert got == [b"hello"]
    assert [u.written for u in used] == [0]
    assert b.irq.take() == [1]


def test_host_data_arrives_in_page_sized_pieces(bench: Bench) -> None:
    console, b = bench
    start(b.driver)
    open_port(b.driver, 2)
    data = bytes(range(256)) * 400
    ring = b.driver.queues[receive_queue(2)]

    console.ports[2].send(data)
    got = b""
    while used := ring.collect():
        got += b"".join(u.data for u in used)
        fill(b.driver, receive_queue(2), len(used))

    assert got == data
    assert console.ports[2].drained


def test_drained_waits_for_the_last_buffer(bench: Bench) -> None:
    console, b = bench
    start(b.driver)
    open_port(b.driver, 1)
    ring = b.driver.queues[receive_queue(1)]

    console.ports[1].send(b"x")
    seen = [console.ports[1].drained]
    assert len(ring.collect()) == 1
    seen.append(console.ports[1].drained)
    fill(b.driver, receive_queue(1), 1)
    seen.append(console.ports[1].drained)

    assert seen == [False, False, True]


def test_throttled_data_is_taken_later(bench: Bench) -> None:
    console, b = bench
    got: list[bytes] = []
    console.ports[1].on_data = got.append
    start(b.driver)
    open_port(b.driver, 1)
    console.ports[1].set_throttled(True)
    for number in range(QUEUE_SIZE):
        b.driver.submit(transmit_queue(1), bytes((number,)))

    before = list(got)
    console.ports[1].set_throttled(False)

    assert before == []
    assert b"".join(got) == bytes(range(QUEUE_SIZE))
    assert len(b.driver.queues[transmit_queue(1)].collect()) == QUEUE_SIZE


def test_reset_and_reprobe_start_over(bench: Bench) -> None:
    console, b = bench
    seen: list[bool] = []
    console.ports[1].on_guest_open = seen.append
    start(b.driver)
    open_port(b.driver, 1)

    b.driver.reset()
    console.ports[1].send(b"for the next driver")
    start(b.driver)
    open_port(b.driver, 1)

    assert seen == [True, False, True]
    used = b.driver.queues[receive_queue(1)].collect()
    assert [u.data for u in used] == [b"for the next driver"]


def test_broken_ring_found_by_host_input_breaks_the_device_only(bench: Bench) -> None:
    console, b = bench
    start(b.driver)
    open_port(b.driver, 1)
    b.driver.queues[receive_queue(1)].set_avail_idx(4711)

    console.ports[1].send(b"hello")

    assert DeviceStatus.NEEDS_RESET in b.driver.status
    assert len(b.events("broken")) == 1


def test_more_buffers_than_descriptors_is_a_violation(bench: Bench) -> None:
    _, b = bench
    start(b.driver)
    fill(b.driver, receive_queue(1))
    ring = b.driver.queues[receive_queue(1)]

    for head in range(QUEUE_SIZE):
        ring.offer(head)
    b.driver.kick(receive_queue(1))

    assert DeviceStatus.NEEDS_RESET in b.driver.status


def test_empty_receive_buffers_are_returned_unused(bench: Bench) -> None:
    console, b = bench
    start(b.driver)
    b.driver.submit(receive_queue(1), writable=(0,))
    fill(b.driver, receive_queue(1), 3)
    say(b.driver, 1, Event.PORT_OPEN)

    console.ports[1].send(b"data")

    used = b.driver.queues[receive_queue(1)].collect()
    assert [u.data for u in used] == [b"", b"data"]
