"""The range map."""

import pytest

from minivmm.bus import Action, Bus


class Probe:
    """Remembers accesses; reads give the offset."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> Action | None:
        self.writes.append((offset, size, value))
        return Action.RESET


def test_accesses_reach_the_device_with_its_own_offset() -> None:
    bus, probe = Bus("mmio"), Probe()
    bus.add(0x1000, 0x100, probe, name="probe")

    assert bus.read(0x1010, 4) == 0x10
    assert bus.write(0x10FC, 4, 7) is Action.RESET
    assert probe.writes == [(0xFC, 4, 7)]


@pytest.mark.parametrize("address", [0xFFF, 0x1100, 0x10FE, 0, 1 << 63])
def test_nothing_answers_outside_and_across_the_end(address: int) -> None:
    bus, probe = Bus("mmio"), Probe()
    bus.add(0x1000, 0x100, probe, name="probe")

    assert bus.read(address, 4) == 0xFFFFFFFF
    assert bus.write(address, 4, 1) is None
    assert probe.writes == []


@pytest.mark.parametrize("base", [0x0FFF, 0x1000, 0x10FF])
def test_overlaps_are_refused(base: int) -> None:
    bus = Bus("mmio")
    bus.add(0x1000, 0x100, Probe(), name="a")

    with pytest.raises(ValueError, match="overlaps a"):
        bus.add(base, 2, Probe(), name="b")


def test_removed_range_is_free_again() -> None:
    bus = Bus("mmio")
    bus.add(0x1000, 0x100, Probe(), name="a")
    bus.remove(0x1000)

    assert bus.read(0x1000, 1) == 0xFF
    bus.add(0x1000, 0x200, Probe(), name="b")
    assert bus.inspect() == {"0x1000+0x200": "b"}
