"""Errands of devices: long system calls in threads of their own, and reminders on the loop.

The threads touch host memory only, never guest state, and need no lock; what follows from their
work is done on the loop, with the lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from minivmm.loop import EventLoop


class ThreadJob:
    """Work in a thread of its own, begun at once."""

    def __init__(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._done = done
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main, name="errand", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """The work is done, or has failed."""
        return self._over.is_set()

    def wait(self) -> None:
        """Return once the work is over."""
        self._over.wait()

    def join(self) -> None:
        """Return once the thread is gone, too."""
        self._thread.join()

    def _main(self) -> None:
        try:
            self._work()
        except BaseException as error:  # whoever asked for the work judges it
            self.error = error
        self._over.set()
        self._done()


class Background:
    """The errands of one machine's devices. `soon` runs a function on the loop, lock held."""

    def __init__(self, loop: EventLoop, soon: Callable[[Callable[[], None]], None]) -> None:
        self._loop = loop
        self._soon = soon
        self._jobs: set[ThreadJob] = set()
        self._waiting: list[Callable[[], None]] = []

    def aside(self, work: Callable[[], None], done: Callable[[], None]) -> ThreadJob:
        """Do `work` in a thread; `done` follows on the loop."""
        job = ThreadJob(work, lambda: self._soon(lambda: self._over(job, done)))
        self._jobs.add(job)
        return job

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        """Call `look` on the loop in `seconds`, unless the machine is closed by then."""
        self._soon(lambda: self._remind(seconds, look))

    def when_idle(self, then: Callable[[], None]) -> None:
        """Call `then`, lock held, once no errand is under way: now, or when the last one is over.

        What follows from an errand has been done by then, and may have begun another.
        """
        if self._jobs:
            self._waiting.append(then)
        else:
            then()

    def close(self) -> None:
        """Wait for all threads: the memory they work on is about to go."""
        for job in tuple(self._jobs):
            job.join()
        self._jobs.clear()

    def _over(self, job: ThreadJob, done: Callable[[], None]) -> None:
        self._jobs.discard(job)
        done()
        if not self._jobs:
            waiting, self._waiting = self._waiting, []
            for then in waiting:
                then()

    def _remind(self, seconds: float, look: Callable[[], None]) -> None:
        self._loop.call_later(seconds, lambda: self._soon(look))
