"""Sizes as people write them, and alignment."""

import pytest

from minivmm.errors import UsageError
from minivmm.units import align_down, align_up, format_size, is_power_of_two, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("1GiB", 1 << 30),
        ("2TiB", 2 << 40),
        ("3K", 3072),
        ("0x1000", 4096),
    ],
)
def test_sizes_are_binary(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5G", "4096B", "1 2", "0xG", "5P"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not understood"):
        parse_size(text)


def test_decimal_units_are_refused_with_the_binary_one_named() -> None:
    with pytest.raises(UsageError, match="write 512MiB"):
        parse_size("512MB")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (1 << 30, "1G"), (1536 << 20, "1536M"), (4097, "4097")]
)
def test_format_size_is_exact(size: int, text: str) -> None:
    assert format_size(size) == text
    assert parse_size(text) == size


def test_alignment() -> None:
    assert align_up(5, 4) == 8
    assert align_up(8, 4) == 8
    assert align_down(7, 4) == 4
    assert is_power_of_two(2)
    assert not is_power_of_two(0)
    assert not is_power_of_two(3)
