"""Snapshots of machines on a fake KVM: taken while they run, restored, leaning on each other."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import BadState, HostError, MinivmmError, Refused, UsageError
from minivmm.machine import Machine
from minivmm.machine_spec import MachineSpec
from minivmm.memory import libc
from minivmm.snapshot.desk import Desk
from minivmm.snapshot.index import CHUNK, read_index
from minivmm.snapshot.restored import load, open_snapshot, verify
from minivmm.testing.fake_kvm import FakeSystem, FakeVm
from minivmm.testing.loop_thread import LoopThread
from minivmm.testing.tiny_kernel import tiny_image
from minivmm.units import GIB, MIB

PAGE = 4096
BLOCK = 2 * MIB
MARK = b"the quick brown fox" * 11


class Rig:
    """A machine on a loop that runs, with a desk; `device` has 1 GiB, nothing plugged."""

    def __init__(self, thread: LoopThread, *, restored: Path | None = None, **options: Any) -> None:
        self.thread = thread
        self.system = FakeSystem()
        chosen = {"requested_size": 256 * MIB} | options
        devices = (VirtioMemSpec(id="vmem0", size=GIB, **chosen),)
        spec = MachineSpec(memory=64 * MIB, devices=devices)
        if restored is not None:
            spec = open_snapshot(restored).spec
        self.machine = thread.run(
            lambda: Machine(
                spec,
                tiny_image(),
                self.system,
                thread.loop,
                console=lambda _: None,
                empty=restored is not None,
            )
        )
        self.vm: FakeVm = self.system.vms[0]
        self.memory = self.machine.board.memory
        self.device = self.machine.memory_devices["vmem0"]
        self.base = self.device.window.base
        self.desk = Desk(self.machine)
        self.events: list[tuple[str, dict[str, object]]] = []
        self.machine.on_event.append(lambda name, data: self.events.append((name, data)))

    def start(self) -> Rig:
        self.locked(self.machine.start)
        return self

    def locked(self, call: Any, *args: Any, **named: Any) -> Any:
        def held() -> Any:
            with self.thread.loop.lock:
                return call(*args, **named)

        return self.thread.run(held)

    def plug(self, first: int, count: int) -> None:
        def plug() -> None:
            work = self.device.host_side.plug(first * BLOCK, count * BLOCK)
            work.prepare()
            work.aside()
            work.finish()
            self.device.blocks.plug(first, count)

        self.locked(plug)

    def unplug(self, first: int, count: int) -> None:
        def unplug() -> None:
            piece = (first * BLOCK, count * BLOCK)
            work = self.device.host_side.unplug([piece], piece)
            work.prepare()
            work.aside()
            self.device.blocks.unplug(first, count)

        self.locked(unplug)

    def write(self, gpa: int, data: bytes) -> None:
        """As a vCPU does."""

        def write() -> None:
            slot = next(one for one in self.memory.slots if one.gpa <= gpa < one.end)
            slot.region.peek(gpa - slot.gpa, len(data))[:] = data
            self.vm.wrote(gpa, len(data))

        self.locked(write)

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.locked(self.memory.read, gpa, size))

    def snapshot(self, path: Path, **options: Any) -> None:
        self.locked(self.desk.begin, str(path), **options)
        wait_for(lambda: self.desk.progress and self.desk.progress.status != "active")
        assert self.desk.progress is not None
        assert (self.desk.progress.status, self.desk.progress.error) == ("completed", None)

    def failure(self, path: Path, **options: Any) -> str:
        self.locked(self.desk.begin, str(path), **options)
        wait_for(lambda: self.desk.progress and self.desk.progress.status != "active")
        assert self.desk.progress is not None
        assert self.desk.progress.status == "failed"
        return str(self.desk.progress.error)

    def close(self) -> None:
        self.thread.run(self.machine.close)


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    with LoopThread() as running:
        yield running


class Rigs:
    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self.made: list[Rig] = []

    def __call__(self, **options: Any) -> Rig:
        self.made.append(Rig(self._thread, **options))
        return self.made[-1]

    def restore(self, path: Path) -> Rig:
        """A machine from `path`, loaded and not started."""
        rig = self(restored=path)
        rig.locked(load, open_snapshot(path), rig.machine)
        return rig


@pytest.fixture
def rigs(thread: LoopThread) -> Iterator[Rigs]:
    made = Rigs(thread)
    yield made
    for rig in made.made:
        rig.close()


@pytest.fixture
def rig(rigs: Rigs) -> Rig:
    return rigs().start()


def test_what_was_saved_is_restored(rig: Rig, rigs: Rigs, tmp_path: Path) -> None:
    rig.plug(3, 2)
    rig.write(MIB + 5, MARK)
    rig.write(rig.base + 4 * BLOCK - 9, MARK)

    rig.snapshot(tmp_path / "s")
    other = rigs.restore(tmp_path / "s")

    assert other.device.plugged_size == 2 * BLOCK
    assert other.read(MIB, 4096) == rig.read(MIB, 4096)
    assert other.read(rig.base + 3 * BLOCK, 2 * BLOCK) == rig.read(rig.base + 3 * BLOCK, 2 * BLOCK)
    other.start()
    assert other.machine.state == "running"
    assert list(verify(tmp_path / "s")) == []
    assert sorted(one.name for one in tmp_path.iterdir()) == ["s"]


def test_a_paused_machine_stays_so_and_comes_back_so(rig: Rig, rigs: Rigs, tmp_path: Path) -> None:
    rig.locked(rig.machine.pause)
    rig.snapshot(tmp_path / "s")
    assert rig.machine.state == "paused"
    other = rigs.restore(tmp_path / "s").start()
    assert other.machine.state == "paused"


def test_only_what_is_not_zero_takes_room(rig: Rig, tmp_path: Path) -> None:
    rig.plug(0, 128)
    rig.write(rig.base + 100 * BLOCK, b"x")
    rig.snapshot(tmp_path / "s")
    file = (tmp_path / "s" / "ram").stat()
    assert file.st_size >= GIB
    assert file.st_blocks * 512 < 2 * MIB
    assert rig.desk.progress is not None
    assert rig.desk.progress.written < 2 * MIB
    assert rig.desk.progress.plugged == 64 * MIB + 128 * BLOCK


def test_what_is_written_to_a_restored_machine_stays_its_own(
    rig: Rig, rigs: Rigs, tmp_path: Path
) -> None:
    rig.plug(0, 1)
    rig.write(rig.base, MARK)
    rig.snapshot(tmp_path / "s")
    one, two = rigs.restore(tmp_path / "s"), rigs.restore(tmp_path / "s")
    one.write(rig.base, b"mine")
    assert two.read(rig.base, len(MARK)) == MARK
    assert list(verify(tmp_path / "s")) == []


@pytest.mark.parametrize("protect", ["off", "report"])
def test_an_unplugged_block_never_comes_back_with_old_content(
    rigs: Rigs, tmp_path: Path, protect: str
) -> None:
    rig = rigs(protect=protect).start()
    rig.plug(0, 4)
    for block in range(4):
        rig.write(rig.base + block * BLOCK + 77, MARK)
    rig.snapshot(tmp_path / "s")
    other = rigs.restore(tmp_path / "s")
    other.unplug(1, 2)
    assert other.device.region.resident_in(BLOCK, 2 * BLOCK) == 0
    other.plug(1, 2)
    assert other.read(rig.base + BLOCK, 2 * BLOCK) == bytes(2 * BLOCK)
    assert other.read(rig.base + 3 * BLOCK + 77, len(MARK)) == MARK


def test_reset_of_a_restored_machine_leaves_nothing_of_the_old_content(
    rig: Rig, rigs: Rigs, tmp_path: Path
) -> None:
    rig.plug(0, 1)
    rig.write(rig.base, MARK)
    rig.write(5 * MIB, MARK)
    rig.snapshot(tmp_path / "s")
    other = rigs.restore(tmp_path / "s").start()
    other.locked(other.machine.request_reset)
    wait_for(lambda: any(name == "RESET" for name, _ in other.events))
    assert other.read(5 * MIB, len(MARK)) == bytes(len(MARK))
    other.plug(0, 1)
    assert other.read(rig.base, len(MARK)) == bytes(len(MARK))


def test_shared_memory_is_copied(rigs: Rigs, tmp_path: Path) -> None:
    rig = rigs(backing="memfd").start()
    rig.plug(0, 3)
    rig.write(rig.base + BLOCK, MARK)
    resident = rig.device.resident()
    rig.snapshot(tmp_path / "s")
    assert rig.device.resident() == resident  # looking for zeroes took no memory
    other = rigs.restore(tmp_path / "s")
    assert other.read(rig.base + BLOCK, len(MARK)) == MARK
    assert other.device.resident() <= 2 * BLOCK


def test_an_increment_holds_what_changed_since_its_base(
    rig: Rig, rigs: Rigs, tmp_path: Path
) -> None:
    rig.plug(0, 8)
    for block in range(8):
        rig.write(rig.base + block * BLOCK, MARK)
    rig.snapshot(tmp_path / "a", track=True)
    rig.write(rig.base + 3 * BLOCK, b"changed")
    rig.write(rig.base + 4 * BLOCK, bytes(PAGE))  # to zeroes
    rig.unplug(5, 1)
    rig.unplug(6, 1)
    rig.plug(6, 1)
    rig.plug(20, 1)
    rig.write(rig.base + 20 * BLOCK, b"new")

    rig.snapshot(tmp_path / "b", base=str(tmp_path / "a"))
    assert rig.desk.progress is not None
    assert rig.desk.progress.written <= 16 * PAGE
    rig.write(rig.base + 7 * BLOCK, b"later")
    rig.snapshot(tmp_path / "c", base=str(tmp_path / "b"))

    other = rigs.restore(tmp_path / "c")
    for block in (0, 1, 2, 3, 4, 6, 7, 20):
        gpa = rig.base + block * BLOCK
        assert other.read(gpa, BLOCK) == rig.read(gpa, BLOCK), block
    assert other.device.plugged_size == rig.device.plugged_size
    earlier = rigs.restore(tmp_path / "b")
    assert earlier.read(rig.base + 7 * BLOCK, len(MARK)) == MARK
    assert list(verify(tmp_path / "c")) == []


def test_a_chain_may_be_moved_but_not_mixed_up(rig: Rig, rigs: Rigs, tmp_path: Path) -> None:
    rig.write(MIB, MARK)
    rig.snapshot(tmp_path / "a", track=True)
    rig.snapshot(tmp_path / "b", base=str(tmp_path / "a"))
    rig.snapshot(tmp_path / "c", track=True)
    (tmp_path / "moved").mkdir()
    for name in "ab":
        (tmp_path / name).rename(tmp_path / "moved" / name)
    other = rigs.restore(tmp_path / "moved" / "b")
    assert other.read(MIB, len(MARK)) == MARK
    (tmp_path / "moved" / "a").rename(tmp_path / "moved" / "x")
    with pytest.raises(HostError, match="leans on another"):
        rigs.restore(tmp_path / "moved" / "b")
    (tmp_path / "c").rename(tmp_path / "moved" / "a")
    with pytest.raises(BadState, match="not the one"):
        rigs.restore(tmp_path / "moved" / "b")


def test_a_base_that_is_not_the_last_is_refused(rig: Rig, tmp_path: Path) -> None:
    rig.snapshot(tmp_path / "a")
    with pytest.raises(Refused, match="--track"):
        rig.locked(rig.desk.begin, str(tmp_path / "b"), base=str(tmp_path / "a"))
    rig.snapshot(tmp_path / "b", track=True)
    with pytest.raises(Refused, match="not the last one"):
        rig.locked(rig.desk.begin, str(tmp_path / "c"), base=str(tmp_path / "a"))


def test_a_chain_has_an_end(
    rig: Rig, rigs: Rigs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivmm.snapshot.desk.MOST_LAYERS", 3)
    monkeypatch.setattr("minivmm.snapshot.index.MOST_LAYERS", 3)
    rig.snapshot(tmp_path / "0", track=True)
    for number in (1, 2):
        rig.write(number * MIB, MARK)
        rig.snapshot(tmp_path / str(number), base=str(tmp_path / str(number - 1)))
    with pytest.raises(Refused, match="3 snapshots lean"):
        rig.locked(rig.desk.begin, str(tmp_path / "3"), base=str(tmp_path / "2"))
    assert rigs.restore(tmp_path / "2").read(MIB, len(MARK)) == MARK


def test_changes_survive_an_increment_that_came_to_nothing(
    rig: Rig, rigs: Rigs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.snapshot(tmp_path / "a", track=True)
    rig.write(3 * MIB, MARK)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full_disk)
        assert "no room" in rig.failure(tmp_path / "b", base=str(tmp_path / "a"))
    rig.snapshot(tmp_path / "b", base=str(tmp_path / "a"))
    assert rigs.restore(tmp_path / "b").read(3 * MIB, len(MARK)) == MARK


def full_disk(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_nothing_and_the_machine_runs_on(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.pwrite", full_disk)
    assert "no room" in rig.failure(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
    assert rig.machine.state == "running"
    assert not any(slot.logged for slot in rig.vm.slots.values())


def test_a_cancelled_snapshot_leaves_nothing(rig: Rig, tmp_path: Path) -> None:
    def begin_and_cancel() -> None:
        rig.desk.begin(str(tmp_path / "s"))
        rig.desk.cancel()

    rig.locked(begin_and_cancel)
    wait_for(lambda: rig.desk.progress and rig.desk.progress.status != "active")
    assert rig.desk.progress is not None
    assert rig.desk.progress.status == "cancelled"
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_ends_or_closes_meanwhile_leaves_nothing(
    rigs: Rigs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda *args: (time.sleep(0.02), slow(*args))[1])
    for end in ("quit", "close"):
        rig = rigs().start()
        rig.plug(0, 64)
        for block in range(64):
            rig.write(rig.base + block * BLOCK, MARK)
        rig.locked(rig.desk.begin, str(tmp_path / "s"))
        if end == "quit":
            rig.locked(rig.machine.request_quit)
        rig.close()
        assert list(tmp_path.iterdir()) == []


def test_one_snapshot_at_a_time(rig: Rig, tmp_path: Path) -> None:
    def begin_two() -> None:
        rig.desk.begin(str(tmp_path / "a"))
        with pytest.raises(Refused, match="is being taken"):
            rig.desk.begin(str(tmp_path / "b"))

    rig.locked(begin_two)
    wait_for(lambda: rig.desk.progress and rig.desk.progress.status == "completed")
    assert [name for name, _ in rig.events].count("X_MINIVMM_SNAPSHOT") == 2


def test_a_directory_that_is_there_is_left_alone(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(UsageError, match="exists"):
        rig.locked(rig.desk.begin, str(tmp_path / "s"))


def test_a_machine_that_does_not_run_is_not_saved(rigs: Rigs, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="prelaunch"):
        rig = rigs()
        rig.locked(rig.desk.begin, str(tmp_path / "s"))


def test_damage_to_memory_is_found_by_verify(rig: Rig, tmp_path: Path) -> None:
    rig.write(MIB, MARK)
    rig.snapshot(tmp_path / "s")
    ram = tmp_path / "s" / "ram"
    ram.chmod(0o600)
    index = read_index(open_snapshot(tmp_path / "s").contents.section("ram").data)
    for offset in (index.offset(MIB) + 3, index.size - 1):  # in data, and where there was none
        with ram.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes((byte[0] ^ 1,)))
        (line,) = verify(tmp_path / "s")
        assert f"first at byte {offset // CHUNK * CHUNK}" in line
        with ram.open("r+b") as file:
            file.seek(offset)
            file.write(byte)


def test_a_ram_file_cut_short_is_refused(rig: Rig, rigs: Rigs, tmp_path: Path) -> None:
    rig.snapshot(tmp_path / "s")
    ram = tmp_path / "s" / "ram"
    ram.chmod(0o600)
    os.truncate(ram, ram.stat().st_size - PAGE)
    with pytest.raises(BadState, match="cut short"):
        rigs.restore(tmp_path / "s")


def test_a_machine_of_another_shape_is_refused(rig: Rig, rigs: Rigs, tmp_path: Path) -> None:
    rig.snapshot(tmp_path / "s")
    other = rigs(block_size=4 * MIB, restored=None)
    with pytest.raises(MinivmmError, match="block-size"):
        other.locked(load, open_snapshot(tmp_path / "s"), other.machine)


def test_a_file_system_without_holes_will_do(
    rig: Rig, rigs: Rigs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_holes(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    rig.write(MIB, MARK)
    rig.snapshot(tmp_path / "a", track=True)
    monkeypatch.setattr(libc, "punch_hole", no_holes)
    rig.write(MIB, bytes(PAGE))
    rig.snapshot(tmp_path / "b", base=str(tmp_path / "a"))
    assert rigs.restore(tmp_path / "b").read(MIB, PAGE) == bytes(PAGE)


def test_what_a_killed_process_left_is_removed(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / ".s.part-dead").mkdir()
    rig.snapshot(tmp_path / "s")
    assert [one.name for one in tmp_path.iterdir()] == ["s"]


def test_any_flipped_bit_of_a_snapshot_is_found(rig: Rig, tmp_path: Path) -> None:
    rig.plug(0, 2)
    rig.write(rig.base + BLOCK, MARK)
    rig.snapshot(tmp_path / "s")
    file = tmp_path / "s" / "machine"
    file.chmod(0o600)
    data = file.read_bytes()
    dice = random.Random(5)
    for bit in dice.sample(range(len(data) * 8), 150):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(BadState) as caught:
            open_snapshot(tmp_path / "s")
        assert "\n" not in str(caught.value)
    for length in (*dice.sample(range(len(data)), 50), 0):
        file.write_bytes(data[:length])
        with pytest.raises(BadState):
            open_snapshot(tmp_path / "s")
    file.write_bytes(data)
    open_snapshot(tmp_path / "s")
