"""Which parts of a machine have a state that is saved, in which order, and the machine's own.

What the parts save is theirs; files, streams and checks of the whole are minivmm.snapshot's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from minivmm.board import Board
from minivmm.console_watch import ConsoleWatch
from minivmm.kvm.hypervisor import HypervisorVcpu, HypervisorVm
from minivmm.outcome import Outcome
from minivmm.restart import Restart
from minivmm.saved import Form, Saved, build, parse, require
from minivmm.stillness import STATES

_FORM = Form("minivmm.machine_form", "MACHINE")


class Governed(Protocol):
    """The machine, as far as it concerns us."""

    state: str
    outcome: Outcome | None


class RunState:
    """Whether a machine runs, is about to be reset, or panicked: what its devices do not know."""

    def __init__(self, machine: Governed, watch: ConsoleWatch, restart: Restart) -> None:
        self._machine = machine
        self._watch = watch
        self._restart = restart
        self._loaded: str | None = None
        self._resetting = False

    @property
    def loaded(self) -> bool:
        """Does the machine go on from a saved state?"""
        return self._loaded is not None

    def save_state(self) -> bytes:
        """The machine is in one of the states in which it has vCPUs to go on with."""
        panic = (self._watch.panic or "").encode("ascii", "replace")
        return build(
            _FORM,
            state=STATES.index(self._machine.state),
            resetting=self._restart.pending,
            panic=panic,
        )

    def load_state(self, data: bytes) -> None:
        """It counts from the start on."""
        saved = parse("machine", _FORM, data)
        known = saved.state < len(STATES)
        require(known, "machine", "state", saved.state, "0 prelaunch, 1 running, 2 paused")
        panic = saved.panic.decode("ascii", "replace")
        require("\n" not in panic, "machine", "panic", panic, "it is a line")
        self._loaded = STATES[saved.state]
        self._resetting = saved.resetting
        self._watch.panic = panic or None

    def begin(self, frozen: bool) -> str:
        """The machine's state once it is started; what the guest had begun is asked for again.

        A `frozen` machine waits for `resume`; so does one that was saved as it waited.
        """
        if self._resetting:
            self._restart.request(guest=True)
        if self._loaded is None:
            return "prelaunch" if frozen else "running"
        if self._loaded == "running" and frozen:
            return "paused"
        return self._loaded


def parts_of(
    run_state: RunState, board: Board, vcpus: Sequence[HypervisorVcpu], vm: HypervisorVm
) -> dict[str, Saved]:
    """All parts by the names of their sections, in the order to load them.

    Devices come before the functions whose rings may lie in their memory; all of guest memory is
    there when the CPUs are told where in it their clocks are; pins are driven before the interrupt
    controllers take over what they had made of it; and those may interrupt a CPU, so they are last.
    """
    parts: dict[str, Saved] = {"machine": run_state, "serial": board.serial, "power": board.power}
    for one in board.functions:
        parts[f"device.{one.device.identifier}"] = one.device
    parts["pci"] = board.pci
    for function in board.pci.functions:
        parts[f"function.{function.slot:02x}"] = function
    for vcpu in vcpus:
        parts[f"cpu{vcpu.index}"] = vcpu
    parts["chips"] = vm
    return parts
