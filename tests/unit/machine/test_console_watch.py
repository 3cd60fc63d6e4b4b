"""ConsoleWatch: the panic line and the init banner are found however the text is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.console_watch import ConsoleWatch

TEXT = (
    b"[    0.1] Linux version 6.12\r\n"
    b"minivmm: init of 6.12\r\n"
    b"[    1.5] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0\r\n"
    b"[    1.6] CPU: 0 PID: 1\r\n"
)


class Watched:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.watch = ConsoleWatch(
            lambda: self.calls.append("panic"), lambda: self.calls.append("init")
        )

    def feed(self, *pieces: bytes) -> Watched:
        for piece in pieces:
            self.watch.feed(piece)
        return self


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_a_boot_in_any_pieces(places: list[int]) -> None:
    watched = Watched().feed(*cut(TEXT, places))

    assert watched.calls == ["init", "panic"]
    assert watched.watch.panic == "Attempted to kill init! exitcode=0x0"


def test_a_boot_byte_by_byte() -> None:
    watched = Watched().feed(*(bytes([byte]) for byte in TEXT))

    assert watched.calls == ["init", "panic"]


@settings(max_examples=100, deadline=None)
@given(st.integers(440, 560), st.integers(0, 200), st.lists(st.integers(0, 10_000), max_size=10))
def test_long_lines_mean_the_same_in_any_pieces(before: int, after: int, places: list[int]) -> None:
    line = b"x" * before + b"Kernel panic - not syncing: " + b"y" * after + b"\n"
    whole = Watched().feed(line)

    pieces = Watched().feed(*cut(line, places))

    assert (pieces.calls, pieces.watch.panic) == (whole.calls, whole.watch.panic)


def test_a_panic_counts_once_its_line_is_complete() -> None:
    watched = Watched().feed(b"Kernel panic - not syncing: half")
    assert watched.watch.panic is None

    watched.feed(b" a line\r\n")

    assert watched.watch.panic == "half a line"


def test_the_first_panic_counts() -> None:
    watched = Watched().feed(
        b"Kernel panic - not syncing: one\n", b"Kernel panic - not syncing: two\n"
    )

    assert watched.calls == ["panic"]
    assert watched.watch.panic == "one"


def test_reset_forgets_panic_and_half_a_line() -> None:
    watched = Watched().feed(b"Kernel panic - not syncing: one\nKernel panic - not ")

    watched.watch.reset()
    watched.feed(b"syncing: two\n")

    assert watched.watch.panic is None


def test_a_crash_kernel_that_reaches_init_has_replaced_the_panicked_one() -> None:
    watched = Watched().feed(b"Kernel panic - not syncing: one\nminivmm: init\n")

    assert watched.calls == ["panic", "init"]
    assert watched.watch.panic is None

    watched.feed(b"Kernel panic - not syncing: two\n")

    assert watched.calls == ["panic", "init", "panic"]
    assert watched.watch.panic == "two"


def test_a_line_that_never_ends_takes_no_memory() -> None:
    watched = Watched()

    for _ in range(1000):
        watched.feed(b"x" * 1000)

    assert len(watched.watch._line) < 2000


@pytest.mark.parametrize("text", [b"\xff\xfe", "größer".encode()])
def test_a_reason_is_text_whatever_the_guest_prints(text: bytes) -> None:
    watched = Watched().feed(b"Kernel panic - not syncing: " + text + b"\n")

    assert isinstance(watched.watch.panic, str)
