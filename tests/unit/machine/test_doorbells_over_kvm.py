"""KvmDoorbells: a guest write rings on the loop with the lock held, until unbound or closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minivmm.doorbells import KvmDoorbells
from minivmm.errors import HostError
from minivmm.testing.fake_kvm import FakeVm

GPA = 0xC000_3000


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm()


@pytest.fixture
def doorbells(vm: FakeVm, loop_thread: Any) -> KvmDoorbells:
    return KvmDoorbells(vm, loop_thread.loop)


def test_a_write_rings(vm: FakeVm, doorbells: KvmDoorbells, loop_thread: Any, wait: Any) -> None:
    rung: list[bool] = []
    unbind = doorbells.bind(GPA, 2, lambda: rung.append(loop_thread.loop.lock._is_owned()))

    assert vm.ring(GPA, 2)

    wait(lambda: rung)
    assert rung == [True]
    unbind()


def test_each_doorbell_has_its_own_callback(
    vm: FakeVm, doorbells: KvmDoorbells, loop_thread: Any, wait: Any
) -> None:
    rung: list[int] = []
    for at in range(4):
        doorbells.bind(GPA + 4 * at, 2, lambda at=at: rung.append(at))  # type: ignore[misc]

    vm.ring(GPA + 8, 2)

    wait(lambda: rung)
    assert rung == [2]
    loop_thread.run(doorbells.close)


def test_an_unbound_address_is_free_again(
    vm: FakeVm, doorbells: KvmDoorbells, loop_thread: Any, wait: Any
) -> None:
    rung: list[str] = []
    unbind = doorbells.bind(GPA, 2, lambda: rung.append("old"))

    unbind()

    assert not vm.ring(GPA, 2)
    doorbells.bind(GPA, 2, lambda: rung.append("new"))
    vm.ring(GPA, 2)
    wait(lambda: rung)
    assert rung == ["new"]
    loop_thread.run(doorbells.close)


def test_nothing_rings_after_close(vm: FakeVm, doorbells: KvmDoorbells, loop_thread: Any) -> None:
    rung: list[bool] = []
    doorbells.bind(GPA, 2, lambda: rung.append(True))
    loop_thread.settle()

    def ring_and_close() -> None:
        vm.ring(GPA, 2)
        doorbells.close()

    loop_thread.run(ring_and_close)
    loop_thread.settle()

    assert rung == []


def test_a_doorbell_that_kvm_refuses_is_released(
    vm: FakeVm, doorbells: KvmDoorbells, loop_thread: Any
) -> None:
    before = open_descriptors()
    doorbells.bind(GPA, 2, lambda: None)
    with pytest.raises(HostError):
        doorbells.bind(GPA, 2, lambda: None)

    loop_thread.run(doorbells.close)
    loop_thread.settle()

    assert open_descriptors() == before
