"""Misbehaviour on purpose: rules that a VirtioMem is made to break the protocol by.

    mischief = mischief_of(device)
    mischief.on_request("PLUG", times=3).do(answer("BUSY"))
    mischief.on_request("UNPLUG", nth=2, times=1).do(delay(0.5), repeat_interrupt(2))
    mischief.on_config("block-size").do(show(0))

The device itself knows nothing of it: rules sit in wrappers (installed.py) that are there only
while there are rules. What Linux makes of each: docs/misbehaviour.md.
"""

from minivmm.devices.virtio_mem.mischief.actions import (
    answer,
    break_index,
    call,
    delay,
    drop_interrupt,
    refuse_host,
    repeat_interrupt,
    resize,
    respond,
    shorten,
    shrink_usable,
    silence,
    twice,
    used_length,
)
from minivmm.devices.virtio_mem.mischief.installed import Mischief, mischief_of
from minivmm.devices.virtio_mem.mischief.others import drop, repeat, resize_now, show
from minivmm.devices.virtio_mem.mischief.rules import Rule
from minivmm.devices.virtio_mem.mischief.scenario import Scenario, read_scenario

__all__ = [
    "Mischief",
    "Rule",
    "Scenario",
    "answer",
    "break_index",
    "call",
    "delay",
    "drop",
    "drop_interrupt",
    "mischief_of",
    "read_scenario",
    "refuse_host",
    "repeat",
    "repeat_interrupt",
    "resize",
    "resize_now",
    "respond",
    "shorten",
    "show",
    "shrink_usable",
    "silence",
    "twice",
    "used_length",
]
