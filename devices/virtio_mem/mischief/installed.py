"""Mischief: the rules of one device, and the wrappers by which they get in between.

Wrappers shadow three methods of that one VirtioMem (handle_queue, read_config, inspect) and its
Signals, from the first rule until `remove`. All of it wants the machine's lock held.
"""

from __future__ import annotations

from typing import Any, TypeVar

from minivmm.devices.virtio_mem import messages
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.mischief.others import ConfigRule, InterruptRule
from minivmm.devices.virtio_mem.mischief.queue import MischievousQueue
from minivmm.devices.virtio_mem.mischief.rules import RequestRule, Rule, When
from minivmm.devices.virtio_mem.mischief.turn import Turn
from minivmm.virtio.device import Signals
from minivmm.virtio.queue.queue import Chain, VirtQueue

R = TypeVar("R", bound=Rule)


class Mischief:
    """The rules of `device`, which must be attached. Use mischief_of(), which knows of others."""

    def __init__(self, device: VirtioMem) -> None:
        self.device = device
        self.rules: list[Rule] = []
        self._queue: MischievousQueue | None = None

    # -- rules -------------------------------------------------------------------------------------

    def on_request(
        self, kind: str | None = None, *, gpa: tuple[int, int] | None = None, **when: Any
    ) -> RequestRule:
        """A rule about requests: see RequestRule and When; what it does is said by `do`.

        `gpa` is a range of guest physical addresses, its end excluded. Raises UsageError.
        """
        return self._add(RequestRule(kind, gpa, When(**when), self.device.block_size))

    def on_config(self, field: str, **when: Any) -> ConfigRule:
        """A rule about reads of a field of the configuration space. Raises UsageError."""
        return self._add(ConfigRule(field, When(**when)))

    def on_config_interrupt(self, **when: Any) -> InterruptRule:
        """A rule about configuration interrupts. Raises UsageError."""
        return self._add(InterruptRule(When(**when)))

    def clear(self) -> None:
        """No more rules, and no more wrappers; answers that are delayed still come."""
        self.rules.clear()
        self.remove()

    def idle_rules(self) -> list[Rule]:
        """Rules that never acted."""
        return [rule for rule in self.rules if not rule.fired]

    # -- wrappers ----------------------------------------------------------------------------------

    @property
    def installed(self) -> bool:
        """Are the wrappers in place?"""
        return "handle_queue" in vars(self.device)

    def install(self) -> None:
        """Put the wrappers in place, if they are not."""
        if not self.installed:
            device = self.device
            vars(device).update(
                handle_queue=self.handle_queue, read_config=self.read_config, inspect=self.inspect
            )
            device.signals = MischievousSignals(device.signals, self)

    def remove(self) -> None:
        """The device is as it was."""
        if self.installed:
            for name in ("handle_queue", "read_config", "inspect"):
                del vars(self.device)[name]
            signals = self.device.signals
            assert isinstance(signals, MischievousSignals)
            self.device.signals = signals.real

    def handle_queue(self, index: int, queue: VirtQueue) -> None:
        """In place of the device's."""
        if self._queue is None or self._queue.real is not queue:
            self._queue = MischievousQueue(queue, self.device, self._decide)
        VirtioMem.handle_queue(self.device, index, self._queue)

    def read_config(self, offset: int, size: int) -> bytes:
        """In place of the device's."""
        due = [
            rule
            for rule in self.rules
            if isinstance(rule, ConfigRule) and rule.applies(offset, size) and rule.is_due()
        ]
        for rule in due:
            rule.before(self.device)
        space = bytearray(self.device.config_space())
        for rule in due:
            rule.paint(space)
        return bytes(space[offset : offset + size])

    def inspect(self) -> dict[str, object]:
        """In place of the device's; with the rules."""
        rules = [rule.inspect() for rule in self.rules]
        return VirtioMem.inspect(self.device) | {"mischief": rules}

    def times(self) -> int:
        """How often the configuration interrupt that is due is to be sent."""
        times = 1
        for rule in self.rules:
            if isinstance(rule, InterruptRule) and rule.times is not None and rule.is_due():
                times = rule.times
                self.device.signals.trace("mischief", type=rule.about, what=rule.doing)
        return times

    def _add(self, rule: R) -> R:
        self.rules.append(rule)
        self.install()
        return rule

    def _decide(self, chain: Chain) -> Turn | None:
        request = messages.read_request(chain)
        due = [
            rule
            for rule in self.rules
            if isinstance(rule, RequestRule) and rule.applies(request) and rule.is_due()
        ]
        turn = Turn(self.device, request)
        for rule in due:
            rule.act(turn)
        return turn if due else None


class MischievousSignals:
    """`real`, but for the configuration interrupts that rules are about."""

    def __init__(self, real: Signals, mischief: Mischief) -> None:
        self.real = real
        self.queue, self.kick, self.trace = real.queue, real.kick, real.trace
        self._mischief = mischief

    def config(self, *, notify: bool = True) -> None:
        """Configuration space changed; the generation follows in any case."""
        times = self._mischief.times() if notify else 0
        self.real.config(notify=times > 0)
        for _ in range(times - 1):
            self.real.config()


def mischief_of(device: VirtioMem) -> Mischief:
    """The rules of `device`, which has none at first. With the machine's lock held."""
    owner = getattr(vars(device).get("handle_queue"), "__self__", None)
    return owner if isinstance(owner, Mischief) else Mischief(device)
