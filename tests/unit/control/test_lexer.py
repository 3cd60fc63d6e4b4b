"""Framing of JSON values in a stream: pieces, several at once, errors and the way back."""

import json

import pytest

from minivmm.control.lexer import MAX_DEPTH, MAX_VALUE, Lexer, ParseError


def values(data: bytes, *, piece: int | None = None) -> list[object]:
    """What comes out for `data` fed in pieces; errors as their texts."""
    lexer = Lexer()
    step = piece or max(1, len(data))
    found: list[object] = []
    for at in range(0, len(data), step):
        found += lexer.feed(data[at : at + step])
    return [str(value) if isinstance(value, ParseError) else value for value in found]


def test_two_objects_in_one_write() -> None:
    assert values(b'{"a":1}{"b":2}') == [{"a": 1}, {"b": 2}]


def test_an_object_over_several_lines_needs_no_terminator() -> None:
    assert values(b'{"a":\r\n [1,\n 2]\n}') == [{"a": [1, 2]}]


@pytest.mark.parametrize("piece", [1, 2, 3, 7])
def test_pieces_of_any_size_give_the_same(piece: int) -> None:
    data = b' {"a":"}\\"{","b":[{}]} 42 {"c":"\xc3\xa9"}\n'

    assert values(data, piece=piece) == [{"a": '}"{', "b": [{}]}, 42, {"c": "é"}]


def test_brackets_and_quotes_in_strings_do_not_count() -> None:
    assert values(rb'{"a":"}]\"\\"}') == [{"a": '}]"\\'}]


def test_values_that_are_no_objects_end_where_the_next_begins() -> None:
    assert values(b'[1]"x"42 null\n') == [[1], "x", 42, None]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{bad}", "invalid keyword 'bad'"),
        (b'{"a":NaN}', "invalid keyword 'NaN'"),
        (b'{"a" 5}', "expecting value"),
        (b'{"a":1 "b":2}', "expected separator in dict"),
        (b'{"a":[1 2]}', "expected separator in list"),
        (b'{"a":1,}', "expecting value"),
        (b'{"a":"\\q"}', "invalid escape sequence in string"),
        (b'{"a":1,"a":2}', "duplicate key"),
        (b'{"a":1e999}', "number '1e999' is out of range"),
        (b"}", "expecting value"),
    ],
)
def test_errors_are_told_once_and_the_next_value_is_read(data: bytes, why: str) -> None:
    assert values(data + b'{"ok":1}') == [f"JSON parse error, {why}", {"ok": 1}]


def test_a_control_character_in_a_string_ends_what_is_pending() -> None:
    first, second = values(b'{"a":"unterminated\n{"ok":1}')

    assert "stray" in str(first)
    assert second == {"ok": 1}


def test_a_byte_that_utf8_never_has_resynchronises() -> None:
    first, second = values(b'{"a":[\xff{"ok":1}')

    assert "stray" in str(first)
    assert second == {"ok": 1}


def test_nesting_is_bounded() -> None:
    found = values(b"[" * (MAX_DEPTH + 1) + b"\xff" + b"{}")

    assert found[0] == "JSON parse error, nesting too deep"
    assert found[-1] == {}


def test_deepest_allowed_nesting_parses() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH

    assert values(text.encode()) == [json.loads(text)]


def test_the_length_of_a_value_is_bounded() -> None:
    found = values(b'"' + b"x" * MAX_VALUE + b'"')

    assert found[0] == "JSON parse error, value too long"


def test_a_huge_integer_is_no_crash() -> None:
    assert "JSON parse error" in str(values(b'{"a":' + b"9" * 5000 + b"}")[0])
