"""The reset of a whole machine: everything as at power-on, while its vCPUs are held."""

from __future__ import annotations

from collections.abc import Callable

from minivmm.vcpu import blame


class Restart:
    """One machine's. All methods want the lock held.

    `halt` parks all vCPUs, then calls what it is given on the loop, where `power_on` makes
    everything new; `done` follows with whether the guest asked, or `fail` with what went wrong.
    """

    def __init__(
        self,
        halt: Callable[[Callable[[], None]], None],
        power_on: Callable[[], None],
        done: Callable[[bool], None],
        fail: Callable[[str], None],
    ) -> None:
        self.pending = False
        """Asked for, and not done: no vCPU may run."""
        self._halt = halt
        self._power_on = power_on
        self._done = done
        self._fail = fail

    def request(self, *, guest: bool) -> None:
        """Reset the machine. Requests that come before it is done are the same reset."""
        if not self.pending:
            self.pending = True
            self._halt(lambda: self._perform(guest))

    def _perform(self, guest: bool) -> None:
        try:
            self._power_on()
        except Exception as error:  # whatever it is: nobody else would ever wake the vCPUs
            self._fail(f"the machine cannot be reset: {blame(error)}")
            return
        self.pending = False
        self._done(guest)
