"""Machines of the Python interface without KVM: a fake one, and guests that this host plays.

    with fake_kvm():
        with minivmm.boot(devices=[minivmm.VirtioMem(size="1G")]) as vm:
            guest_of(vm).plug("vmem0", 256 * MIB)

Commands "in the guest" are processes of this host (fake_agent.py); nothing runs on the vCPUs but
what a test scripts. Memory is plugged when a test says so, by real requests.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from minivmm import board
from minivmm.accel import Accel
from minivmm.api import Vm, booting
from minivmm.api.engine import Engine
from minivmm.guest_image import GuestImage
from minivmm.spec.platform import SERIAL_PORT
from minivmm.testing.console_guest import ConsoleGuest
from minivmm.testing.fake_agent import FakeAgent
from minivmm.testing.fake_kvm import FakeSystem
from minivmm.testing.mem_driver import MemDriver
from minivmm.virtio.errands import Inline


class FakeGuest:
    """The guest of a machine on a fake KVM; it boots at once, and again after a reset."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._agent: FakeAgent | None = None
        self._again: threading.Thread | None = None
        with engine.loop.lock:
            engine.machine.on_event.append(self._on_event)
            for device in engine.machine.memory_devices.values():
                device.use(Inline())  # its requests come on no ring that it could look at later

    def boot(self) -> None:
        """Set up the console, and have the agent say that it is ready."""
        device, lock = self._engine.machine.board.console, self._engine.loop.lock
        with lock:
            device.reset()  # as drivers do; of a restored machine it knows another one
        console = ConsoleGuest(device, lock)
        console.probe()
        self._agent = FakeAgent(console)
        self._agent.start()

    def stop(self) -> None:
        """End the agent, and what it runs, once it is there."""
        if self._again is not None:
            self._again.join(10)
        self._end_agent()

    def print(self, text: str) -> None:
        """Print on the serial console."""
        vms: Any = self._engine._system
        vms.vms[0].vcpus[0].script_out(SERIAL_PORT, text.encode())

    def plug(self, identifier: str, size: int) -> None:
        """Plug or unplug until there are `size` bytes, from the start of the region."""
        device = self._engine.machine.memory_devices[identifier]
        driver = MemDriver(device)
        with self._engine.loop.lock:
            have, want = (n // device.block_size for n in (device.plugged_size, size))
            if want > have:
                driver.plug(have, want - have)
            elif have > want:
                driver.unplug(want, have - want)

    def _on_event(self, name: str, data: dict[str, object]) -> None:
        if name == "RESET":
            self._again = threading.Thread(target=self._boot_again, daemon=True)
            self._again.start()

    def _boot_again(self) -> None:
        self._end_agent()
        self.boot()

    def _end_agent(self) -> None:
        if self._agent is not None:
            self._agent.stop()


class FakeEngine(Engine):
    """An engine whose guest is a FakeGuest."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.guest = FakeGuest(self)
        self.guest.boot()

    def close(self) -> None:
        """As Engine does."""
        if hasattr(self, "guest"):
            self.guest.stop()
        super().close()


def guest_of(vm: Vm) -> FakeGuest:
    """The guest of a machine that was booted inside fake_kvm()."""
    assert isinstance(vm.engine, FakeEngine)
    return vm.engine.guest


@contextlib.contextmanager
def fake_kvm(*, boots: bool = True) -> Iterator[list[FakeSystem]]:
    """Have minivmm.boot use fake KVMs, as listed; without `boots`, guests are never ready."""
    systems: list[FakeSystem] = []

    def open_system() -> FakeSystem:
        systems.append(FakeSystem())
        return systems[-1]

    image = GuestImage(b"", "fake", "", None)
    with (
        patch.object(booting, "probe", lambda: Accel(True, "a fake")),
        patch.object(booting, "open_system", open_system),
        patch.object(booting, "resolve", lambda spec, *, shell: image),
        patch.object(booting, "Engine", FakeEngine if boots else Engine),
        patch.object(board, "load_kernel", lambda *_, **__: None),
    ):
        yield systems
