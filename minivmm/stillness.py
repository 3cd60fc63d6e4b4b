"""A machine stands still: no vCPU runs, no request is under way, so that its state can be taken.

    vCPUs park -> queues are held -> what is aside of the lock ends -> `then` -> ... -> release

Whether the machine is running or paused is not touched by it, and afterwards it is as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from minivmm.background import Background
from minivmm.board import Board
from minivmm.debugger import Debugger
from minivmm.errors import Refused
from minivmm.kvm.hypervisor import HypervisorVcpu

Then = Callable[[], None]

STATES = ("prelaunch", "running", "paused")
"""Of machines that can be made to stand still."""


class Moving(Protocol):
    """The machine, as far as it concerns us."""

    state: str
    board: Board
    debugger: Debugger

    @property
    def vcpus(self) -> Sequence[HypervisorVcpu]:
        """Its vCPUs."""


class Stillness:
    """One machine's. All methods want the lock held.

    `park` parks all vCPUs, then calls what it is given on the loop; `go_on` lets those run again
    that may.
    """

    def __init__(
        self,
        machine: Moving,
        background: Background,
        park: Callable[[Then], None],
        go_on: Callable[[], None],
    ) -> None:
        self._then: Then | None = None
        self._machine = machine
        self._background = background
        self._park = park
        self._go_on = go_on
        self._postponed: list[Then] = []

    @property
    def wanted(self) -> bool:
        """May no vCPU run, for our sake?"""
        return self._then is not None

    def begin(self, then: Then) -> None:
        """Call `then` once the machine stands still. Raises Refused if it cannot be made to."""
        machine = self._machine
        if self.wanted:
            raise Refused("the VM is being saved or migrated already: wait for the end of it")
        if machine.debugger.attached:
            raise Refused("a debugger is attached, and may have changed guest code: detach it")
        if machine.state not in STATES:
            raise Refused(f"the VM is {machine.state}, and cannot be saved so")
        self._then = then
        self._park(lambda: self._parked(then))

    def halt(self, then: Then) -> None:
        """Park all vCPUs for another purpose, then call `then`; once the stillness is over."""
        if self.wanted:
            self._postponed.append(then)
        else:
            self._park(then)

    def release(self) -> None:
        """Let everything run on as before. Harmless if nothing stands still."""
        if not self.wanted:
            return
        self._then = None
        self.take_up()
        postponed, self._postponed = self._postponed, []
        for then in postponed:
            self._park(then)
        self._go_on()

    def take_up(self) -> None:
        """Look at all queues, which were held, and tell the guest's watchdogs of the time.

        At the end of a stillness, or when a machine starts that was loaded.
        """
        for function in self._machine.board.functions:
            function.transport.hold(False)
        for vcpu in self._machine.vcpus:
            vcpu.debug.tell_of_pause()

    def _parked(self, then: Then) -> None:
        """Unless nobody waits for it any more."""
        if self._then is then:
            for function in self._machine.board.functions:
                function.transport.hold(True)
            self._background.when_idle(lambda: then() if self._then is then else None)
