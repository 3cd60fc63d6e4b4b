"""The asyncio face: the same machine, awaited; what is cancelled here is cancelled there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_bench import FakeEngine, FakeGuest, fake_kvm

import minivmm
from minivmm.api.aio import AsyncVm
from minivmm.errors import GuestFailure, WaitTimeout
from minivmm.testing.fake_kvm import FakeSystem
from minivmm.units import MIB


@pytest.fixture(autouse=True)
def systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeSystem]]:
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / "run"))
    with fake_kvm() as systems:
        yield systems
    assert all(system.closed for system in systems)


def with_vm(use: Callable[[AsyncVm], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with minivmm.aio.boot(memory="64M", devices=["virtio-mem-pci,size=1G"]) as vm:
            await use(vm)

    asyncio.run(main())


def guest_of(vm: AsyncVm) -> FakeGuest:
    assert isinstance(vm.engine, FakeEngine)
    return vm.engine.guest


def test_commands_sizes_console_and_queries() -> None:
    async def use(vm: AsyncVm) -> None:
        assert (await vm.run("echo hello", check=True)).stdout == "hello\n"
        resize = vm.mem["vmem0"].resize("64M")
        await resize.ask()
        assert vm.mem["vmem0"].requested == 64 * MIB
        guest_of(vm).plug("vmem0", 64 * MIB)
        assert (await resize.wait()).done
        assert (await vm.mem["vmem0"].why(patience=0)).kind == "no-driver"
        assert await vm.mem["vmem0"].kick() is False
        guest_of(vm).print("login: ")
        assert (await vm.console.expect("log(in)"))[1] == "in"
        assert (await vm.qmp("query-status"))["running"]
        assert (await vm.inspect())["name"] == vm.name
        assert await vm.call(lambda: vm.machine.state) == "running"
        await vm.reboot()
        await vm.wait_ready()

    with_vm(use)


def test_much_happens_at_once() -> None:
    async def use(vm: AsyncVm) -> None:
        done = await asyncio.gather(*(vm.run(f"sleep 0.1; echo {n}") for n in range(4)))
        assert [one.stdout for one in done] == [f"{n}\n" for n in range(4)]

    with_vm(use)


def test_events_are_followed() -> None:
    async def use(vm: AsyncVm) -> None:
        async with vm.trace.follow("vmem0:answer", "machine") as seen:
            guest_of(vm).plug("vmem0", 64 * MIB)
            assert (await seen.wait_for("vmem0:answer")).fields["type"] == "PLUG"
            await vm.qmp("quit")
            assert [event.name async for event in seen] == ["end"]
        assert (await vm.wait_ended()).state == "shutdown"
        with pytest.raises(GuestFailure):
            await vm.run("true")

    with_vm(use)


@pytest.mark.parametrize(
    "wait",
    [
        lambda vm: vm.run("sleep 60"),
        lambda vm: vm.console.expect("never"),
        lambda vm: vm.mem["vmem0"].resize("64M").wait(),
    ],
)
def test_cancelled_here_is_cancelled_there(wait: Callable[[AsyncVm], Awaitable[object]]) -> None:
    async def use(vm: AsyncVm) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await wait(vm)

        async def others() -> set[str]:
            return {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]

        async with asyncio.timeout(5):
            while len(await vm.engine.reach(others())) > 2:  # the machine's, and this very one
                await asyncio.sleep(0.01)

    with_vm(use)


def test_a_guest_that_is_never_ready_leaves_nothing_but_a_note() -> None:
    async def main() -> None:
        with pytest.raises(WaitTimeout) as failure:
            async with minivmm.aio.boot(memory="64M", timeout=0.1):
                raise AssertionError("it is not ready")
        assert failure.value.__notes__ == ["no console"]

    with fake_kvm(boots=False) as systems:
        asyncio.run(main())
    assert [system.closed for system in systems] == [True]
