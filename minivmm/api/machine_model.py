"""What both faces of a machine, blocking and asyncio, tell of it at once."""

from __future__ import annotations

import threading

from minivmm.api.engine import Engine
from minivmm.machine import Machine
from minivmm.machine_spec import MachineSpec
from minivmm.outcome import Outcome


class MachineModel:
    """Nothing here waits, and all of it may be used from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def name(self) -> str:
        """By which `minivmm top`, `trace` and all others find it."""
        return self.engine.machine.name

    @property
    def spec(self) -> MachineSpec:
        """What it is made of."""
        return self.engine.spec

    @property
    def state(self) -> str:
        """QEMU's RunState: running, paused, shutdown, guest-panicked, internal-error."""
        return self.engine.machine.state

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, with a reason; None while it runs."""
        return self.engine.outcome

    @property
    def kernel_release(self) -> str | None:
        """What `uname -r` says in the guest; None until it was ready."""
        return self.engine.servers.agent.kernel_release

    @property
    def machine(self) -> Machine:
        """The machine itself; touch it with the lock held only."""
        return self.engine.machine

    @property
    def lock(self) -> threading.RLock:
        """The one lock under which all devices run. The guest waits while it is held."""
        return self.engine.loop.lock
