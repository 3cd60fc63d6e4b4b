"""Our answers have all fields that a real QEMU 7.2 was recorded to give, with the same types.

recorded/record_qemu.py made the recording: the same devices, with drivers up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm.control import qmp  # noqa: F401 - fills the table
from minivmm.control.commands import COMMANDS
from minivmm.control.events import EVENTS, THROTTLED
from minivmm.control.face import Context
from minivmm.control.hmp import execute
from minivmm.spec.virtio_mem import MemRequest, MemResponse, RequestType
from minivmm.units import MIB

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "recorded" / "qemu-7.2.json").read_text()
)
"""See there."""

EQUAL = {
    "query-status",
    "query-name",
    "query-target",
    "query-memory-size-summary",
    "query-memory-devices",
}
"""Answers that do not depend on who gives them."""

OTHER_MACHINE = {"query-current-machine", "query-kvm", "query-version"}
"""Answers with the same fields whose values say what machine it is."""


@pytest.fixture
def context(wired: Any) -> Context:
    """The machine in the state of the recording: drivers up, 64 MiB plugged."""
    wired.start_drivers()
    window = wired.board.memory_devices["vmem0"].window
    request = MemRequest(type=RequestType.PLUG, addr=window.base, nb_blocks=32).build()
    assert wired.drivers["vmem0"].request(0, request, MemResponse.SIZE)[:2] == b"\0\0"
    return Context(wired.machine, wired.machine.agent)


def ask(context: Context, name: str, **arguments: object) -> Any:
    return json.loads(json.dumps(COMMANDS[name].run(context, arguments)))


def missing(theirs: Any, ours: Any, at: str = "") -> Iterator[str]:
    """Places of `theirs` that `ours` has not, or has with another type."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key, value in theirs.items():
            if key in ours:
                yield from missing(value, ours[key], f"{at}.{key}")
            else:
                yield f"{at}.{key}"
    elif isinstance(theirs, list) and isinstance(ours, list):
        if theirs and ours:
            yield from missing(theirs[0], ours[0], f"{at}[]")
    elif type(theirs) is not type(ours):
        yield f"{at}: {type(ours).__name__}, not {type(theirs).__name__}"


@pytest.mark.parametrize("name", RECORDED["answers"])
def test_answers_have_all_recorded_fields(name: str, context: Context) -> None:
    theirs, ours = RECORDED["answers"][name], ask(context, name)
    allowed = {
        # There are no block graphs here, hence no names of their nodes; nor does a disk fail for
        # the host side only, or is its file looked at for every answer.
        "query-block": {
            *("[].io-status", "[].inserted.node-name"),
            *("[].inserted.image.actual-size", "[].inserted.image.dirty-flag"),
        }
    }

    assert set(missing(theirs, ours)) - allowed.get(name, set()) == set()
    if name in EQUAL:
        assert [ours] == [theirs] or _without_address(ours) == _without_address(theirs)


def _without_address(answer: Any) -> Any:
    """query-memory-devices, but for where the region is."""
    return re.sub(r'"memaddr": \d+', "", json.dumps(answer, sort_keys=True))


def test_functions_on_the_bus_are_those_that_qemu_shows(context: Context) -> None:
    def shown(answer: Any) -> dict[str, Any]:
        return {
            one["qdev_id"]: (one["class_info"]["class"], one["id"]["vendor"], one["id"]["device"])
            for one in answer[0]["devices"]
            if one["qdev_id"]
        }

    ours = shown(ask(context, "query-pci"))

    assert ours.pop("console0")[2] == 0x1043
    theirs = shown(RECORDED["answers"]["query-pci"])
    assert {key: value[1:] for key, value in ours.items()} == {
        key: value[1:] for key, value in theirs.items()
    }
    assert ours["disk0"] == theirs["disk0"]


