"""Records: layout from declarations, parse and build as inverses, limits."""

import pytest

from minivmm.spec.record import Record, nested, pad, raw, record, u8, u16, u32, u64


@record
class Inner(Record):
    low: int = u8(1)
    high: int = u8(2)


@record
class Outer(Record):
    kind: int = u16(7)
    reserved: bytes = pad(2)
    name: bytes = raw(4, b"ab")
    value: int = u64()
    count: int = u32()
    inner: Inner = nested(Inner)


def test_layout_follows_the_declaration() -> None:
    assert Outer.SIZE == 22
    assert Outer.layout() == [
        (0, 2, "kind"),
        (2, 2, "reserved"),
        (4, 4, "name"),
        (8, 8, "value"),
        (16, 4, "count"),
        (20, 2, "inner"),
    ]


def test_build_is_little_endian_with_defaults() -> None:
    data = Outer(value=0x0102, count=3).build()

    assert data == bytes.fromhex("0700 0000 61620000 0201000000000000 03000000 0102")


def test_parse_inverts_build_and_ignores_what_follows() -> None:
    made = Outer(kind=9, value=1 << 63, inner=Inner(5, 6))

    assert Outer.parse(made.build() + b"more") == made


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 22 bytes, got 21"):
        Outer.parse(bytes(21))


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="Outer"):
        Outer(kind=1 << 16).build()
