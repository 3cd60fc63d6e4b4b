"""The blocking face of a machine: Vm, and what hangs on it. The asyncio face is aio.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from minivmm.api import resizing, saving, work
from minivmm.api.engine import Engine
from minivmm.api.events import TraceView
from minivmm.api.machine_model import MachineModel
from minivmm.api.model import DeviceModel
from minivmm.api.plan import Size
from minivmm.api.resizing import ResizeResult
from minivmm.api.saving import Saved
from minivmm.api.work import Completed
from minivmm.closing import Closing
from minivmm.control.tree import walk
from minivmm.devices.virtio_mem.verdict import Diagnosis
from minivmm.outcome import Outcome

T = TypeVar("T")
D = TypeVar("D")

PATIENCE = 10.0
"""Seconds that a guest may take to tell what it knows for a diagnosis."""


class Resize:
    """A resize that was asked for."""

    def __init__(self, engine: Engine, asked: resizing.Request) -> None:
        self.asked = asked
        self._engine = engine

    @property
    def requested(self) -> int:
        """The size that was asked for, in bytes."""
        return self.asked.target

    def wait(self, timeout: float = 60.0) -> ResizeResult:
        """How it came out after `timeout` seconds at most, or earlier if no waiting helps.

        It does not raise for a guest that does not do it: look at the state, or `check()` it.
        Raises GuestFailure if the machine ends meanwhile.
        """
        return self._engine.wait(resizing.follow(self._engine, self.asked, timeout))


class MemoryDevice(DeviceModel):
    """A virtio-mem device."""

    def resize(self, size: Size) -> Resize:
        """Ask for `size`: bytes, "1G", "+256M" or "-256M"; `wait` tells what came of it.

        Raises UsageError for what is no size; one that does not suit the device is "refused".
        """
        return Resize(
            self._engine, self._engine.wait(resizing.request(self._engine, self.id, size))
        )

    def kick(self) -> bool:
        """Have the driver look again instead of waiting; False if there is none to hear it."""
        rows = self._engine.wait(work.query(self._engine, "x-minivmm-kick", {"id": self.id}))
        return bool(rows[0]["sent"])

    def why(self, patience: float = PATIENCE) -> Diagnosis:
        """Why the guest has, or has not, what was asked for (docs/diagnosis.md).

        The guest gets `patience` seconds to tell what it knows; 0: judge from outside.
        """
        return self._engine.wait(work.why(self._engine, self.id, patience))


class Console:
    """What the guest prints, and its keyboard."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def text(self) -> str:
        """All that was printed, or the latest million characters, without carriage returns."""
        return self._engine.log.text

    def expect(self, pattern: str | re.Pattern[str], timeout: float = 30.0) -> re.Match[str]:
        """Wait until the guest has printed what the regular expression `pattern` finds.

        Each search begins where the one before ended. Raises WaitTimeout with what came instead,
        GuestFailure if the machine ends first.
        """
        engine = self._engine
        return engine.wait(engine.while_it_lives(engine.log.expect(pattern, timeout)))

    def send(self, keys: str | bytes, timeout: float = 30.0) -> None:
        """Type `keys`. Raises GuestFailure if the guest takes none for `timeout` seconds."""
        engine = self._engine
        data = keys.encode() if isinstance(keys, str) else keys
        engine.wait(engine.while_it_lives(engine.log.type(data, timeout)))


class Devices(Mapping[str, D], Generic[D]):
    """Devices by id; a wrong one raises a KeyError that names the right ones."""

    def __init__(self, machine: str, devices: Mapping[str, D]) -> None:
        self._machine = machine
        self._devices = devices

    def __getitem__(self, identifier: str) -> D:
        if identifier not in self._devices:
            known = ", ".join(self._devices) or "none: boot it with devices=[VirtioMem(size='4G')]"
            raise KeyError(f"{self._machine} has no memory device {identifier!r}; it has {known}")
        return self._devices[identifier]

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)


class Vm(MachineModel, Closing):
    """A running machine; at the end of its `with` it is ended, and all of it freed.

    Everything may be used from any thread but the machine's own, on which hooks of devices run.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.console = Console(engine)
        self.trace = TraceView(engine)
        devices = engine.machine.memory_devices
        self.mem: Mapping[str, MemoryDevice] = Devices(
            self.name, {key: MemoryDevice(engine, device) for key, device in devices.items()}
        )
        """Its virtio-mem devices by id."""

    def call(self, fn: Callable[[], T]) -> T:
        """What `fn` returns, called on the machine's event loop with the lock held.

        It must not wait for anything that the machine does.
        """
        return self.engine.call(fn)

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = False,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float = 60.0,
    ) -> Completed:
        """Run `command` in the guest: a text by its shell, words as they are. As root, in /.

        Raises CommandFailed for a status other than 0 if `check`, WaitTimeout after `timeout`
        seconds (it is killed then), GuestFailure if the guest ends or resets before it does.
        """
        ran = work.run(self.engine, command, input=input, env=env, cwd=cwd, timeout=timeout)
        done = self.engine.wait(ran)
        return done.check() if check else done

    def wait_ready(self, timeout: float = 300.0) -> None:
        """Return once the guest runs commands. Raises WaitTimeout, GuestFailure if it ends."""
        self.engine.wait(work.ready(self.engine, timeout))

    def wait_ended(self, timeout: float = 60.0) -> Outcome:
        """How the machine ended, once it has. Raises WaitTimeout."""
        return self.engine.wait(work.ended(self.engine, timeout))

    def reboot(self, timeout: float = 300.0) -> None:
        """Push the reset button, and wait until the guest runs commands again.

        Raises WaitTimeout, GuestFailure if it ends instead.
        """
        self.engine.wait(work.reboot(self.engine, timeout))

    def snapshot(
        self,
        directory: str | Path,
        *,
        base: str | Path | None = None,
        track: bool = False,
        timeout: float = 300.0,
    ) -> Saved:
        """Save it into `directory`, which must not exist; it runs on (docs/snapshot.md).

        minivmm.boot(restore=directory) goes on from there. `track` and `base` are for increments.
        Raises Refused, UsageError, HostError, or WaitTimeout, and then there is none.
        """
        return self.engine.wait(saving.snapshot(self.engine, directory, base, track, timeout))

    def inspect(self, path: str = "") -> Any:
        """The live tree of everything, or a part such as "board.devices.vmem0". Raises Refused."""
        return self.engine.call(lambda: walk(self.engine.machine.inspect(), path))

    def qmp(self, command: str, **arguments: Any) -> Any:
        """What a QMP command returns; '_' in names of arguments is '-'. Raises Refused."""
        return self.engine.wait(work.query(self.engine, command, arguments))

    def close(self) -> None:
        """End it at once, whatever it does, and free all of it. Harmless when repeated."""
        self.engine.close()

    def __repr__(self) -> str:
        return f"<Vm {self.name}: {self.state}>"
