"""What a device asks of whoever runs it: work aside of the lock, and a look at things later.

Threads and loops are the machine's; the device sees this contract only. Inline is the contract kept
without any threads: for tests, and for devices that no machine runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Job(Protocol):
    """Work that was begun."""

    @property
    def over(self) -> bool:
        """The work is done or has failed; `error` says which."""

    @property
    def error(self) -> BaseException | None:
        """What the work raised."""

    def wait(self) -> None:
        """Return once it is over. Called with the lock held: the work never needs the lock."""


class Errands(Protocol):
    """Work that may take long, and reminders."""

    def aside(self, work: Callable[[], None], done: Callable[[], None]) -> Job:
        """Do `work` without the lock; call `done` with the lock held soon after it is over."""

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        """Call `look` with the lock held, in `seconds`; never again once the machine is gone."""


class Done:
    """A job that is over already."""

    over = True

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def wait(self) -> None:
        """Nothing to wait for."""


class Inline:
    """Work is done at once by the caller; nobody looks at anything later."""

    def aside(self, work: Callable[[], None], done: Callable[[], None]) -> Job:
        """Do `work` now; `done` is not needed."""
        try:
            work()
        except Exception as error:
            return Done(error)
        return Done(None)

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        """Forget it."""
