"""Snapshots from Python: taken, gone on from, refused; the guest is played by this host."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_bench import fake_kvm, guest_of

import minivmm
from minivmm.errors import Refused, UsageError, WaitTimeout
from minivmm.snapshot.taken import Taking
from minivmm.units import GIB, MIB


@pytest.fixture(autouse=True)
def no_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / "run"))
    with fake_kvm():
        yield


@pytest.fixture
def vm() -> Iterator[minivmm.Vm]:
    with minivmm.boot(memory="64M", devices=[minivmm.VirtioMem("1G", block_size="2M")]) as vm:
        vm.mem["vmem0"].resize("256M")
        guest_of(vm).plug("vmem0", 256 * MIB)
        yield vm


def test_a_machine_goes_on_from_a_snapshot(vm: minivmm.Vm, tmp_path: Path) -> None:
    saved = vm.snapshot(tmp_path / "s")
    assert (saved.directory, saved.plugged) == (tmp_path / "s", 320 * MIB)
    assert 0 < saved.pause <= saved.seconds
    with minivmm.boot(restore=tmp_path / "s", name="again") as other:
        assert other.name == "again"
        assert other.mem["vmem0"].plugged == 256 * MIB
        assert other.mem["vmem0"].size == GIB
        assert other.run("echo hi", check=True).stdout == "hi\n"
        guest_of(other).plug("vmem0", 0)
        assert other.mem["vmem0"].plugged == 0
    assert vm.mem["vmem0"].plugged == 256 * MIB


def test_increments(vm: minivmm.Vm, tmp_path: Path) -> None:
    vm.snapshot(tmp_path / "a", track=True)
    guest_of(vm).plug("vmem0", 128 * MIB)
    vm.snapshot(tmp_path / "b", base=tmp_path / "a")
    with minivmm.boot(restore=tmp_path / "b") as other:
        assert other.mem["vmem0"].plugged == 128 * MIB


def test_the_same_with_asyncio(tmp_path: Path) -> None:
    async def life() -> int:
        async with minivmm.aio.boot(memory="64M", devices=["virtio-mem-pci,size=1G"]) as vm:
            await vm.snapshot(tmp_path / "s")
        async with minivmm.aio.boot(restore=tmp_path / "s") as vm:
            return vm.mem["vmem0"].size

    assert asyncio.run(life()) == GIB


def test_restore_goes_with_no_other_machine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="memory= does not go with restore="):
        minivmm.boot(restore=tmp_path / "s", memory="1G")
    with pytest.raises(UsageError, match="kernel= does not go"):
        minivmm.boot("6.12", restore=tmp_path / "s")


def test_what_is_refused_raises(vm: minivmm.Vm, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--track"):
        vm.snapshot(tmp_path / "b", base=tmp_path / "a")
    with pytest.raises(UsageError, match="exists"):
        vm.snapshot(tmp_path)


def test_a_snapshot_that_takes_too_long_is_called_off(
    vm: minivmm.Vm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    real = Taking._first

    def wait_first(taking: Taking) -> Any:
        go_on.wait(10)
        return real(taking)

    monkeypatch.setattr(Taking, "_first", wait_first)
    with pytest.raises(WaitTimeout, match=r"no snapshot after 0\.1 s"):
        vm.snapshot(tmp_path / "s", timeout=0.1)
    go_on.set()
    vm.close()
    assert not (tmp_path / "s").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["run"]
