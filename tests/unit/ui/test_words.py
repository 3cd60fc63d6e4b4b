"""What views say of events and sizes."""

from __future__ import annotations

import pytest

from minivmm.ui.words import LONGEST, describe, rough_size
from minivmm.units import GIB, MIB


def test_a_kept_answer_tells_what_is_plugged_now() -> None:
    event = {
        "source": "vmem0",
        "name": "answer",
        "type": "UNPLUG",
        "gpa": GIB,
        "blocks": 1,
        "size": 2 * MIB,
        "answer": "BUSY",
        "plugged": 256 * MIB,
        "why": "refused by the host",
    }

    assert describe(event) == (
        "UNPLUG 1 block at 0x40000000 (2M): BUSY (refused by the host); plugged 256M"
    )


def test_an_event_of_another_version_is_shown_as_it_is() -> None:
    event = {"source": "vmem0", "name": "answer", "verdict": "so-so"}

    assert describe(event) == "source=vmem0 name=answer verdict=so-so"


def test_text_is_one_bounded_line_that_does_nothing() -> None:
    text = describe({"source": "x", "name": "oddity", "text": "\x1b[2J\n" + "x" * 10_000})

    assert len(text) == LONGEST
    assert text.isprintable()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (512, "512"),
        (1.5 * GIB, "1.5G"),
        (312.4 * MIB, "312M"),
        (2 * MIB, "2M"),
        (-2 * MIB, "-2M"),
        (5 << 50, "5120T"),
    ],
)
def test_rough_sizes(size: float, text: str) -> None:
    assert rough_size(size) == text
