"""The fuzzer: a short run finds nothing, and what is planted it finds, names and shrinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from minivmm.devices.virtio_blk.device import VirtioBlk
from minivmm.devices.virtio_mem.blocks import Blocks
from minivmm.devices.virtio_mem.host_side import HostSide, Work
from minivmm.devices.virtio_mem.state import Range
from minivmm.memory.guest import GuestMemory
from minivmm.pci.msix import Msix
from minivmm.testing.fuzz import FORMATS, Campaign, main, make_case
from minivmm.testing.fuzz_case import Case, Finding, run, shrink
from minivmm.testing.fuzz_world import DEVICES
from minivmm.virtio.queue.chain import BufferChain
from minivmm.virtio.service import QueueService
from minivmm.virtio.transport import Transport

Plant = Callable[[pytest.MonkeyPatch], None]


def wrong_count(patch: pytest.MonkeyPatch) -> None:
    real = Blocks.plug

    def plug(self: Blocks, first: int, count: int) -> None:
        real(self, first, count)
        self.plugged_size += self.block_size if count == 3 else 0

    patch.setattr(Blocks, "plug", plug)


def memory_left_behind(patch: pytest.MonkeyPatch) -> None:
    real = HostSide.unplug

    def unplug(self: HostSide, shown: list[Range], whole: Range) -> Work:
        work = real(self, shown, whole)
        return Work(work.length, work.leaving, prepare=work.prepare, undo=work.undo)

    patch.setattr(HostSide, "unplug", unplug)


def any_address(patch: pytest.MonkeyPatch) -> None:
    def view(self: GuestMemory, gpa: int, length: int) -> memoryview:
        return self.slots[0].region.view(gpa % 4096, length)

    patch.setattr(GuestMemory, "view", view)
    patch.setattr(GuestMemory, "peek", view)


def message_of_a_driver_that_is_gone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Msix, "forget_pending", lambda _: None)


def queue_that_outlives_a_reset(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(QueueService, "close_all", lambda _: None)


def work_that_outlives_a_queue_reset(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VirtioBlk, "forget_queue", lambda self, index: None)


def register_that_outlives_a_reset(patch: pytest.MonkeyPatch) -> None:
    real = Transport.reset

    def reset(self: Transport) -> None:
        features = self.driver_features
        real(self)
        self.driver_features = features

    patch.setattr(Transport, "reset", reset)


def exception(patch: pytest.MonkeyPatch) -> None:
    real = BufferChain.read

    def read(self: BufferChain, limit: int | None = None) -> bytes:
        if self.readable == 24:
            raise ZeroDivisionError("planted")
        return real(self, limit)

    patch.setattr(BufferChain, "read", read)


PLANTS: dict[str, tuple[Plant, str]] = {
    "wrong count": (wrong_count, "MEM-D-3"),
    "memory left behind": (memory_left_behind, "held"),
    "any address": (any_address, "outside"),
    "message of a driver that is gone": (message_of_a_driver_that_is_gone, "silence"),
    "queue that outlives a reset": (queue_that_outlives_a_reset, "GEN-D-1"),
    "work that outlives a queue reset": (work_that_outlives_a_queue_reset, "GEN-D-7"),
    "register that outlives a reset": (register_that_outlives_a_reset, "driver_feature"),
    "exception": (exception, "planted"),
}


def look_for_it() -> tuple[Case, Finding]:
    for _, case, finding in Campaign(1, FORMATS["both"]).cases(60_000):
        if finding:
            return case, finding
    pytest.fail("nothing was found")


def test_short_run_finds_nothing_and_reaches_what_matters() -> None:
    campaign = Campaign(0, FORMATS["both"])

    findings = [finding.text for _, _, finding in campaign.cases(4_000) if finding]

    assert findings == []
    assert campaign.steps >= 4_000
    reached = {"answer ACK", "answer NACK", "answer ERROR", "broken", "reset", "queue-reset"}
    assert reached <= campaign.told.keys()


@pytest.mark.parametrize("name", PLANTS)
def test_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, rule = PLANTS[name]
    plant(monkeypatch)

    _, finding = look_for_it()

    assert rule in finding.what


def test_finding_is_shrunk_to_its_core_which_finds_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exception(monkeypatch)
    case, finding = look_for_it()

    core = shrink(case, finding)
    again = run(Case.from_text(core.to_text()))

    assert again is not None
    assert again.what == finding.what
    assert len(core.steps) <= 4
    assert len(core.setup.options) <= 1


def test_shrinking_finds_the_two_steps_that_matter() -> None:
    case = make_case(1, 0)
    first, second = case.steps[30], case.steps[100]

    def look(candidate: Case) -> Finding | None:
        both = first in candidate.steps and second in candidate.steps
        return Finding(len(candidate.steps) - 1, "it", "") if both else None

    core = shrink(case, Finding(120, "it", ""), look)

    assert core.steps == (first, second)
    assert not core.setup.options


def test_seed_and_number_alone_decide_what_happens() -> None:
    for number in range(len(DEVICES)):
        case, told, again = make_case(9, number), Counter[str](), Counter[str]()

        assert make_case(9, number) == case
        assert run(case, told) == run(case, again)
        assert told == again


def test_devices_and_formats_take_turns() -> None:
    cases = [make_case(0, number, FORMATS["both"]) for number in range(2 * len(DEVICES))]

    tried = {(case.setup.device, case.setup.options["packed"]) for case in cases}

    assert tried == {(device, packed) for device in DEVICES for packed in (False, True)}


def test_command_line_prints_seed_rate_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--iterations", "300", "--seed", "5", "--format", "packed"]) == 0

    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("fuzz: seed 5, format packed: 300 steps, ")
    assert last.endswith(" a second, 0 findings")


def test_finding_is_printed_with_its_core_that_can_be_replayed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong_count(monkeypatch)

    assert main(["--iterations", "60000", "--seed", "1"]) == 1

    told = capsys.readouterr().out
    assert "again: scripts/fuzz --seed 1 --format both --case " in told
    file = tmp_path / "core"
    file.write_text(told[told.index("\n({") : told.rindex("fuzz: seed 1")])
    assert main(["--replay", str(file)]) == 1
    assert "MEM-D-3" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["--replay", str(file)]) == 0


def test_file_without_a_case_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "core"
    file.write_text("(1, 2)")

    assert main(["--replay", str(file)]) == 2

    assert len(capsys.readouterr().out.splitlines()) == 1
