"""Wire format of the virtio console (virtio-spec 5.3): queues, features, control messages."""

from __future__ import annotations

from enum import IntEnum

from minivmm.spec.record import Record, record, u16, u32

DEVICE_ID = 3

CONTROL_RECEIVE_QUEUE = 2
"""Control messages from device to driver (5.3.2)."""
CONTROL_TRANSMIT_QUEUE = 3
"""Control messages from driver to device."""

NO_PORT = 0xFFFF_FFFF
"""Port id in messages about the whole device, as Linux sends it with DEVICE_READY."""


def receive_queue(port: int) -> int:
    """Index of the queue that carries data to the driver for `port` (5.3.2)."""
    return 2 * port + 2 if port else 0


def transmit_queue(port: int) -> int:
    """Index of the queue that carries data from the driver for `port`."""
    return receive_queue(port) + 1


def port_of_queue(index: int) -> int:
    """The port that data queue `index` belongs to; not for the two control queues."""
    return 0 if index < CONTROL_RECEIVE_QUEUE else (index - 2) // 2


class Feature(IntEnum):
    """Feature bit numbers (5.3.3)."""

    SIZE = 0
    MULTIPORT = 1
    EMERG_WRITE = 2


@record
class ConsoleConfig(Record):
    """Device configuration (5.3.4); a field is meaningful only with its feature."""

    cols: int = u16()
    rows: int = u16()
    max_nr_ports: int = u32()
    emerg_wr: int = u32()


class Event(IntEnum):
    """What a control message says (5.3.6.2)."""

    DEVICE_READY = 0  # driver: the device is set up (value 1) or failed (0)
    PORT_ADD = 1  # device: a port exists
    PORT_REMOVE = 2  # device: a port is gone
    PORT_READY = 3  # driver: a port is set up (1) or failed (0)
    CONSOLE_PORT = 4  # device: the port is a console
    RESIZE = 5  # device: size of a console follows
    PORT_OPEN = 6  # both: this side opened (1) or closed (0) the port
    PORT_NAME = 7  # device: name of the port follows, without terminator


@record
class ControlMessage(Record):
    """A message of the control queues; names and sizes follow it in the same buffer."""

    id: int = u32()
    event: int = u16()
    value: int = u16()
