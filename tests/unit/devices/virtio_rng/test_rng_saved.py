"""The saved state of an entropy device: its quota goes on with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minivmm.devices.virtio_rng.device import NO_LIMIT, VirtioRng
from minivmm.devices.virtio_rng.saved import RNG
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.errors import BadState
from minivmm.testing.fake_queue import FakeChain, FakeQueue, FakeSignals
from minivmm.virtio.errands import Inline


class Reminders(Inline):
    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        self.waiting.append(look)


def make(max_bytes: int | None = None) -> tuple[VirtioRng, Reminders]:
    device, reminders = VirtioRng(VirtioRngSpec(max_bytes=max_bytes)), Reminders()
    device.signals = FakeSignals()
    device.use(reminders)
    return device, reminders


def test_quota_is_not_renewed_by_a_move() -> None:
    (old, _), (new, reminders) = make(100), make(100)
    old.handle_queue(0, FakeQueue(FakeChain(b"", 64)))
    data = old.save_state()
    new.load_state(data)
    new.load_state(data)
    assert new.save_state() == data
    chain = FakeChain(b"", 64)

    new.handle_queue(0, FakeQueue(chain))

    assert chain.used == 36
    assert len(reminders.waiting) == 1
    reminders.waiting[0]()
    assert new.inspect()["left"] == 100
    assert new.inspect()["given"] == 100


def test_without_a_quota_no_time_is_measured() -> None:
    (old, _), (new, reminders) = make(), make()
    old.handle_queue(0, FakeQueue(FakeChain(b"", 64)))

    new.load_state(old.save_state())

    assert new.inspect()["given"] == 64
    assert reminders.waiting == []


@pytest.mark.parametrize(("most", "left"), [(100, 101), (100, NO_LIMIT), (None, 0), (None, 5)])
def test_quota_of_another_device_is_refused(most: int | None, left: int) -> None:
    device, _ = make(most)
    saved = RNG.parse(device.save_state())
    saved.left = left

    with pytest.raises(BadState, match="bytes left"):
        device.load_state(RNG.build(saved))
