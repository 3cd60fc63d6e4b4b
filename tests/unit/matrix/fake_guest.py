"""A guest for tests of the matrix: it plugs at once, up to where it is told to stop."""

from __future__ import annotations

from collections.abc import Callable

from minivmm.matrix.guest import BLOCK, BootCost, Guest, HostUse, Ran, Setup


class FakeGuest(Guest):
    """`stuck_at` bytes cannot be unplugged once it had more than a block.

    `answer` gives what a command prints.
    """

    vmm = "fake"

    def __init__(self, setup: Setup, *, stuck_at: int = 0, seconds: float = 1.0) -> None:
        self.setup = setup
        self.boot = BootCost(seconds, 100)
        self.stuck_at = stuck_at
        self.commands: list[str] = []
        self.answer: Callable[[str], Ran] = lambda command: Ran(0, "")
        self.use = HostUse(10, 3, 1 << 20, 0)
        self.closed = False
        self._requested = self._plugged = 0
        self._used = False

    def run(self, command: str, timeout: float = 1.0) -> Ran:
        """What `answer` says."""
        self.commands.append(command)
        return self.answer(command)

    def request(self, size: int) -> None:
        """Done at once."""
        self._requested = size
        self._used |= size > BLOCK
        stays = self.stuck_at if self._used else 0
        self._plugged = size if size >= self._plugged else max(size, stays)

    @property
    def requested(self) -> int:
        """In bytes."""
        return self._requested

    @property
    def plugged(self) -> int:
        """In bytes."""
        return self._plugged

    def qmp(self, command: str, **arguments: object) -> object:
        """Nothing."""
        return {}

    def reset(self) -> None:
        """As one with nothing requested."""
        self._plugged = 0

    def wait_ready(self, timeout: float = 1.0) -> None:
        """It is."""

    def host_use(self) -> HostUse:
        """What a test has set."""
        return self.use

    def console(self) -> str:
        """A line."""
        return "the end of the console"

    def close(self) -> None:
        """Remember it."""
        self.closed = True
