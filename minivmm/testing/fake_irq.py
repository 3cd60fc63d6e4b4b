"""Interrupts and doorbells without KVM: they record what a device did, and tests ring bells."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress


class FakeLine:
    """An interrupt pin; `levels` has every level that was set, in order."""

    def __init__(self) -> None:
        self.levels: list[bool] = []

    @property
    def level(self) -> bool:
        """The level now; a pin starts released."""
        return bool(self.levels) and self.levels[-1]

    def set(self, level: bool) -> None:
        """irq.IrqLine."""
        self.levels.append(level)


class FakeMsiRoute:
    """One message-signalled interrupt; signals end up in the controller's `messages`."""

    def __init__(self, messages: list[tuple[int, int]]) -> None:
        self.routes: list[tuple[int, int]] = []
        """Every (address, data) that was routed, in order."""
        self._messages = messages

    def route(self, address: int, data: int) -> None:
        """irq.MsiRoute."""
        self.routes.append((address, data))

    def signal(self) -> None:
        """irq.MsiRoute. Raises AssertionError if nothing was routed."""
        assert self.routes, "signalled before it was routed"
        self._messages.append(self.routes[-1])


class FakeInterruptController:
    """irq.InterruptController: `messages` has every MSI sent, as (address, data), in order."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        self.lines: dict[int, FakeLine] = {}
        self.routes: list[FakeMsiRoute] = []

    def line(self, gsi: int) -> FakeLine:
        """The pin of `gsi`, the same object each time."""
        return self.lines.setdefault(gsi, FakeLine())

    def msi(self) -> FakeMsiRoute:
        """A new message-signalled interrupt."""
        route = FakeMsiRoute(self.messages)
        self.routes.append(route)
        return route

    def take(self) -> list[int]:
        """The data words of all messages since the last call."""
        words = [data for _, data in self.messages]
        self.messages.clear()
        return words


class FakeEventRoute(FakeMsiRoute):
    """One that others signal by `fd`, which must be looked at by FakeEventInterrupts.take()."""

    def __init__(self, messages: list[tuple[int, int]]) -> None:
        super().__init__(messages)
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.muted = True

    def route(self, address: int, data: int) -> None:
        """irq.EventRoute."""
        super().route(address, data)
        self.muted = False

    def mute(self) -> None:
        """irq.EventRoute: what came before is sent, as KVM would have done."""
        self.flush()
        self.muted = True

    @property
    def due(self) -> bool:
        """irq.EventRoute."""
        return self.muted and bool(select.select([self.fd], [], [], 0)[0])

    def flush(self) -> None:
        """Send what was signalled, unless muted."""
        if not self.muted:
            with suppress(BlockingIOError):
                os.eventfd_read(self.fd)
                self.signal()


class FakeWire:
    """irq.IrqWire."""

    def __init__(self, gsi: int) -> None:
        self.gsi = gsi
        self.trigger = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.served = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.connected = False

    def connect(self, connected: bool) -> None:
        """irq.IrqWire."""
        self.connected = connected


class FakeEventInterrupts:
    """irq.EventInterrupts."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        self.routes: list[FakeEventRoute] = []
        self.wires: list[FakeWire] = []

    def msi(self) -> FakeEventRoute:
        """A new message."""
        self.routes.append(FakeEventRoute(self.messages))
        return self.routes[-1]

    def wire(self, gsi: int) -> FakeWire:
        """A new share in a pin."""
        self.wires.append(FakeWire(gsi))
        return self.wires[-1]

    def take(self) -> list[int]:
        """The data words of all messages since the last call."""
        for route in self.routes:
            route.flush()
        words = [data for _, data in self.messages]
        self.messages.clear()
        return words

    def close(self) -> None:
        """Close all eventfds."""
        for route in self.routes:
            os.close(route.fd)
        for wire in self.wires:
            os.close(wire.trigger)
            os.close(wire.served)


class FakeDoorbells:
    """bus.Doorbells: `ring` stands for a guest write that KVM turns into an eventfd."""

    def __init__(self) -> None:
        self.bound: dict[tuple[int, int], Callable[[], None]] = {}
        """(gpa, length in bytes) -> callback."""

    def bind(self, gpa: int, length: int, ring: Callable[[], None]) -> Callable[[], None]:
        """Raises AssertionError if that doorbell is bound already, as KVM would refuse it."""
        assert (gpa, length) not in self.bound, f"doorbell {gpa:#x} is bound twice"
        self.bound[gpa, length] = ring

        def unbind() -> None:
            del self.bound[gpa, length]

        return unbind

    def ring(self, gpa: int, length: int) -> bool:
        """A guest write; False if nobody is bound there (it would be an MMIO exit)."""
        callback = self.bound.get((gpa, length))
        if callback is None:
            return False
        callback()
        return True


class FakeDefer:
    """defer(fn) that runs nothing until a test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def __call__(self, fn: Callable[[], None]) -> None:
        """Keep `fn` for later."""
        self.waiting.append(fn)

    def run(self, rounds: int = 1000) -> int:
        """Run what waits, and what that defers in turn; returns how many ran, at most `rounds`."""
        count = 0
        while self.waiting and count < rounds:
            self.waiting.pop(0)()
            count += 1
        return count
