"""The entropy device, driven over both ring formats (virtio-spec 5.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from minivmm.devices.virtio_rng.device import MOST_BYTES, VirtioRng
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.errors import UsageError
from minivmm.testing.driver import DeviceBench
from minivmm.virtio.errands import Inline


class Reminders(Inline):
    """Errands whose reminders a test brings about."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, look: Callable[[], None]) -> None:
        self.waiting.append((seconds, look))


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def bench(request: pytest.FixtureRequest) -> Iterator[DeviceBench]:
    with DeviceBench(VirtioRng(VirtioRngSpec(packed=request.param))) as bench:
        bench.driver.start()
        yield bench


def test_it_is_an_entropy_device_without_features_or_configuration(bench: DeviceBench) -> None:
    assert bench.driver.read_pci(0, 4) == 0x1044_1AF4
    assert bench.driver.offered_features() & 0xFF_FFFF == 0


def test_buffers_are_filled_and_two_never_alike(bench: DeviceBench) -> None:
    first, second = (bench.driver.submit(0, writable=(64,))[0] for _ in range(2))

    assert first.written == second.written == 64
    assert first.data != second.data
    assert len(set(first.data)) > 16


def test_a_buffer_in_pieces_is_one_buffer(bench: DeviceBench) -> None:
    (used,) = bench.driver.submit(0, writable=(16, 16, 32))

    assert used.written == 64
    assert any(used.data[48:])


def test_large_buffers_are_filled_in_part_and_the_length_says_so(bench: DeviceBench) -> None:
    (used,) = bench.driver.submit(0, writable=(3 * MOST_BYTES,))

    assert used.written == MOST_BYTES
    assert not any(used.buffer[MOST_BYTES:])


def test_readable_buffers_which_drivers_must_not_place_are_ignored(bench: DeviceBench) -> None:
    (used,) = bench.driver.submit(0, b"seed", writable=(8,))
    (nothing,) = bench.driver.submit(0, b"seed")

    assert (used.written, nothing.written) == (8, 0)


def test_what_exceeds_max_bytes_waits_for_the_next_period() -> None:
    device = VirtioRng(VirtioRngSpec(max_bytes=96, period=1500))
    reminders = Reminders()
    device.use(reminders)
    with DeviceBench(device) as bench:
        bench.driver.start()
        first, second = (bench.driver.submit(0, writable=(64,)) for _ in range(2))
        third = bench.driver.submit(0, writable=(64,))

        ((seconds, begin_period),) = reminders.waiting
        begin_period()
        late = bench.driver.queues[0].collect()

    assert [used.written for used in first + second] == [64, 32]
    assert third == []
    assert seconds == 1.5
    assert [used.written for used in late] == [64]


@pytest.mark.parametrize("fields", [{"max_bytes": 0}, {"period": 0}])
def test_limits_that_give_nothing_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"rng0: .* 0 .*give 1"):
        VirtioRngSpec(**fields)  # type: ignore[arg-type]
