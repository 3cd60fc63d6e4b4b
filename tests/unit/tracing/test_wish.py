"""What followers ask for: filters and details."""

import pytest

from minivmm.errors import UsageError
from minivmm.trace import Detail
from minivmm.tracing.wish import Filter, Wish, parse_details, wish_from_json


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ([], {"vmem0:answer", "vmem1:kick", "rng0:kick", "machine:reset"}),
        (["vmem0"], {"vmem0:answer"}),
        (["vmem*"], {"vmem0:answer", "vmem1:kick"}),
        ([":kick"], {"vmem1:kick", "rng0:kick"}),
        (["vmem*:kick", "machine"], {"vmem1:kick", "machine:reset"}),
        (["!:kick"], {"vmem0:answer", "machine:reset"}),
        (["vmem?", "!:kick"], {"vmem0:answer"}),
    ],
)
def test_filters(patterns: list[str], wanted: set[str]) -> None:
    chosen = Filter(patterns)
    events = ["vmem0:answer", "vmem1:kick", "rng0:kick", "machine:reset"]

    assert {one for one in events if chosen.wants(*one.split(":"))} == wanted


def test_no_filter_hides_that_something_is_missing() -> None:
    assert Filter(["vmem0", "!trace"]).wants("trace", "dropped")


@pytest.mark.parametrize("text", ["", ":", "!", "!:", "a:b:c", "x" * 201])
def test_a_filter_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not understood: SOURCE"):
        Wish(patterns=(text,))


def test_filters_are_bounded() -> None:
    with pytest.raises(UsageError, match="65 filters are too many: at most 64"):
        Wish(patterns=("vmem0",) * 65)


def test_an_empty_object_asks_for_everything_usual() -> None:
    assert wish_from_json({}) == Wish((Detail.REQUESTS,), ())


def test_details_in_words() -> None:
    assert parse_details("exits,requests") == (Detail.REQUESTS, Detail.EXITS)
    assert parse_details("") == ()
    with pytest.raises(UsageError, match="unknown detail: 'exit'"):
        parse_details("requests,exit")


def test_a_wish_survives_the_way_to_the_server() -> None:
    wish = Wish((Detail.REQUESTS, Detail.EXITS), ("vmem0", "!:kick"))

    assert wish_from_json(wish.to_json()) == wish
    assert wish_from_json({"details": []}).details == ()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([], "a follower sends one JSON object"),
        ("exits", "a follower sends one JSON object"),
        ({"detail": []}, "unknown key: 'detail'"),
        ({"details": "exits"}, "details must be a list of texts"),
        ({"details": [1]}, "details must be a list of texts"),
        ({"details": ["exit"]}, "unknown detail: 'exit'"),
        ({"filter": {"a": 1}}, "filter must be a list of texts"),
        ({"filter": ["a:b:c"]}, "not understood"),
    ],
)
def test_nonsense_is_refused_in_a_line(data: object, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as error:
        wish_from_json(data)

    assert "\n" not in str(error.value)
