"""x-minivmm-view and x-minivmm-residency: all that a live view shows, at bounded cost."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from minivmm.control import view_commands
from minivmm.control.commands import COMMANDS
from minivmm.control.face import Context
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import Refused
from minivmm.testing.fake_machine import FakeMachine
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB, TIB

BLOCK = 2 * MIB


@pytest.fixture
def machine() -> FakeMachine:
    """One device of 512 blocks, whose guest does as told."""
    machine = FakeMachine("vm1", [VirtioMemSpec(id="vmem0", size=GIB, block_size=BLOCK)])
    machine.follows = True
    return machine


def run(machine: FakeMachine, name: str, **arguments: object) -> Any:
    command = COMMANDS[name]
    given = {key.replace("_", "-"): value for key, value in arguments.items()}
    return json.loads(json.dumps(command.run(Context(machine, machine.agent), given)))


def view(machine: FakeMachine, **arguments: object) -> Any:
    return run(machine, "x-minivmm-view", **arguments)


def resize(machine: FakeMachine, size: int) -> None:
    machine.memory_devices["vmem0"].set_requested_size(size)


def test_a_view_has_the_machine_and_its_devices(machine: FakeMachine) -> None:
    machine.agent.ready, machine.agent.kernel_release = True, "6.12.1"
    resize(machine, 256 * MIB)

    told = view(machine)

    assert (told["name"], told["status"], told["base-memory"]) == ("vm1", "running", 512 * MIB)
    assert told["agent"] == {"ready": True, "kernel-release": "6.12.1"}
    (device,) = told["memory-devices"]
    assert device["requested-size"] == device["size"] == 256 * MIB
    assert (device["max-size"], device["block-size"], device["usable-size"]) == (GIB, BLOCK, GIB)
    assert device["driver"] == ["ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FEATURES_OK"]
    assert device["answers"] == {"PLUG": {"ACK": 2}}
    assert device["requests"] == 2
    assert device["map"] == {
        "cells": 512,
        "cell-blocks": 1,
        "runs": [
            {"cells": 128, "state": "plugged", "plugged-blocks": 1},
            {"cells": 384, "state": "unplugged", "plugged-blocks": 0},
        ],
    }


def test_moves_tell_which_blocks_changed_and_how_long_ago(machine: FakeMachine) -> None:
    resize(machine, 256 * MIB)
    resize(machine, 192 * MIB)

    moves = view(machine)["memory-devices"][0]["moves"]

    assert [(m["request"], m["first-block"], m["blocks"]) for m in moves] == [
        ("UNPLUG", 96, 32),
        ("PLUG", 64, 64),
        ("PLUG", 0, 64),
    ]
    assert all(0 <= move["ago"] < 10 for move in moves)


def test_live_queues_are_told(machine: FakeMachine) -> None:
    queue = {"index": 0, "format": "packed", "size": 128, "next-avail": 3, "in-flight": 1}
    machine.around = dataclasses.replace(machine.around, queues=(queue,))

    assert view(machine)["memory-devices"][0]["queues"] == [queue]


def test_the_map_has_at_most_as_many_cells_as_asked_for(machine: FakeMachine) -> None:
    assert view(machine, cells=100)["memory-devices"][0]["map"]["cells"] == 86
    assert "map" not in view(machine, cells=0)["memory-devices"][0]


@pytest.mark.parametrize("cells", [-1, 4097, 1 << 70])
def test_other_numbers_of_cells_are_refused(machine: FakeMachine, cells: int) -> None:
    with pytest.raises(Refused, match="'cells' expects 0 to 4096"):
        view(machine, cells=cells)


def test_events_are_told_once_if_the_last_time_is_given(machine: FakeMachine) -> None:
    resize(machine, 128 * MIB)

    first = view(machine, events_after=0)
    resize(machine, 0)
    second = view(machine, events_after=first["time"])

    assert [(e["source"], e["name"]) for e in first["events"]] == [
        ("vmem0", "resize"),
        ("vmem0", "answer"),
    ]
    assert [(e["name"], e["fields"].get("type")) for e in second["events"]] == [
        ("resize", None),
        ("answer", "UNPLUG"),
    ]
    assert all(first["time"] < event["time"] <= second["time"] for event in second["events"])
    assert view(machine, events_after=second["time"])["events"] == []
    assert view(machine)["events"] == []


def test_of_many_events_the_latest_are_told(machine: FakeMachine) -> None:
    for number in range(1000):
        machine.trace.emit("test", "tick", number=number)

    events = view(machine, events_after=0)["events"]

    assert [event["fields"]["number"] for event in events] == list(range(800, 1000))


def test_an_answer_is_bounded_however_large_and_torn_the_region() -> None:
    machine = FakeMachine("huge", [VirtioMemSpec(id="vmem0", size=TIB, block_size=BLOCK)])
    blocks = machine.memory_devices["vmem0"].blocks
    for first in range(0, blocks.count, 2):
        blocks.plug(first, 1)

    told = view(machine, cells=4096)

    assert len(json.dumps(told)) < 400_000
    assert sum(run["cells"] for run in told["memory-devices"][0]["map"]["runs"]) == 4096


# -- host memory -----------------------------------------------------------------------------------


def touch(machine: FakeMachine, block: int, size: int) -> None:
    """The guest writes `size` bytes from the start of `block`."""
    device = machine.memory_devices["vmem0"]
    device.region.view(block * BLOCK, size)[:] = b"x" * size


@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_residency_is_told_cell_by_cell(backing: str) -> None:
    spec = VirtioMemSpec(id="vmem0", size=GIB, block_size=BLOCK, backing=backing, thp="off")
    machine = FakeMachine("vm1", [spec])
    MemDriver(machine.memory_devices["vmem0"]).plug(0, 4)
    touch(machine, 0, BLOCK)
    touch(machine, 3, 8192)

    told = run(machine, "x-minivmm-residency", id="vmem0")

    assert (told["cells"], told["cell-blocks"], told["first"], told["next"]) == (512, 1, 0, 0)
    assert [cell["resident"] for cell in told["held"][:5]] == [BLOCK, 0, 0, 8192, 0]
    assert {cell["looked-at"] for cell in told["held"]} == {BLOCK}
    assert told["resident"] == sum(cell["resident"] for cell in told["held"]) == BLOCK + 8192


def test_a_large_region_is_looked_at_in_steps_that_come_around() -> None:
    spec = VirtioMemSpec(id="vmem0", size=10 * GIB, block_size=BLOCK, thp="off")
    machine = FakeMachine("vm1", [spec])
    touch(machine, 5000, 4096)

    first, seen = 0, []
    for _ in range(10):
        told = run(machine, "x-minivmm-residency", id="vmem0", cells=100, first=first)
        assert told["first"] == first
        assert sum(cell["looked-at"] for cell in told["held"]) <= GIB
        seen += told["held"]
        first = told["next"]
        if first == 0:
            break

    assert len(seen) == told["cells"] == 99
    (number,) = [at for at, cell in enumerate(seen) if cell["resident"]]
    assert number == 5000 // told["cell-blocks"]
    assert seen[-1]["looked-at"] < seen[0]["looked-at"]


def test_of_huge_cells_a_piece_stands_for_the_rest() -> None:
    spec = VirtioMemSpec(id="vmem0", size=TIB, block_size=BLOCK, thp="off")
    machine = FakeMachine("vm1", [spec])
    touch(machine, 0, 4096)

    told = run(machine, "x-minivmm-residency", id="vmem0", cells=512)

    assert len(told["held"]) == view_commands.LOOKED_AT // view_commands.PIECE == told["next"]
    assert told["held"][0] == {"looked-at": view_commands.PIECE, "resident": 4096}


@pytest.mark.parametrize(
    "arguments",
    [{"cells": 0}, {"cells": 4097}, {"first": -1}, {"first": 512}, {"first": 1 << 64}],
)
def test_residency_refuses_numbers_out_of_range(
    machine: FakeMachine, arguments: dict[str, int]
) -> None:
    with pytest.raises(Refused, match=f"'{next(iter(arguments))}' expects"):
        run(machine, "x-minivmm-residency", id="vmem0", **arguments)


def test_residency_of_an_unknown_device_is_refused(machine: FakeMachine) -> None:
    with pytest.raises(Refused, match="'nope' not found") as caught:
        run(machine, "x-minivmm-residency", id="nope")

    assert caught.value.error_class == "DeviceNotFound"
