"""QMP commands about the guest's consoles."""

from __future__ import annotations

from minivmm.control.commands import Nothing, command
from minivmm.control.face import Context
from minivmm.errors import Refused

SERIAL = "serial0"
"""QEMU's name for what is behind the first serial port."""


@command("chardev-send-break")
def chardev_send_break(context: Context, id: str) -> Nothing:
    """A break: to Linux, a sysrq letter follows on that console (qapi/char.json)."""
    if id != SERIAL:
        raise Refused(f"Chardev '{id}' not found")
    context.machine.send_break()
    return {}