@pytest.mark.parametrize("path", RECORDED["virtio"])
def test_virtio_status_and_queues(path: str, context: Context) -> None:
    theirs = RECORDED["virtio"][path]
    ours = ask(context, "x-query-virtio-status", path=path)

    # QEMU has not heard of some bits; we have names for all.
    lost = {one for one in missing(theirs["status"], ours) if "unknown-dev-features" not in one}
    assert lost == set()
    for key in ("name", "device-id", "device-endian", "started", "broken", "vm-running"):
        assert ours[key] == theirs["status"][key]
    assert names(ours["status"]["statuses"]) == names(theirs["status"]["status"]["statuses"])
    assert names(theirs["status"]["guest-features"]["transports"]) <= names(
        ours["guest-features"]["transports"]
    )
    assert "unknown-dev-features" not in ours["host-features"]
    for index, queue in enumerate(theirs["queues"][: ours["num-vqs"]]):
        mine = ask(context, "x-query-virtio-queue-status", path=path, queue=index)
        assert set(missing(queue, mine)) == set()
        assert (mine["name"], mine["queue-index"]) == (queue["name"], index)
        assert mine["vring-desc"] and mine["vring-avail"] and mine["vring-used"]


def names(described: list[str]) -> set[str]:
    """The names of "NAME: meaning"."""
    return {one.partition(":")[0] for one in described}


def test_the_queue_of_a_plugging_driver_counts_like_qemus(context: Context) -> None:
    path = "/machine/peripheral/vmem0/virtio-backend"
    theirs = RECORDED["virtio"][path]["queues"][0]
    ours = ask(context, "x-query-virtio-queue-status", path=path, queue=0)

    for key in ("inuse", "used-idx", "last-avail-idx", "shadow-avail-idx", "signalled-used"):
        assert ours[key] == theirs[key]
    assert ours["signalled-used-valid"] is theirs["signalled-used-valid"] is True


EXACT = (
    *("info status", "info name", "info numa", "info memory_size_summary", "bogus", "info bogus"),
    *("qom-get vmem0 size", "qom-get vmem0 memdev", "qom-get vmem0 nope", "qom-set a b c"),
    *("qom-set vmem0 requested-size 3", "qom-set vmem0 requested-size", "stop 3", "info cpus 3"),
    *("help bogus", "balloon abc", "info virtio-status /nope", "info balloon", "quit now"),
    "info virtio-queue-status /machine/peripheral/rng0/virtio-backend",
    "info virtio-queue-status /machine/peripheral/rng0/virtio-backend x",
)
"""Monitor lines whose answer is the same to the last character."""

NUMBERS = r" *(0x[0-9a-f]+|[0-9a-f]{4}:[0-9a-f]{4}|\d+)"

ALIKE = (
    *("info cpus", "info pci", "info memory-devices", "info memdev", "info virtio", "info block"),
    *("qom-list /machine/peripheral", "info kvm"),
)
"""Lines whose answer has lines of the same form, with other numbers and names in them."""


def test_every_recorded_line_is_compared() -> None:
    assert {*EXACT, *ALIKE, "qom-set vmem0 size 3"} == set(RECORDED["monitor"])


@pytest.mark.parametrize("line", EXACT)
def test_monitor_lines_are_qemus(line: str, context: Context) -> None:
    assert "".join(f"{text}\r\n" for text in execute(context, line)) == RECORDED["monitor"][line]


@pytest.mark.parametrize("line", ALIKE)
def test_monitor_lines_have_qemus_form(line: str, context: Context) -> None:
    def forms(lines: list[str]) -> set[str]:
        return {re.sub(NUMBERS, "N", one) for one in lines}

    ours = forms(execute(context, line))
    theirs = forms(RECORDED["monitor"][line].split("\r\n")[:-1])

    differing = {
        # Other bridges, and MSI-X of the entropy device in a BAR that is prefetchable.
        "info pci": {
            *("    ISA bridge: PCI deviceN", "    SATA controller: PCI deviceN"),
            *("    SMBus: PCI deviceN", "      BARN: I/O atN [N]."),
            "      BARN:N bit memory atN [N].",
        },
        "info block": {one for one in theirs if "disk.img" in one},
        "info kvm": {"kvm support: disabled"},
        "info memdev": {one for one in theirs if re.match("memory backend: |  reserve:", one)}
        | {"  merge: true"},
        "qom-list /machine/peripheral": set(),
    }
    assert theirs - ours <= differing.get(line, set())
    assert ours


