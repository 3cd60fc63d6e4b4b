"""QMP and monitor commands that move a machine, and `minivmm migrate`, on machines that do move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm import runtime
from minivmm.cli import main
from minivmm.control import qmp
from minivmm.control.commands import COMMANDS
from minivmm.control.face import Context
from minivmm.control.hmp import execute
from minivmm.errors import ExitStatus, MinivmmError, Refused
from minivmm.units import KIB, MIB


class Asked:
    """Commands on the control socket of a party, without the socket."""

    def __init__(self, party: Any) -> None:
        self._party = party
        self.context = Context(party.machine, None, lambda: party.migration)

    def __call__(self, name: str, **arguments: object) -> Any:
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        answer = self._party.world.call(lambda: COMMANDS[name].run(self.context, given))
        return json.loads(json.dumps(answer))

    def line(self, text: str) -> list[str]:
        lines: list[str] = self._party.world.call(lambda: execute(self.context, text))
        return lines


@pytest.fixture
def ask(source: Any) -> Asked:
    return Asked(source)


def test_nothing_is_known_before_the_first_one(ask: Asked) -> None:
    assert ask("query-migrate") == {}
    assert ask.line("info migrate") == []


def test_a_migration_from_beginning_to_end(
    ask: Asked, source: Any, target: Any, uri: str, wait: Any
) -> None:
    assert ask("migrate", uri=target.expect(uri)) == {}
    wait(lambda: ask("query-migrate")["status"] == "completed")
    wait(lambda: target.ends)
    found = ask("query-migrate")

    assert set(found) == {"status", "ram", "total-time", "setup-time", "downtime"}
    assert found["ram"]["total"] == (64 + 42) * MIB
    assert found["ram"]["page-size"] == 4096
    assert found["ram"]["normal"] * 4096 == found["ram"]["normal-bytes"] > 0
    assert (found["ram"]["normal"] + found["ram"]["duplicate"]) * 4096 == found["ram"]["total"]
    assert found["ram"]["remaining"] == 0
    assert found["downtime"] <= found["total-time"]
    assert ask("query-status") == {"status": "postmigrate", "singlestep": False, "running": False}
    assert Asked(target)("query-status")["status"] == "running"
    assert Asked(target)("query-migrate")["status"] == "completed"
    lines = ask.line("info migrate")
    assert lines[0] == "Migration status: completed"
    assert f"total ram: {(64 + 42) * 1024} kbytes" in lines
    assert ask.line("info status") == ["VM status: paused (postmigrate)"]


def test_what_fails_says_why(ask: Asked, wait: Any, tmp_path: Path) -> None:
    assert ask.line(f"migrate -d unix:{tmp_path}/nobody") == []
    wait(lambda: ask("query-migrate")["status"] == "failed")

    assert "no target listens" in ask("query-migrate")["error-desc"]
    assert "downtime" not in ask("query-migrate")
    assert ask("query-status")["running"] is True
    assert ask.line("info migrate")[0].startswith("Migration status: failed (no target listens")


def test_cancelling_nothing_is_no_error(ask: Asked) -> None:
    assert ask("migrate_cancel") == {}
    assert ask.line("migrate_cancel") == []
    assert ask("query-migrate") == {}


def test_parameters_are_qemus(ask: Asked) -> None:
    before = ask("query-migrate-parameters")
    assert before == {"max-bandwidth": 128 * MIB, "downtime-limit": 300, "compress-level": 0}

    assert ask("migrate-set-parameters", max_bandwidth=5 * KIB, compress_level=3) == {}

    after = {"max-bandwidth": 5 * KIB, "downtime-limit": 300, "compress-level": 3}
    assert ask("query-migrate-parameters") == after
    assert "downtime-limit: 300 ms" in ask.line("info migrate_parameters")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bandwidth": -1},
        {"max_bandwidth": 1 << 63},
        {"downtime_limit": 2_000_001},
        {"downtime_limit": -1},
        {"compress_level": 10},
        {"max_bandwidth": 1, "compress_level": -1},
        {"multifd_channels": 2},
    ],
)
def test_what_cannot_be_is_refused_whole(ask: Asked, wrong: dict[str, int]) -> None:
    before = ask("query-migrate-parameters")

    with pytest.raises(Refused, match=r"^Parameter '"):
        ask("migrate-set-parameters", **wrong)

    assert ask("query-migrate-parameters") == before


def test_events_are_always_on(ask: Asked) -> None:
    [found] = ask("query-migrate-capabilities")
    assert found == {"capability": "events", "state": True}
    assert ask("migrate-set-capabilities", capabilities=[found]) == {}
    for other in ({"capability": "events", "state": False}, {"capability": "x"}, 7):
        with pytest.raises(Refused, match="not available"):
            ask("migrate-set-capabilities", capabilities=[other])


@pytest.mark.parametrize("uri", ["", "bogus", "rdma:x:1", "tcp:nowhere"])
def test_uris_are_judged_at_once(ask: Asked, uri: str) -> None:
    with pytest.raises(MinivmmError, match="migration URI"):
        ask("migrate", uri=uri)
    assert ask("query-migrate") == {}


def test_a_machine_on_the_way_is_not_changed_here(ask: Asked, moved: Any, target: Any) -> None:
    moved()

    for name, arguments in {
        "system_reset": {},
        "qom-set": {"path": "vmem0", "property": "requested-size", "value": 0},
        "migrate": {"uri": "unix:/x"},
    }.items():
        with pytest.raises(Refused, match="postmigrate"):
            ask(name, **arguments)


def test_one_that_comes_in_is_not_changed_before(target: Any, uri: str) -> None:
    target.expect(uri)
    ask = Asked(target)

    assert ask("query-status") == {"status": "inmigrate", "singlestep": False, "running": False}
    with pytest.raises(Refused, match="inmigrate"):
        ask("system_reset")
    ask("cont")
    ask("stop")
    assert ask("query-status")["status"] == "inmigrate"


def test_a_machine_that_cannot_move_says_so(source: Any) -> None:
    with pytest.raises(Refused, match="cannot be migrated"):
        COMMANDS["migrate"].run(Context(source.machine), {"uri": "unix:/x"})


# -- the verb ------------------------------------------------------------------------------------


@pytest.fixture
def served(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[runtime.MachineDir]:
    """The source answers on its control socket, until it quits."""
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / "run"))
    directory = runtime.claim("vm1")
    loop = source.world.loop.asyncio

    async def make() -> qmp.QmpServer:
        server = qmp.QmpServer(Asked(source).context, source.world.loop.lock)
        await server.start(directory.qmp_socket)
        return server

    server = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    closing: list[Any] = []

    async def close() -> None:
        await server.close()
        directory.remove()

    def end(*_: object) -> None:
        if not closing:
            closing.append(asyncio.run_coroutine_threadsafe(close(), loop))

    source.machine.on_end.append(end)
    yield directory
    end()
    closing[0].result(10)


def test_the_verb_moves_a_vm_and_ends_it_here(
    served: runtime.MachineDir, source: Any, target: Any, uri: str, wait: Any, capsys: Any
) -> None:
    assert main.run(["migrate", "vm1", target.expect(uri), "--bandwidth", "0"]) == 0
    wait(lambda: target.ends)

    assert target.ends == [None]
    assert source.machine.state == "shutdown"
    assert source.migration.parameters.max_bandwidth == 0
    printed = capsys.readouterr()
    assert "vm1 has moved in" in printed.err
    assert "106M of memory" in printed.err


def test_the_verb_may_keep_it(
    served: runtime.MachineDir, source: Any, target: Any, uri: str, wait: Any, capsys: Any
) -> None:
    words = ["--keep", "--json", "--downtime", "2s", "--compress", "1"]
    assert main.run(["migrate", target.expect(uri), *words]) == 0
    wait(lambda: target.ends)

    assert source.machine.state == "postmigrate"
    assert source.migration.parameters.downtime_limit == 2000
    assert source.migration.parameters.compress_level == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["name"], said["status"]) == (1, "vm1", "completed")


@pytest.mark.usefixtures("served")
def test_the_verb_says_why_not(source: Any, tmp_path: Path, capsys: Any) -> None:
    assert main.run(["migrate", f"unix:{tmp_path}/nobody"]) == ExitStatus.FAILED
    assert "no target listens" in capsys.readouterr().err
    assert main.run(["migrate", "nonsense"]) == ExitStatus.FAILED
    assert main.run(["migrate", "a", "b", "c"]) == ExitStatus.USAGE
    assert main.run(["migrate", "unix:/x", "--compress", "11"]) == ExitStatus.USAGE
    assert source.runs()
