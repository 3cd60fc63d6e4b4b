"""Records: layout from declarations, parse and build as inverses, limits."""

import dataclasses
import importlib
import pkgutil

import pytest

from minivmm import spec
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


def every_record() -> list[type[Record]]:
    """All that the modules of minivmm.spec declare."""
    for module in pkgutil.iter_modules(spec.__path__, "minivmm.spec."):
        importlib.import_module(module.name)
    return [kind for kind in Record.__subclasses__() if kind.__module__.startswith("minivmm.spec.")]


@pytest.mark.parametrize("kind", every_record(), ids=lambda kind: kind.__name__)
def test_every_record_is_what_construct_makes_of_it(kind: type[Record]) -> None:
    data = bytes((7 * at + 1) % 256 for at in range(kind.SIZE))

    assert kind.struct().sizeof() == kind.SIZE
    assert kind.parse(data).build() == data
    assert [sub.name for sub in kind.struct().subcons] == list(kind.OFFSETS)


def test_records_are_plain_values() -> None:
    one = Outer(9, value=5)

    assert one == Outer(kind=9, value=5) != Outer(9, value=6)
    assert hash(one) == hash(Outer(9, value=5))
    assert dataclasses.replace(one, value=6) == Outer(9, value=6)
    assert repr(Inner(5)) == "Inner(low=5, high=2)"


def test_records_do_not_change() -> None:
    one = Inner()

    with pytest.raises(dataclasses.FrozenInstanceError):
        one.low = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.low


@pytest.mark.parametrize(
    ("values", "named"), [((1, 2, 3), {}), ((1,), {"low": 1}), ((), {"middle": 1})]
)
def test_fields_are_given_once(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="fields low, high, each once"):
        Inner(*values, **named)


def test_bytes_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="Outer"):
        Outer(name=b"abc").build()