def spelled_out(name: str) -> Any:
    """An entity of our schema in the form of the recording."""
    entity = SCHEMA[name]
    match entity["meta-type"]:
        case "builtin":
            return entity["json-type"]
        case "enum":
            return "string"
        case "array":
            return [spelled_out(entity["element-type"])]
        case "alternate":
            return "value"
    return {
        one["name"] + ("?" if "default" in one else ""): spelled_out(one["type"])
        for one in entity["members"]
    }


SCHEMA: dict[str, Any] = {
    entity["name"]: entity
    for entity in json.loads(
        json.dumps(COMMANDS["query-qmp-schema"].function(None))  # it needs no machine
    )
}


@pytest.mark.parametrize("name", RECORDED["schema"])
def test_schema_agrees_with_qemus(name: str) -> None:
    """Whoever calls a command as QEMU's schema says gets what that schema promises."""
    theirs, entity = RECORDED["schema"][name], SCHEMA[name]
    arguments = spelled_out(entity["arg-type"])

    if name in EVENTS:
        assert set(required(theirs["arg"]).items()) <= set(required(arguments).items())
        return
    assert set(required(arguments)) <= set(required(theirs["arg"]))
    for argument, kind in theirs["arg"].items():
        ours = arguments.get(argument, arguments.get(argument.rstrip("?")))
        assert ours == kind, argument
    assert set(promised(theirs["ret"], spelled_out(entity["ret-type"]))) == set()


def required(members: dict[str, Any]) -> dict[str, Any]:
    return {name: kind for name, kind in members.items() if not name.endswith("?")}


def promised(theirs: Any, ours: Any, at: str = "") -> Iterator[str]:
    """What `theirs` says is always there, and `ours` does not."""
    if isinstance(theirs, list):
        assert isinstance(ours, list), at
        yield from promised(theirs[0], ours[0], f"{at}[]")
    elif isinstance(theirs, dict):
        for name, kind in required(theirs).items():
            if name in ours:
                yield from promised(kind, ours[name], f"{at}.{name}")
            else:
                yield f"{at}.{name}"
    elif theirs != ours:
        yield f"{at}: {ours}, not {theirs}"


def test_schema_mentions_only_what_it_describes() -> None:
    mentioned = {
        str(value)
        for entity in SCHEMA.values()
        for key, value in entity.items()
        if key in ("arg-type", "ret-type", "element-type")
    }
    members = {
        one["type"] for e in SCHEMA.values() for one in e.get("members", ()) if "type" in one
    }

    assert mentioned | members <= set(SCHEMA)
    assert set(COMMANDS) | set(EVENTS) <= set(SCHEMA)


def test_recorded_events_are_in_our_table() -> None:
    for event in RECORDED["events"]:
        assert event["event"] in EVENTS
        assert set(event.get("data", {})) <= set(spelled_out(SCHEMA[event["event"]]["arg-type"]))
    assert set(THROTTLED) <= set(EVENTS)


def test_recorded_size_changes_keep_a_second_apart() -> None:
    """The stamp is that of the event: what was held back has one from within the second."""
    sizes = [one for one in RECORDED["events"] if one["event"] == "BALLOON_CHANGE"]

    assert len(sizes) >= 2
    assert all(THROTTLED[one["event"]] == 1.0 for one in sizes)


def test_the_last_element_of_a_queue(context: Context) -> None:
    path = "/machine/peripheral/vmem0/virtio-backend"
    found = ask(context, "x-query-virtio-queue-element", path=path, queue=0, index=0)

    assert found["name"] == "virtio-mem"
    assert [one["len"] for one in found["descs"]] == [MemRequest.SIZE, MemResponse.SIZE]
    assert found["descs"][1]["flags"] == ["write"]
    assert found["avail"]["idx"] == found["used"]["idx"] == 1
    assert ask(context, "query-memory-size-summary")["plugged-memory"] == 64 * MIB
