"""Stats: exits by kind and place, bounded; milestones with what was counted until then."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from minivmm import stats as stats_module
from minivmm.stats import MAX_PLACES, Stats


@pytest.fixture(autouse=True)
def debugfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stats_module, "KVM_DEBUGFS", tmp_path)
    return tmp_path


def add_vm(debugfs: Path, number: int, exits: int) -> None:
    directory = debugfs / f"{os.getpid()}-{number}"
    directory.mkdir()
    for name in stats_module.KVM_COUNTERS:
        (directory / name).write_text(f"{exits}\n")


def test_exits_are_counted_by_kind_and_place() -> None:
    stats = Stats()

    stats.count("shutdown")
    stats.count_at("io out", 0x3F8)
    stats.count_at("io out", 0x3F8)
    stats.count_at("io out", 0x80)

    assert stats.exits == {"io out": 3, "shutdown": 1}
    assert stats.report()["places"] == [
        {"kind": "io out", "address": 0x3F8, "count": 2},
        {"kind": "io out", "address": 0x80, "count": 1},
    ]


def test_a_guest_that_touches_everything_does_not_fill_memory() -> None:
    stats = Stats()

    for address in range(10 * MAX_PLACES):
        stats.count_at("mmio read", address)
    stats.count_at("mmio read", 0)

    assert len(stats.places) <= MAX_PLACES + 1
    assert stats.exits["mmio read"] == 10 * MAX_PLACES + 1
    assert stats.places["mmio read", 0] == 2
    places = stats.report()["places"]
    assert isinstance(places, list)
    assert places[0] == {"kind": "mmio read", "address": None, "count": 9 * MAX_PLACES}
    assert f"exits, mmio read other: {9 * MAX_PLACES}" in stats.lines()


def test_a_milestone_is_when_it_was_first_reached() -> None:
    stats = Stats()
    stats.count("a")
    stats.mark("init")
    reached = dict(stats.milestones)
    stats.count("a")

    stats.mark("init")
    stats.mark("ready")

    assert stats.milestones["init"] == reached["init"]
    assert list(stats.milestones) == ["init", "ready"]
    assert 0 <= stats.milestones["init"] <= stats.milestones["ready"]
    assert stats.exits_at == {"init": {"a": 1}, "ready": {"a": 2}}


def test_kvm_counters_of_this_process_are_summed(debugfs: Path) -> None:
    add_vm(debugfs, 11, 5)
    add_vm(debugfs, 12, 7)
    (debugfs / f"{os.getpid()}0-13").mkdir()  # another process
    stats = Stats()

    stats.mark("init")

    assert stats.report()["kvm"] == dict.fromkeys(
        (f"kvm {name}" for name in stats_module.KVM_COUNTERS), 12
    )
    assert "exits in KVM up to init: 12" in stats.lines()


@pytest.mark.parametrize("content", [None, "no number"])
def test_unreadable_kvm_counters_are_left_out(debugfs: Path, content: str | None) -> None:
    directory = debugfs / f"{os.getpid()}-11"
    directory.mkdir()
    if content:
        (directory / "exits").write_text(content)

    assert Stats().report()["kvm"] == {}


def test_the_report_is_json_and_the_lines_name_the_busiest() -> None:
    stats = Stats()
    for address in range(20):
        for _ in range(address + 1):
            stats.count_at("io in", address)

    lines = stats.lines()

    assert json.loads(json.dumps(stats.report()))["exits"] == {"io in": 210}
    assert lines[0] == "exits, io in: 210"
    assert lines[1] == "exits, io in 0x13: 20"
    assert len(lines) == 11
