"""balloon, query-balloon, guest-stats: QEMU's shapes and texts, against a fake machine."""

from __future__ import annotations

from typing import Any

import pytest

from minivmm.control.commands import COMMANDS
from minivmm.control.face import Context
from minivmm.control.hmp import human_monitor_command
from minivmm.devices.virtio_balloon.device import VirtioBalloon
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.errors import Refused
from minivmm.memory.guest import GuestMemory
from minivmm.spec.virtio_balloon import BalloonConfig
from minivmm.testing.fake_machine import FakeMachine, GuestSignals
from minivmm.units import MIB

PATH = "/machine/peripheral/balloon0"


@pytest.fixture
def machine() -> FakeMachine:
    """512 MiB of boot memory and a balloon."""
    machine = FakeMachine()
    machine.balloon = VirtioBalloon(VirtioBalloonSpec())
    machine.balloon.attach(GuestMemory(), GuestSignals("balloon0", machine.trace, lambda _: None))
    return machine


def run(machine: FakeMachine, name: str, **arguments: Any) -> Any:
    return COMMANDS[name].run(Context(machine), arguments)


def refusal(machine: FakeMachine, name: str, **arguments: Any) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        run(machine, name, **arguments)
    return caught.value.error_class, str(caught.value)


def inflate(machine: FakeMachine, size: int) -> None:
    """The guest says that `size` bytes are in the balloon."""
    assert machine.balloon
    at = BalloonConfig.OFFSETS["actual"]
    machine.balloon.write_config(at, (size // 4096).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("value", "pages"), [(512 * MIB, 0), (100 * MIB, 412 * 256), (1, 512 * 256 - 1), (2**50, 0)]
)
def test_the_target_is_what_the_guest_has_left(
    machine: FakeMachine, value: int, pages: int
) -> None:
    assert run(machine, "balloon", value=value) == {}
    assert machine.balloon and machine.balloon.num_pages == pages


def test_query_balloon(machine: FakeMachine) -> None:
    inflate(machine, 112 * MIB)

    assert run(machine, "query-balloon") == {"actual": 400 * MIB}


@pytest.mark.parametrize("value", [0, -1])
def test_no_size_is_refused(machine: FakeMachine, value: int) -> None:
    assert refusal(machine, "balloon", value=value) == (
        "GenericError",
        "Parameter 'target' expects a size",
    )


@pytest.mark.parametrize(("name", "arguments"), [("balloon", {"value": 1}), ("query-balloon", {})])
def test_a_machine_without_a_balloon(name: str, arguments: dict[str, int]) -> None:
    assert refusal(FakeMachine(), name, **arguments) == (
        "DeviceNotActive",
        "No balloon device has been activated",
    )


def test_guest_stats(machine: FakeMachine) -> None:
    stats = run(machine, "qom-get", path=PATH, property="guest-stats")
    rows = run(machine, "qom-list", path="/machine/peripheral")

    assert stats["last-update"] == 0
    assert stats["stats"]["stat-free-memory"] == 2**64 - 1
    assert len(stats["stats"]) == 10
    assert {"name": "balloon0", "type": "child<virtio-balloon-pci>"} in rows


def test_the_polling_interval(machine: FakeMachine) -> None:
    key = {"path": PATH, "property": "guest-stats-polling-interval"}

    assert run(machine, "qom-set", **key, value=2) == {}
    assert run(machine, "qom-get", **key) == 2
    for value, why in ((-1, "must be greater than zero"), (2**32, "is too big")):
        assert refusal(machine, "qom-set", **key, value=value)[1] == f"timer value {why}"


def test_the_human_monitor(machine: FakeMachine) -> None:
    def hmp(line: str) -> object:
        return human_monitor_command(Context(machine), line)

    inflate(machine, 12 * MIB)

    assert hmp("info balloon") == "balloon: actual=500\r\n"
    assert hmp("balloon 256") == ""
    assert machine.balloon and machine.balloon.num_pages == 256 * 256
    assert hmp("balloon 512M") == ""
    assert machine.balloon.num_pages == 0
