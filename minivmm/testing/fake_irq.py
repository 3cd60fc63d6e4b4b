"""Interrupts and doorbells without KVM: they record what a device did, and tests ring bells."""

from __future__ import annotations

from collections.abc import Callable


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
