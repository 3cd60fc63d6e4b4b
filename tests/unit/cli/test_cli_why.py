"""`why`, `kick`, `audit` against a machine whose guest is played by the test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from minivmm.cli import main
from minivmm.control import inside
from minivmm.errors import ExitStatus
from minivmm.runtime import MachineDir
from minivmm.spec.virtio import DeviceStatus
from minivmm.spec.virtio_mem import ResponseType
from minivmm.testing.fake_machine import FakeMachine
from minivmm.testing.mem_driver import MemDriver
from minivmm.units import GIB, MIB


def no_driver(machine: FakeMachine) -> None:
    machine.around = dataclasses.replace(machine.around, status=DeviceStatus(1))


@pytest.mark.usefixtures("live")
def test_why_for_people(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    with machine.lock:
        no_driver(machine)

    assert main.run(["why", "vm1"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["vmem0: no-driver", "  no driver is bound to the device in the guest"]
    assert "    requested 0, plugged 0, usable 0 of 1G" in lines
    assert lines[-1].startswith("  remedy: ")
    assert len(lines) < 24, "one screen"


@pytest.mark.usefixtures("live")
def test_why_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["why", "--json"]) == 0

    data = json.loads(capsys.readouterr().out)
    (device,) = data["memory-devices"]
    assert (data["schema"], data["name"]) == (1, "vm1")
    assert (device["id"], device["kind"], device["certain"]) == ("vmem0", "done", True)
    assert device["remedy"] == ""
    assert all(isinstance(line, str) for line in device["evidence"])


def test_why_asks_the_guest_if_there_is_an_agent_and_nobody_objects(
    live: MachineDir,
    machine: FakeMachine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[tuple[Path, str]] = []

    def look(path: Path, devices: Sequence[dict[str, Any]], seconds: float) -> str:
        asked.append((path, devices[0]["pci-address"]))
        return "device vmem0\ndriver missing\n"

    monkeypatch.setattr(inside, "look_inside", look)
    with machine.lock:
        no_driver(machine)

    assert main.run(["why"]) == 0
    assert asked == []
    machine.agent.ready = True
    assert main.run(["why", "--no-agent"]) == 0
    assert asked == []
    capsys.readouterr()
    assert main.run(["why"]) == 0
    assert asked == [(live.exec_socket, machine.around.pci_address)]
    assert "no virtio_mem driver loaded" in capsys.readouterr().out


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("told", "shown"), [("cannot start\x07\n", "does not tell: cannot start?"), ("", "no answer")]
)
def test_why_says_so_if_the_guest_does_not_tell(
    machine: FakeMachine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    told: str,
    shown: str,
) -> None:
    monkeypatch.setattr(inside, "look_inside", lambda *_: told)
    machine.agent.ready = True

    assert main.run(["why"]) == 0

    assert shown in capsys.readouterr().out


@pytest.mark.usefixtures("live")
def test_unknown_devices_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("why", "kick", "audit"):
        assert main.run([verb, "--device", "x"]) == ExitStatus.FAILED
        assert capsys.readouterr().err == "minivmm: Device 'x' not found\n"


@pytest.mark.usefixtures("live")
def test_a_machine_without_devices_has_nothing_to_explain(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    with machine.lock:
        machine.memory_devices.clear()

    assert main.run(["why"]) == 0
    assert "vm1 has no memory device" in capsys.readouterr().out


@pytest.mark.usefixtures("live")
def test_kick_sends_the_interrupt(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["kick", "--json"]) == 0

    assert machine.memory_devices["vmem0"].activity.config_at is not None
    assert json.loads(capsys.readouterr().out)["memory-devices"] == [{"id": "vmem0", "sent": True}]


@pytest.mark.usefixtures("live")
def test_kick_without_a_driver_says_so(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    with machine.lock:
        no_driver(machine)

    assert main.run(["kick", "vm1"]) == ExitStatus.FAILED
    assert "vmem0 has no driver to kick" in capsys.readouterr().err


@pytest.mark.usefixtures("live")
def test_audit_counts_by_state_of_the_blocks(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    with machine.lock:
        device = machine.memory_devices["vmem0"]
        device.set_requested_size(64 * MIB)
        assert MemDriver(device).plug(0, 4) is ResponseType.ACK
        device.region.view(0, 4096)[:] = b"x" * 4096

    assert main.run(["audit"]) == 0
    clean = capsys.readouterr()
    with machine.lock:
        device.region.view(16 * MIB, 4096)[:] = b"x" * 4096
    assert main.run(["audit", "vm1", "--json"]) == ExitStatus.FAILED
    caught = capsys.readouterr()

    assert clean.out.splitlines()[1].split()[:2] == ["vmem0", "8M"]
    assert clean.out.splitlines()[1].split()[3] == "0"
    (row,) = json.loads(caught.out)["memory-devices"]
    assert row["resident-plugged"] >= 4096
    assert row["resident-unplugged"] >= 4096
    assert row["places"] == [f"{4 * GIB + 8 * MIB:#x}-{5 * GIB - 1:#x}"]
    assert "are not plugged, in 0x100800000-" in caught.err


@pytest.mark.usefixtures("live")
def test_resize_names_the_diagnosis_when_it_stalls(
    machine: FakeMachine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minivmm.cli.follow.STALL", 0.2)
    with machine.lock:
        no_driver(machine)

    assert main.run(["resize", "64M", "--wait=1s"]) == ExitStatus.WAIT_TIMEOUT

    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("minivmm: vmem0: no change for 0 s: no-driver: no driver is bound")
    assert "vmem0 has 0 of 64M after 1 s: no-driver: " in lines[-1]
    assert len(lines) == 3
