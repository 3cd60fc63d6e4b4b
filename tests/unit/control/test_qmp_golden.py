"""Answers on the wire, byte for byte where it matters, as recorded from QEMU 7.2."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from minivmm import __version__
from minivmm.boot.nodes import Node, Topology
from minivmm.runtime import MachineDir
from minivmm.testing.fake_machine import FakeMachine
from minivmm.units import GIB, MIB


class Wire:
    """A raw client: bytes in, lines out."""

    def __init__(self, directory: MachineDir) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(directory.qmp_socket))
        self.file = self.socket.makefile("rb")

    def line(self) -> bytes:
        return self.file.readline()

    def ask(self, data: bytes) -> Any:
        self.socket.sendall(data)
        return json.loads(self.line())

    def run(self, command: str, **arguments: object) -> Any:
        return self.ask(json.dumps({"execute": command, "arguments": arguments}).encode())

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def fresh(live: MachineDir) -> Iterator[Wire]:
    """Connected, greeting not read yet."""
    wire = Wire(live)
    yield wire
    wire.close()


@pytest.fixture
def wire(fresh: Wire) -> Wire:
    """Negotiated."""
    fresh.line()
    assert fresh.ask(b'{"execute":"qmp_capabilities"}') == {"return": {}}
    return fresh


def error(desc: str, kind: str = "GenericError") -> dict[str, object]:
    return {"error": {"class": kind, "desc": desc}}


def test_greeting(fresh: Wire) -> None:
    line = fresh.line()

    assert line.endswith(b"}\r\n")
    assert json.loads(line) == {
        "QMP": {
            "version": {
                "qemu": {"micro": 0, "minor": 2, "major": 7},
                "package": f"minivmm {__version__}",
            },
            "capabilities": [],
        }
    }


def test_commands_wait_for_negotiation(fresh: Wire) -> None:
    fresh.line()
    expected = error(
        "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
    )

    assert fresh.ask(b'{"execute":"query-status"}') == expected
    assert fresh.ask(b'{"execute":"bogus"}') == expected
    assert fresh.ask(b'{"execute":"qmp_capabilities","arguments":{"foo":3}}') == error(
        "Parameter 'foo' is unexpected"
    )
    assert fresh.ask(b'{"execute":"qmp_capabilities","arguments":{"enable":3}}') == error(
        "Invalid parameter type for 'enable', expected: array"
    )
    assert fresh.ask(b'{"execute":"query-status"}') == expected
    assert fresh.ask(b'{"execute":"qmp_capabilities","arguments":{"enable":[]}}') == {"return": {}}


def test_second_negotiation_is_refused(wire: Wire) -> None:
    assert wire.run("qmp_capabilities") == error(
        "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
    )


@pytest.mark.parametrize(
    ("sent", "desc"),
    [
        (b"{bad}", "JSON parse error, invalid keyword 'bad'"),
        (b"[]", "QMP input must be a JSON object"),
        (b'"foo"', "QMP input must be a JSON object"),
        (b"{}", "QMP input lacks member 'execute'"),
        (b'{"arguments":{}}', "QMP input lacks member 'execute'"),
        (b'{"execute":7}', "QMP input member 'execute' must be a string"),
        (
            b'{"execute":"query-status","arguments":[]}',
            "QMP input member 'arguments' must be an object",
        ),
        (b'{"execute":"query-status","bogus":1}', "QMP input member 'bogus' is unexpected"),
        (b'{"execute":"query-status","arguments":{"x":1}}', "Parameter 'x' is unexpected"),
        (b'{"execute":"qom-get"}', "Parameter 'path' is missing"),
        (
            b'{"execute":"qom-get","arguments":{"path":3,"property":"size"}}',
            "Invalid parameter type for 'path', expected: string",
        ),
    ],
)
def test_malformed_requests(wire: Wire, sent: bytes, desc: str) -> None:
    assert wire.ask(sent) == error(desc)
    assert "return" in wire.ask(b'{"execute":"query-status"}')


def test_unknown_command(wire: Wire) -> None:
    assert wire.run("bogus") == error("The command bogus has not been found", "CommandNotFound")


@pytest.mark.parametrize("identifier", ["x", 5, None, {"a": [1, None]}, False, "é"])
def test_any_id_is_echoed_in_success_and_failure(wire: Wire, identifier: object) -> None:
    good = wire.ask(json.dumps({"execute": "query-name", "id": identifier}).encode())
    bad = wire.ask(json.dumps({"execute": "bogus", "id": identifier}).encode())

    assert good == {"return": {"name": "vm1"}, "id": identifier}
    assert bad["id"] == identifier
    assert list(good) == ["return", "id"]
    assert list(bad) == ["id", "error"]


def test_two_objects_in_one_write_and_one_over_lines(wire: Wire) -> None:
    wire.socket.sendall(b'{"execute":"query-status"}{"execute":"query-name",\n\n"id":"x"}')

    assert json.loads(wire.line()) == {
        "return": {"status": "running", "singlestep": False, "running": True}
    }
    assert json.loads(wire.line()) == {"return": {"name": "vm1"}, "id": "x"}


def test_query_memory_devices(wire: Wire) -> None:
    (entry,) = wire.run("query-memory-devices")["return"]

    assert entry == {
        "type": "virtio-mem",
        "data": {
            "memdev": "/objects/vmem0-memory",
            "memaddr": 4 * GIB,
            "block-size": 2 * MIB,
            "size": 0,
            "node": 0,
            "max-size": GIB,
            "requested-size": 0,
            "id": "vmem0",
        },
    }


def test_memory_size_summary(wire: Wire, machine: FakeMachine) -> None:
    with machine.lock:
        machine.memory_devices["vmem0"].set_requested_size(64 * MIB)
        machine.memory_devices["vmem0"].blocks.plug(0, 32)

    assert wire.run("query-memory-size-summary") == {
        "return": {"base-memory": 512 * MIB, "plugged-memory": 64 * MIB}
    }


@pytest.mark.parametrize("path", ["vmem0", "/machine/peripheral/vmem0", "peripheral/vmem0"])
def test_requested_size_is_set_and_read_by_any_path(wire: Wire, path: str) -> None:
    assert wire.run("qom-set", path=path, property="requested-size", value=256 * MIB) == {
        "return": {}
    }
    assert wire.run("qom-get", path=path, property="requested-size") == {"return": 256 * MIB}


@pytest.mark.parametrize(
    ("value", "desc"),
    [
        (3, "'requested-size' has to be multiples of 'block-size' (0x200000)"),
        (-3, "'requested-size' has to be multiples of 'block-size' (0x200000)"),
        (2 * GIB, "'requested-size' cannot exceed the memory backend size(0x40000000)"),
        ("256M", "Parameter 'requested-size' expects uint64"),
        (2097152.0, "Parameter 'requested-size' expects uint64"),
        (None, "Parameter 'requested-size' expects uint64"),
        (True, "Parameter 'requested-size' expects uint64"),
        (99999999999999999999, "Parameter 'requested-size' expects uint64"),
    ],
)
def test_requested_sizes_that_are_refused(wire: Wire, value: object, desc: str) -> None:
    answer = wire.run("qom-set", path="vmem0", property="requested-size", value=value)

    assert answer == error(desc)
    assert wire.run("qom-get", path="vmem0", property="requested-size") == {"return": 0}


@pytest.mark.parametrize(
    ("name", "desc"),
    [
        ("size", "Property 'virtio-mem.size' is not writable"),
        ("block-size", "'block-size' cannot be changed"),
        (
            "memaddr",
            "Attempt to set property 'memaddr' on anonymous device (type 'virtio-mem')"
            " after it was realized",
        ),
        ("type", "Property 'virtio-mem-pci.type' is not writable"),
        ("nope", "Property 'virtio-mem-pci.nope' not found"),
    ],
)
def test_properties_that_cannot_be_set(wire: Wire, name: str, desc: str) -> None:
    assert wire.run("qom-set", path="vmem0", property=name, value=3) == error(desc)


def test_unknown_paths_and_properties(wire: Wire) -> None:
    missing = error("Device 'nope' not found", "DeviceNotFound")

    assert wire.run("qom-get", path="nope", property="size") == missing
    assert wire.run("qom-list", path="nope") == missing
    assert wire.run("qom-get", path="", property="size")["error"]["class"] == "DeviceNotFound"
    assert wire.run("qom-get", path="vmem0", property="nope") == error(
        "Property 'virtio-mem-pci.nope' not found"
    )


def test_qom_values_and_lists(wire: Wire) -> None:
    def get(name: str) -> object:
        return wire.run("qom-get", path="vmem0", property=name)["return"]

    assert [get(n) for n in ("type", "memdev", "memaddr", "node", "unplugged-inaccessible")] == [
        "virtio-mem-pci",
        "/objects/vmem0-memory",
        4 * GIB,
        0,
        "auto",
    ]
    assert wire.run("qom-list", path="/machine/peripheral")["return"] == [
        {"name": "type", "type": "string"},
        {"name": "vmem0", "type": "child<virtio-mem-pci>"},
    ]
    rows = wire.run("qom-list", path="vmem0")["return"]
    assert {"name": "requested-size", "type": "size"} in rows
    assert {"name": "machine", "type": "child<minivmm-machine>"} in wire.run("qom-list", path="/")[
        "return"
    ]


def test_stop_and_cont_send_their_event_before_the_answer(wire: Wire) -> None:
    assert wire.run("stop")["event"] == "STOP"
    assert json.loads(wire.line()) == {"return": {}}
    assert wire.run("query-status")["return"]["status"] == "paused"
    assert wire.run("cont")["event"] == "RESUME"
    assert json.loads(wire.line()) == {"return": {}}


def test_quit_answers_before_the_connection_ends(wire: Wire) -> None:
    event = wire.run("quit")

    assert event["event"] == "SHUTDOWN"
    assert event["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert json.loads(wire.line()) == {"return": {}}
    assert wire.line() == b""


def test_info_has_all_that_the_command_line_shows(wire: Wire, machine: FakeMachine) -> None:
    machine.agent.ready = True
    machine.agent.kernel_release = "6.12.1"

    info = wire.run("x-minivmm-info")["return"]

    assert info["agent"] == {"ready": True, "kernel-release": "6.12.1"}
    assert info["memory-devices"][0] == {
        "type": "virtio-mem",
        "id": "vmem0",
        "qom-path": "/machine/peripheral/vmem0",
        "requested-size": 0,
        "size": 0,
        "usable-size": 0,
        "max-size": GIB,
        "block-size": 2 * MIB,
        "memaddr": 4 * GIB,
        "node": 0,
        "resident": 0,
        "resident-huge": 0,
        "intrusions": 0,
        "answers": {},
    }
    assert wire.run("x-minivmm-inspect")["return"] == {"name": "vm1", "state": "running"}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "info memory-devices",
            'Memory device [virtio-mem]: "vmem0"\r\n  memaddr: 0x100000000\r\n  node: 0\r\n'
            "  requested-size: 0\r\n  size: 0\r\n  max-size: 1073741824\r\n"
            "  block-size: 2097152\r\n  memdev: /objects/vmem0-memory\r\n",
        ),
        (
            "info numa",
            "1 nodes\r\nnode 0 cpus: 0\r\nnode 0 size: 512 MB\r\nnode 0 plugged: 0 MB\r\n",
        ),
        ("info status", "VM status: running\r\n"),
        ("info name", "vm1\r\n"),
        (
            "info memory_size_summary",
            "base memory: 536870912\r\nplugged memory: 0\r\n",
        ),
        ("bogus", "unknown command: 'bogus'\r\n"),
        ("info bogus", "unknown command: 'info bogus'\r\n"),
        ("qom-set vmem0 requested-size 512M", ""),
        (
            "qom-set vmem0 requested-size 3",
            "Error: 'requested-size' has to be multiples of 'block-size' (0x200000)\r\n",
        ),
        ("qom-get nope size", "Error: Device 'nope' not found\r\n"),
        ("qom-get vmem0 block-size", "2097152\r\n"),
        (
            "qom-set vmem0",
            'qom-set: string expected\r\nTry "help qom-set" for more information\r\n',
        ),
        ("", ""),
    ],
)
def test_human_monitor(wire: Wire, line: str, text: str) -> None:
    assert wire.run("human-monitor-command", **{"command-line": line}) == {"return": text}


def test_human_monitor_counts_plugged_memory_to_its_node(wire: Wire, machine: FakeMachine) -> None:
    with machine.lock:
        machine.numa = Topology((Node((1, 3), 256 * MIB), Node((), 0)))
        machine.plug("vmem0", 6 * MIB)
    assert b"MEMORY_DEVICE_SIZE_CHANGE" in wire.line()

    text = wire.run("human-monitor-command", **{"command-line": "info numa"})["return"]

    assert text.split("\r\n") == [
        "2 nodes",
        *("node 0 cpus: 1 3", "node 0 size: 262 MB", "node 0 plugged: 6 MB"),
        *("node 1 cpus:", "node 1 size: 0 MB", "node 1 plugged: 0 MB"),
        "",
    ]


def test_size_changes_reach_every_client_at_most_once_a_second(
    wire: Wire, live: MachineDir, machine: FakeMachine
) -> None:
    other = Wire(live)
    other.line()
    other.run("qmp_capabilities")
    with machine.lock:
        for size in (2, 4, 6):
            machine.plug("vmem0", size * MIB)

    for client in (wire, other):
        first, last = json.loads(client.line()), json.loads(client.line())
        assert first["event"] == "MEMORY_DEVICE_SIZE_CHANGE"
        assert first["data"] == {
            "id": "vmem0",
            "size": 2 * MIB,
            "qom-path": "/machine/peripheral/vmem0",
        }
        assert last["data"]["size"] == 6 * MIB
        seconds = [
            e["timestamp"]["seconds"] + e["timestamp"]["microseconds"] / 1e6 for e in (first, last)
        ]
        assert seconds[1] - seconds[0] < 1.5
    other.close()


def test_a_client_that_left_harms_nobody(wire: Wire, live: MachineDir) -> None:
    other = Wire(live)
    other.socket.sendall(b'{"execute":')
    other.close()

    assert wire.run("query-name") == {"return": {"name": "vm1"}}


def test_the_socket_is_for_its_owner_only(live: MachineDir) -> None:
    assert live.qmp_socket.stat().st_mode & 0o777 == 0o600
