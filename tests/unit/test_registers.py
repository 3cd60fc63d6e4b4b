"""Declared registers: exact widths, halves of 64-bit registers, everything else inert."""

import pytest

from minivmm.registers import Register, RegisterFile, constant


class Bench:
    def __init__(self) -> None:
        self.wide = 0x1122334455667788
        self.byte = 0
        self.file = RegisterFile(
            [
                Register(0, 4, "id", constant(0xABCD)),
                Register(4, 1, "byte", lambda: self.byte, self.set_byte),
                Register(8, 8, "wide", lambda: self.wide, self.set_wide),
            ]
        )

    def set_byte(self, value: int) -> None:
        self.byte = value

    def set_wide(self, value: int) -> None:
        self.wide = value


def test_halves_of_a_wide_register_are_independent() -> None:
    bench = Bench()

    bench.file.write(12, 4, 0xDEADBEEF)

    assert bench.file.read(8, 8) == 0xDEADBEEF55667788
    bench.file.write(8, 4, 1)
    assert bench.wide == 0xDEADBEEF00000001


@pytest.mark.parametrize(("offset", "size"), [(0, 2), (1, 4), (4, 2), (9, 4), (16, 1), (100, 8)])
def test_other_accesses_read_zero_and_change_nothing(offset: int, size: int) -> None:
    bench = Bench()

    bench.file.write(offset, size, 0xFF)

    assert bench.file.read(offset, size) == 0
    assert (bench.byte, bench.wide) == (0, 0x1122334455667788)


def test_read_only_register_ignores_writes() -> None:
    bench = Bench()

    bench.file.write(0, 4, 1)

    assert bench.file.read(0, 4) == 0xABCD


def test_overlapping_declarations_are_refused() -> None:
    with pytest.raises(ValueError, match="overlaps"):
        RegisterFile([Register(0, 4, "a", constant(0)), Register(2, 2, "b", constant(0))])
