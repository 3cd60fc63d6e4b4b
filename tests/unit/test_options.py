"""Option dataclasses: parsing, errors, help rows, round trip."""

from dataclasses import dataclass

import pytest

from minivmm.errors import UsageError
from minivmm.options import (
    choice_option,
    describe,
    from_mapping,
    number_option,
    number_ranges,
    numbers_option,
    option,
    parse_pairs,
    size_option,
    switch_option,
    to_mapping,
    to_pairs,
)


@dataclass(frozen=True, kw_only=True)
class Example:
    id: str = option("name")
    block_size: int = size_option("size of a block", default=2 << 20)
    address: int | None = size_option("where", default=None)
    node: int = number_option("node", default=0)
    prealloc: bool = switch_option("populate", default=False)
    cpus: tuple[int, ...] = numbers_option("CPUs", default=())
    mode: str = choice_option("mode", ("auto", "on", "off"), default="auto")


def test_strings_from_the_command_line_are_parsed() -> None:
    head, pairs = parse_pairs("example,id=a,,b,block-size=4M,node=0x2,prealloc,mode=on")

    made = from_mapping(Example, pairs, what=head)

    assert made == Example(id="a,b", block_size=4 << 20, node=2, prealloc=True, mode="on")


def test_json_values_round_trip() -> None:
    made = Example(id="x", address=4096)

    data = to_mapping(made)

    assert data["block-size"] == 2 << 20
    assert from_mapping(Example, data, what="example") == made


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"id": "x", "blok-size": "1M"}, "did you mean block-size"),
        ({}, "id= is required"),
        ({"id": "x", "node": "-1"}, "not a non-negative number"),
        ({"id": "x", "prealloc": "maybe"}, "neither on nor off"),
        ({"id": "x", "mode": "never"}, "auto, on, off"),
        ({"id": "x", "block-size": "2MB"}, "ambiguous"),
        ({"id": "x", "cpus": "4-"}, "'' is not a number"),
        ({"id": "x", "cpus": "4-1"}, "use 1-4"),
        ({"id": "x", "cpus": [1, "0-99999999999"]}, "use 0 to 65535"),
        ({"id": "x", "cpus": {}}, "not a non-negative number"),
        ({"id": "x", "block-size": True}, "not a non-negative number"),
    ],
)
def test_errors_name_device_and_property(pairs: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        from_mapping(Example, pairs, what="example")

    assert "example" in str(caught.value)


def test_numbers_are_ranges_lists_and_repeated_keys() -> None:
    head, pairs = parse_pairs("example,id=a,cpus=7,cpus=0-2", repeatable=("cpus",))

    assert from_mapping(Example, pairs, what=head).cpus == (7, 0, 1, 2)
    assert from_mapping(Example, {"id": "a", "cpus": [3, "5-6"]}, what=head).cpus == (3, 5, 6)
    assert from_mapping(Example, {"id": "a", "cpus": 3}, what=head).cpus == (3,)
    assert number_ranges((7, 0, 2, 1, 2)) == ["0-2", "7"]


@pytest.mark.parametrize("text", ["d,id=1,id=2", "d,,", "d,=x"])
def test_malformed_pairs_are_refused(text: str) -> None:
    if text == "d,,":
        assert parse_pairs(text) == ("d,", {})
        return
    with pytest.raises(UsageError):
        parse_pairs(text)


def test_help_rows_show_defaults() -> None:
    rows = {name: shown for name, _, shown in describe(Example)}

    assert rows == {
        "id": "required",
        "block-size": "2M",
        "address": "automatic",
        "node": "0",
        "prealloc": "off",
        "cpus": "none",
        "mode": "auto",
    }


@dataclass(frozen=True, kw_only=True)
class Shared:
    event_idx: bool = switch_option("events", default=True, name="event_idx")


@dataclass(frozen=True, kw_only=True)
class Inheriting(Shared):
    id: str = option("name")
    block_size: int = size_option("size of a block", default=None)


def test_inherited_options_come_last_and_may_have_names_of_their_own() -> None:
    assert [name for name, _, _ in describe(Inheriting)] == ["id", "block-size", "event_idx"]
    head, pairs = parse_pairs("inheriting,id=x,event_idx=off")
    assert from_mapping(Inheriting, pairs, what=head) == Inheriting(id="x", event_idx=False)


def test_pairs_are_read_back_as_they_were_written() -> None:
    made = Inheriting(id="a,b", block_size=4096, event_idx=False)
    assert to_pairs(made) == "id=a,,b,block-size=4096,event_idx=off"
    head, pairs = parse_pairs(f"inheriting,{to_pairs(made)}")
    assert from_mapping(Inheriting, pairs, what=head) == made
