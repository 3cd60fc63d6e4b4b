"""Errands for a host that takes its time: a test says when work is done."""

from __future__ import annotations

from collections.abc import Callable

from minivmm.virtio.errands import Inline


class SlowHost(Inline):
    """Work begins when somebody waits for it, or at `finish`; one job at a time."""

    error: BaseException | None = None

    def __init__(self) -> None:
        self.over = True
        self._work: Callable[[], None] = lambda: None
        self._done: Callable[[], None] = lambda: None

    def aside(self, work: Callable[[], None], done: Callable[[], None]) -> SlowHost:
        """Errands: the job is this object itself."""
        assert self.over, "a second job while one is at work"
        self._work, self._done, self.over = work, done, False
        return self

    def wait(self) -> None:
        """Job: do the work now."""
        if not self.over:
            self._work()
            self.over = True

    def finish(self) -> None:
        """The work is over, and the machine says so; also to those that waited for it before."""
        self.wait()
        self._done()
