"""The blocking face: commands, console, memory, resets, ends, on a fake KVM and a guest of ours."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_bench import FakeGuest, fake_kvm, guest_of

import minivmm
from minivmm.accel import Accel
from minivmm.api import booting, resizing
from minivmm.control.client import Client
from minivmm.errors import (
    CommandFailed,
    GuestFailure,
    HostError,
    IdleRule,
    NoSuchMachine,
    Refused,
    UsageError,
    WaitTimeout,
)
from minivmm.runtime import running
from minivmm.testing.fake_kvm import FakeSystem
from minivmm.units import GIB, MIB

State = minivmm.ResizeState


@pytest.fixture(autouse=True)
def systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeSystem]]:
    """A fake KVM; afterwards nothing may be left of the machines."""
    monkeypatch.setenv("MINIVMM_RUNTIME_DIR", str(tmp_path / "run"))
    before = set(threading.enumerate())
    with fake_kvm() as systems:
        yield systems
    assert all(system.closed for system in systems)
    assert running() == []
    left = {thread for thread in set(threading.enumerate()) - before if thread.is_alive()}
    assert not [thread.name for thread in left if thread.name.startswith(("minivmm", "vcpu"))]


@pytest.fixture
def vm() -> Iterator[minivmm.Vm]:
    with minivmm.boot(memory="64M", devices=[minivmm.VirtioMem("1G", block_size="2M")]) as vm:
        yield vm


@pytest.fixture
def guest(vm: minivmm.Vm) -> FakeGuest:
    return guest_of(vm)


def soon(act: Callable[[], object]) -> None:
    threading.Timer(0.1, act).start()


def test_a_command_gives_status_and_both_outputs(vm: minivmm.Vm) -> None:
    done = vm.run("echo out; echo err >&2; exit 3")

    assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_words_are_passed_as_they_are_and_input_reaches_the_command(vm: minivmm.Vm) -> None:
    data = bytes(range(256)) * 100

    assert vm.run(["echo", "a  b", "$HOME"]).stdout == "a  b $HOME\n"
    assert vm.run(["cat"], input=data).output == data
    assert vm.run("echo $X; pwd", env={"X": "1"}, cwd="/usr").stdout == "1\n/usr\n"


def test_a_command_that_must_succeed_says_what_it_said(vm: minivmm.Vm) -> None:
    with pytest.raises(CommandFailed, match="ended with status 4: no such thing") as failure:
        vm.run("echo no such thing >&2; exit 4", check=True)

    assert failure.value.status == 4


def test_a_command_that_takes_too_long_is_killed(vm: minivmm.Vm) -> None:
    with pytest.raises(WaitTimeout, match=r"sleep 60 has not ended after 0.2 s"):
        vm.run(["sleep", "60"], timeout=0.2)

    assert vm.run("echo next").stdout == "next\n"


def test_a_machine_that_ends_ends_its_command_with_the_reason(vm: minivmm.Vm) -> None:
    soon(lambda: vm.qmp("quit"))

    with pytest.raises(GuestFailure, match="host asked to quit"):
        vm.run("sleep 60")

    assert vm.wait_ended().reason == "host asked to quit"
    assert vm.outcome is not None
    assert vm.state == "shutdown"


def test_a_guest_that_powers_off_takes_its_agent_along_and_says_so_later(
    vm: minivmm.Vm, guest: FakeGuest
) -> None:
    soon(guest.stop)
    threading.Timer(0.6, lambda: vm.qmp("quit")).start()

    with pytest.raises(GuestFailure, match="host asked to quit"):
        vm.run("sleep 60")


def test_many_threads_run_commands_at_once(vm: minivmm.Vm) -> None:
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(vm.run(f"echo {n}").stdout))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert sorted(answers) == [f"{n}\n" for n in range(6)]


def test_expect_finds_one_after_the_other(vm: minivmm.Vm, guest: FakeGuest) -> None:
    soon(lambda: guest.print("one 1\r\none 2\r\n"))

    assert vm.console.expect(r"one (\d)")[1] == "1"
    assert vm.console.expect(re.compile(r"one (\d)\n"))[1] == "2"
    with pytest.raises(WaitTimeout, match=r"'one' did not come .* last came '\\n'|last came ''"):
        vm.console.expect("one", timeout=0.1)
    assert "one 1\none 2\n" in vm.console.text


def test_expect_ends_with_the_machine(vm: minivmm.Vm) -> None:
    soon(lambda: vm.qmp("quit"))

    with pytest.raises(GuestFailure, match="host asked to quit"):
        vm.console.expect("never")


def test_a_resize_is_done_when_the_guest_has_plugged_it(vm: minivmm.Vm, guest: FakeGuest) -> None:
    device = vm.mem["vmem0"]
    soon(lambda: guest.plug("vmem0", 256 * MIB))

    result = device.resize("256M").wait(10).check()

    assert (result.state, result.plugged, result.requested) == (State.DONE, *[256 * MIB] * 2)
    assert (device.plugged, device.size, device.block_size) == (256 * MIB, GIB, 2 * MIB)
    assert device.resize("-64M").requested == 192 * MIB


def test_a_size_that_the_device_cannot_have_is_refused(vm: minivmm.Vm) -> None:
    result = vm.mem["vmem0"].resize("3M").wait()

    assert result.state is State.REFUSED
    assert "nearest: 2M, 4M" in result.reason
    with pytest.raises(GuestFailure, match="vmem0: refused: requested-size 3M"):
        result.check()
    with pytest.raises(UsageError, match="not understood"):
        vm.mem["vmem0"].resize("many")


def test_a_resize_that_another_overtakes_is_refused(vm: minivmm.Vm) -> None:
    first = vm.mem["vmem0"].resize("512M")
    vm.mem["vmem0"].resize("128M")

    assert first.wait().reason == "requested-size became 128M meanwhile"


def test_without_a_driver_a_resize_is_stalled_as_soon_as_that_is_clear(
    vm: minivmm.Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "QUIET", 0.2)
    began = time.monotonic()

    result = vm.mem["vmem0"].resize("512M").wait(60)

    assert time.monotonic() - began < 20
    assert result.state is State.STALLED
    assert result.diagnosis is not None
    assert result.diagnosis.kind == "no-driver"
    assert result.reason.startswith("no-driver: ")


def test_why_and_kick(vm: minivmm.Vm) -> None:
    vm.mem["vmem0"].resize("64M")

    assert vm.mem["vmem0"].why(patience=0).kind == "no-driver"
    assert vm.mem["vmem0"].kick() is False


def test_a_device_misbehaves_by_rules(vm: minivmm.Vm, guest: FakeGuest) -> None:
    device = vm.mem["vmem0"]
    rule = device.on_request("PLUG", minivmm.mischief.answer("BUSY"), times=1)
    device.on_config("block-size", minivmm.mischief.show(0))
    device.on_config_interrupt(minivmm.mischief.drop())
    device.resize("64M")

    guest.plug("vmem0", 64 * MIB)
    guest.plug("vmem0", 32 * MIB)

    assert (rule.seen, rule.fired) == (2, 1)
    assert device.plugged == 32 * MIB
    vm.call(device.mischief.clear)
    assert device.mischief.rules == []


def test_an_unknown_device_names_those_that_are_there(vm: minivmm.Vm) -> None:
    with pytest.raises(KeyError, match="no memory device 'vmem7'; it has vmem0"):
        vm.mem["vmem7"]
    assert list(vm.mem) == ["vmem0"]


def test_events_are_followed_filtered_and_waited_for(vm: minivmm.Vm, guest: FakeGuest) -> None:
    with vm.trace.follow("vmem0:answer") as seen:
        vm.mem["vmem0"].resize("128M")
        soon(lambda: guest.plug("vmem0", 64 * MIB))
        event = seen.wait_for("vmem0:answer", timeout=10)
        guest.plug("vmem0", 32 * MIB)

    assert (event.fields["type"], event.fields["answer"]) == ("PLUG", "ACK")
    assert [one.fields["type"] for one in seen.events] == ["PLUG", "UNPLUG"]
    assert [one.name for one in vm.trace.recent("vmem0:answer")] == ["answer", "answer"]
    assert seen.wait_for(lambda one: one.fields["type"] == "UNPLUG").source == "vmem0"
    assert list(seen) == []
    with pytest.raises(WaitTimeout, match=r"no event 'vmem0:answer' within 0.1 s"):
        seen.wait_for("vmem0:answer", timeout=0.1)


def test_iterating_over_events_ends_with_the_machine(vm: minivmm.Vm) -> None:
    following = vm.trace.follow("machine")
    soon(lambda: vm.qmp("quit"))

    assert [event.name for event in following] == ["end"]
    with pytest.raises(GuestFailure, match="host asked to quit"):
        following.wait_for("machine:reset")


def test_a_reboot_returns_when_the_guest_is_ready_again(vm: minivmm.Vm) -> None:
    with vm.trace.follow("machine:reset", "agent:ready") as seen:
        vm.reboot(timeout=20)

    assert [event.name for event in seen.events] == ["reset", "ready"]
    assert vm.run("echo again").stdout == "again\n"


def test_inspect_and_qmp(vm: minivmm.Vm) -> None:
    tree: Any = vm.inspect("board")

    assert vm.inspect()["state"] == "running"
    assert vm.inspect("board.devices.vmem0") == tree["devices"]["vmem0"]
    assert vm.qmp("qom-get", path="vmem0", property="size") == 0
    with pytest.raises(Refused, match="The command bogus has not been found"):
        vm.qmp("bogus")
    with pytest.raises(Refused, match="unknown part"):
        vm.inspect("nowhere")


def test_functions_run_on_the_loop_with_the_lock(vm: minivmm.Vm) -> None:
    def where() -> tuple[str, bool]:
        return threading.current_thread().name, vm.lock._is_owned()  # type: ignore[attr-defined]

    assert vm.call(where) == (f"minivmm-{vm.name}", True)
    with pytest.raises(ZeroDivisionError):
        vm.call(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="wait for itself"):
        vm.call(lambda: vm.run("true"))


def test_others_reach_the_machine_by_its_sockets(vm: minivmm.Vm) -> None:
    assert [entry.name for entry in running()] == [vm.name]
    directory = vm.engine.directory
    assert directory is not None
    with Client(directory.qmp_socket) as client:
        assert client.execute("query-name") == {"name": vm.name}


def test_without_sockets_nobody_does() -> None:
    with minivmm.boot(memory="64M", sockets=False) as vm:
        assert running() == []
        assert vm.mem == {}


def test_several_machines_live_in_one_process(vm: minivmm.Vm) -> None:
    with minivmm.boot(memory="64M", devices=["virtio-mem-pci,id=other,size=1G"]) as second:
        guest_of(second).plug("other", 0)
        assert second.name != vm.name
        assert second.run("echo 2").stdout == "2\n"
    assert vm.run("echo 1").stdout == "1\n"


def test_what_waits_for_a_machine_that_is_closed_hears_of_it(vm: minivmm.Vm) -> None:
    soon(vm.close)

    with pytest.raises(NoSuchMachine, match="is closed"):
        vm.console.expect("never")
    with pytest.raises(NoSuchMachine, match="is closed: boot another"):
        vm.run("true")
    vm.close()


def test_a_rule_that_never_acted_is_warned_of_at_the_end() -> None:
    vm = minivmm.boot(memory="64M", devices=[minivmm.VirtioMem("1G")])
    device = vm.mem["vmem0"]
    device.on_request("PLUG", minivmm.mischief.answer("BUSY"), times=1)
    device.on_request("UNPLUG", minivmm.mischief.answer("BUSY"), nth=2)
    guest_of(vm).plug("vmem0", 2 * MIB)

    with pytest.warns(IdleRule, match=rf"{vm.name}: vmem0: the rule never acted: UNPLUG") as seen:
        vm.close()

    assert len(seen) == 1
    vm.close()  # is told once


def test_warnings_of_the_machine_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with minivmm.boot(memory="64M", devices=[minivmm.VirtioMem("1G")]) as vm:
        vm.call(lambda: vm.machine._warn("memory runs out"))

    assert caplog.messages == [f"{vm.name}: memory runs out"]


def test_a_host_without_kvm_is_told_of_the_lab_in_one_line(
    monkeypatch: pytest.MonkeyPatch, systems: list[FakeSystem]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(booting, "probe", lambda: Accel(False, "there is no /dev/kvm"))
        with pytest.raises(HostError, match="/dev/kvm: run this in the lab: pytest --minivmm-lab"):
            minivmm.boot()
        patch.delenv("PYTEST_CURRENT_TEST")
        patch.setattr("sys.argv", [__file__, "-x"])
        with pytest.raises(HostError, match=rf"minivmm lab -- python {__file__} -x$"):
            minivmm.boot()
    assert systems == []


def test_a_guest_that_is_never_ready_leaves_nothing_but_a_note() -> None:
    with fake_kvm(boots=False) as systems:
        with pytest.raises(WaitTimeout, match=r"within 0.2 s") as failure:
            minivmm.boot(memory="64M", timeout=0.2)
        assert failure.value.__notes__ == ["no console"]
        with minivmm.boot(memory="64M", ready=False) as vm:
            assert vm.state == "running"
    assert all(system.closed for system in systems)


def test_a_machine_that_cannot_be_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HostError("no such memory")

    with monkeypatch.context() as patch, pytest.raises(HostError, match="no such memory"):
        patch.setattr("minivmm.board.load_kernel", refuse)
        minivmm.boot(memory="64M")


def test_the_first_machine_wants_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ValueError("signal only works in main thread of the main interpreter")

    with monkeypatch.context() as patch, pytest.raises(HostError, match="in its main thread"):
        patch.setattr(booting, "open_system", refuse)
        minivmm.boot()
