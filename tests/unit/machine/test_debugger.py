"""A debugger on a machine: stops, breakpoints, steps, and that it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from minivmm.debugger import Debugger, Stop
from minivmm.errors import GuestAddressError, HostError, Refused
from minivmm.guest_code import INT3, OUT_TRAP, TRAP_PORT
from minivmm.kvm.debug import DebugFeatures, Watch
from minivmm.kvm.debug_abi import GuestDebug
from minivmm.spec.platform import RESET_PORT, RESET_VALUE, SERIAL_PORT
from minivmm.testing.fake_debug import KERNEL

CODE = KERNEL + 0x10_0000
"""Linear address of a page of boot memory, where tests put code."""
GPA = 0x10_0000

FULL = DebugFeatures()
POOR = DebugFeatures(software=False, hardware=False)


class Bench:
    """A machine that a debugger is at."""

    def __init__(self, rig: Any, wait: Callable[..., None]) -> None:
        self.rig = rig
        self.wait = wait
        self.stops: list[Stop] = []
        self.debugger: Debugger = rig.machine.debugger
        self.debugger.on_stop = self.stops.append
        self.memory = rig.machine.board.memory

    def attach(self, features: DebugFeatures = FULL) -> None:
        for vcpu in self.rig.vcpus:
            vcpu.debug.reports_int3 = features.software
        self.do(lambda: self.debugger.attach(features))
        assert self.stop().cause == "attach"

    def do(self, call: Callable[[], object]) -> None:
        self.rig.locked(call)

    def stop(self) -> Stop:
        """The next stop."""
        self.wait(lambda: self.stops)
        return self.stops.pop(0)

    def go(self, **how: Any) -> Stop:
        self.do(lambda: self.debugger.go(**how))
        return self.stop()

    def trap(self, address: int = CODE) -> None:
        self.do(lambda: self.debugger.code.set_trap(0, address))


@pytest.fixture(params=[1, 4])
def bench(request: pytest.FixtureRequest, make_rig: Any, wait: Any) -> Bench:
    return Bench(make_rig(cpus=request.param).start(), wait)


@pytest.fixture(params=[FULL, POOR], ids=["int3", "out"])
def features(request: pytest.FixtureRequest) -> DebugFeatures:
    found: DebugFeatures = request.param
    return found


def test_attaching_stops_everything_and_says_so(bench: Bench) -> None:
    bench.attach()

    bench.rig.vcpus[-1].script_out(SERIAL_PORT, b"x")
    assert not bench.rig.vcpus[-1].wait_idle(0.03)
    assert bench.rig.machine.state == "debug"
    assert bench.rig.names() == ["STOP"]


def test_detaching_lets_it_run_on(bench: Bench) -> None:
    bench.attach()

    bench.do(lambda: bench.debugger.detach(run=False))

    bench.rig.vcpus[-1].script_out(SERIAL_PORT, b"x")
    assert bench.rig.vcpus[-1].wait_idle()
    assert bench.rig.machine.state == "running"
    assert bench.rig.names() == ["STOP", "RESUME"]


def test_a_debugger_that_only_looked_leaves_a_paused_machine_paused(bench: Bench) -> None:
    bench.rig.locked(bench.rig.machine.pause)
    bench.attach()

    bench.do(lambda: bench.debugger.detach(run=False))

    assert bench.rig.machine.state == "paused"
    bench.rig.locked(bench.rig.machine.resume)
    assert bench.rig.machine.state == "running"


def test_a_frozen_machine_waits_for_the_debugger(make_rig: Any, wait: Any) -> None:
    rig = make_rig(cpus=2)
    bench = Bench(rig, wait)
    rig.locked(lambda: rig.machine.start(frozen=True))
    rig.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert not rig.vcpus[0].wait_idle(0.03)
    assert rig.machine.state == "prelaunch"
    bench.attach()

    bench.do(bench.debugger.go)

    assert rig.vcpus[0].wait_idle()
    assert rig.machine.state == "running"


def test_a_frozen_machine_runs_when_it_is_told_to(make_rig: Any) -> None:
    rig = make_rig()
    rig.locked(lambda: rig.machine.start(frozen=True))

    rig.locked(rig.machine.resume)

    rig.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert rig.vcpus[0].wait_idle()


def test_nobody_else_lets_it_run(bench: Bench) -> None:
    bench.attach()

    with pytest.raises(Refused, match="debugger"):
        bench.do(bench.rig.machine.resume)

    assert bench.rig.machine.state == "debug"


def test_a_vcpu_stops_at_a_breakpoint_and_nothing_else_runs(
    bench: Bench, features: DebugFeatures
) -> None:
    bench.attach(features)
    bench.trap()
    cpu = len(bench.rig.vcpus) - 1
    bench.rig.vcpus[cpu].script_execute(CODE - 1, CODE, CODE + 1)

    assert bench.go() == Stop(cpu, "trap", CODE)

    assert bench.rig.vcpus[cpu].debug.registers()["rip"] == CODE
    assert bench.rig.machine.state == "debug"
    bench.wait(lambda: not bench.rig.inside)


def test_from_a_breakpoint_it_goes_on(bench: Bench, features: DebugFeatures) -> None:
    bench.attach(features)
    bench.trap()
    bench.rig.vcpus[0].script_execute(CODE, CODE + 1)
    bench.go()

    bench.do(lambda: bench.debugger.code.clear_trap(CODE))
    assert bench.go(steps={0}, only=frozenset({0})) == Stop(0, "step", CODE + 1)
    bench.trap()
    bench.do(bench.debugger.go)

    assert bench.rig.vcpus[0].wait_idle()


def test_a_step_of_one_leaves_the_others_alone(make_rig: Any, wait: Any) -> None:
    bench = Bench(make_rig(cpus=4).start(), wait)
    bench.attach()
    for vcpu in bench.rig.vcpus:
        vcpu.script_execute(CODE, CODE + 1)

    assert bench.go(steps={2}, only=frozenset({2})) == Stop(2, "step", CODE + 1)

    assert [vcpu.rip == CODE + 1 for vcpu in bench.rig.vcpus] == [False, False, True, False]
    assert bench.rig.names() == ["STOP"]  # nobody needs to know of every step


def test_a_step_leaves_interrupts_out(bench: Bench) -> None:
    bench.attach()
    bench.rig.vcpus[0].script_execute(CODE)

    bench.go(steps={0}, only=frozenset({0}))

    assert bench.rig.vcpus[0].debug.flags & GuestDebug.BLOCKIRQ


def test_a_step_does_not_show_in_flags_that_the_guest_stores(bench: Bench) -> None:
    """pushf would store the trap flag by which the processor steps."""
    bench.attach()
    vcpu, stack = bench.rig.vcpus[0], KERNEL + 0x20_0000
    bench.memory.write(GPA, b"\x9c")
    vcpu.debug.values |= {"rsp": stack, "rip": CODE}
    vcpu.script_execute(CODE)
    push = vcpu.debug.after

    def pushf(address: int) -> int | None:
        vcpu.debug.values["rsp"] = stack - 8
        bench.memory.write(stack - 8 - KERNEL, (0x346).to_bytes(8, "little"))
        found: int | None = push(address)
        return found

    vcpu.debug.after = pushf

    bench.go(steps={0}, only=frozenset({0}))

    assert bench.memory.read(stack - 8 - KERNEL, 8) == (0x246).to_bytes(8, "little")


def test_breakpoints_do_not_show_in_memory(bench: Bench, features: DebugFeatures) -> None:
    bench.memory.write(GPA, bytes(range(16)))
    bench.attach(features)
    bench.trap(CODE + 4)

    assert bench.memory.read(GPA + 4, 1) in (INT3, OUT_TRAP[:1])
    assert bench.debugger.code.read(0, CODE, 16) == bytes(range(16))


def test_what_is_written_over_a_breakpoint_is_there_when_it_is_gone(
    bench: Bench, features: DebugFeatures
) -> None:
    bench.attach(features)
    bench.trap(CODE + 4)

    bench.debugger.code.write(0, CODE, bytes(range(16)))

    assert bench.memory.read(GPA + 4, 1) in (INT3, OUT_TRAP[:1])
    bench.do(lambda: bench.debugger.code.clear_trap(CODE + 4))
    assert bench.memory.read(GPA, 16) == bytes(range(16))


def test_no_breakpoint_survives_detaching(bench: Bench, features: DebugFeatures) -> None:
    before = bench.memory.read(GPA, 64)
    bench.attach(features)
    bench.trap()
    bench.trap(CODE + 8)
    if features.hardware:
        bench.debugger.add_watch(Watch(CODE))

    bench.do(lambda: bench.debugger.detach(run=True))

    assert bench.memory.read(GPA, 64) == before
    assert all(vcpu.debug.flags == GuestDebug(0) for vcpu in bench.rig.vcpus)
    assert bench.rig.machine.board.pio.find(TRAP_PORT) is None


def test_a_debugger_lost_while_the_guest_runs_leaves_nothing_either(
    bench: Bench, features: DebugFeatures
) -> None:
    bench.attach(features)
    bench.trap()
    bench.do(bench.debugger.go)

    bench.do(lambda: bench.debugger.detach(run=False))

    bench.wait(lambda: not bench.debugger.attached)
    assert bench.memory.read(GPA, 2) == bytes(2)
    assert bench.rig.machine.state == "running"


def test_what_the_guest_put_over_a_breakpoint_stays(bench: Bench) -> None:
    bench.attach()
    bench.trap()
    bench.memory.write(GPA, b"\x42")

    bench.do(lambda: bench.debugger.detach(run=True))

    assert bench.memory.read(GPA, 1) == b"\x42"


def test_a_watched_instruction_and_the_slot_it_is_in(bench: Bench) -> None:
    bench.attach()
    bench.debugger.add_watch(Watch(CODE + 1, 8, "write"))
    bench.debugger.add_watch(Watch(CODE))
    bench.rig.vcpus[0].script_execute(CODE)

    assert bench.go() == Stop(0, "execute", CODE)


def test_a_processor_watches_four_addresses(bench: Bench) -> None:
    bench.attach()
    for number in range(4):
        bench.debugger.add_watch(Watch(CODE + number))

    with pytest.raises(HostError, match="4 addresses"):
        bench.debugger.add_watch(Watch(CODE + 4))
    bench.debugger.remove_watch(Watch(CODE + 2))
    bench.debugger.add_watch(Watch(CODE + 4))


def test_interrupting_stops(bench: Bench) -> None:
    bench.attach()
    bench.do(bench.debugger.go)

    bench.do(bench.debugger.interrupt)

    assert bench.stop().cause == "interrupt"


def test_a_breakpoint_hit_as_the_user_interrupts_is_what_is_told(make_rig: Any, wait: Any) -> None:
    bench = Bench(make_rig().start(), wait)
    bench.attach()
    bench.trap()
    bench.rig.vcpus[0].script_execute(CODE)

    bench.do(lambda: (bench.debugger.go(), wait_for_exit(bench), bench.debugger.interrupt()))

    assert bench.stop().cause in ("trap", "interrupt")
    assert bench.stops == []


def wait_for_exit(bench: Bench) -> None:
    """Until the vCPU waits for the lock, which the caller has."""
    bench.wait(lambda: not bench.rig.inside)


def test_the_guests_own_int3_is_the_guests(bench: Bench) -> None:
    bench.memory.write(GPA + 32, INT3)
    bench.attach()
    bench.trap()
    vcpu = bench.rig.vcpus[0]
    vcpu.script_execute(CODE + 32)

    bench.do(bench.debugger.go)

    bench.wait(lambda: vcpu.debug.injected)
    assert vcpu.debug.injected[0] == GuestDebug.INJECT_BP
    assert bench.stops == []


def test_a_guest_that_writes_to_the_trap_port_runs_on(bench: Bench) -> None:
    bench.attach(POOR)
    bench.do(bench.debugger.go)

    bench.rig.vcpus[0].script_out(TRAP_PORT, b"x")
    bench.rig.vcpus[0].script_out(SERIAL_PORT, b"y")

    assert bench.rig.vcpus[0].wait_idle()
    assert bytes(bench.rig.output) == b"y"
    assert bench.stops == []


def test_user_code_has_no_breakpoints_where_int3_is_not_reported(bench: Bench) -> None:
    bench.attach(POOR)

    with pytest.raises(HostError, match="kernel code only"):
        bench.trap(0x40_0000)


def test_what_kvm_refuses_leaves_it_stopped_and_in_hand(bench: Bench) -> None:
    bench.attach()
    debug = bench.rig.vcpus[0].debug
    control = debug.control

    def refuse(*_: object) -> None:
        raise HostError("cannot debug the guest")

    debug.control = refuse
    with pytest.raises(HostError, match="cannot debug"):
        bench.do(lambda: bench.debugger.go(steps={0}))

    assert bench.debugger.stopped
    debug.control = control
    bench.do(lambda: bench.debugger.detach(run=True))
    assert bench.rig.machine.state == "running"


def test_memory_that_is_not_there(bench: Bench) -> None:
    bench.attach()

    with pytest.raises(GuestAddressError):
        bench.debugger.code.read(0, 0x7FFF_0000_0000, 8)
    with pytest.raises(GuestAddressError):
        bench.debugger.code.write(0, KERNEL - 4, bytes(8))
    with pytest.raises(GuestAddressError):
        bench.trap(0xFFFF_8000_0000_0000)


def test_reading_ends_where_memory_does(bench: Bench) -> None:
    bench.attach()
    end = KERNEL + 64 * 1024 * 1024

    assert bench.debugger.code.read(0, end - 4, 64) == bytes(4)


def test_the_guest_forgives_the_time_that_it_was_stopped(bench: Bench) -> None:
    bench.attach()

    bench.do(bench.debugger.go)

    assert all(vcpu.debug.pauses == 1 for vcpu in bench.rig.vcpus)


def test_a_reset_while_the_debugger_has_it_stopped_stays_stopped(bench: Bench) -> None:
    bench.attach()

    bench.rig.locked(bench.rig.machine.request_reset)

    bench.rig.wait_for_event("RESET")
    assert bench.rig.machine.state == "debug"
    bench.rig.vcpus[0].script_out(SERIAL_PORT, b"x")
    assert not bench.rig.vcpus[0].wait_idle(0.03)
    bench.do(bench.debugger.go)
    assert bench.rig.vcpus[0].wait_idle()


def test_the_guest_resets_under_a_debugger_and_runs_on(bench: Bench) -> None:
    bench.attach()
    bench.trap()
    bench.do(bench.debugger.go)

    bench.rig.vcpus[0].script_out(RESET_PORT, bytes([RESET_VALUE]))

    bench.rig.wait_for_event("RESET")
    bench.do(lambda: bench.debugger.detach(run=True))
    bench.wait(lambda: not bench.debugger.attached)
    assert bench.memory.read(GPA, 1) == bytes(1)
