"""Frames and what they carry: built and read back, the fast way and by their declaration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.errors import MigrationError
from minivmm.migration import wire
from minivmm.migration.pages import Packer, pieces
from minivmm.migration.wire import (
    PAGES_DATA,
    RUNS_MAX,
    FrameHeader,
    Kind,
    Run,
    RunRecord,
    build_pages,
    parse_pages,
)
from minivmm.saved import Section
from minivmm.units import GIB, KIB, MIB

PAGE = 4096


def decoded(data: bytes, number: int) -> wire.Frame:
    header = wire.read_header(data[: FrameHeader.SIZE], number)
    return wire.decode(header, data[: FrameHeader.SIZE], data[FrameHeader.SIZE :])


@given(st.binary(max_size=4096), st.integers(0, 1 << 40), st.integers(0, 9))
def test_frames_come_back(payload: bytes, number: int, level: int) -> None:
    data = wire.encode(Kind.SECTION, payload, number, level=level)

    assert decoded(data, number) == (Kind.SECTION, payload)
    assert len(data) <= FrameHeader.SIZE + len(payload)


def test_a_frame_in_another_place_is_noticed() -> None:
    with pytest.raises(MigrationError, match="frame 7 in place of 8"):
        decoded(wire.encode(Kind.RUN, b"", 7), 8)


def test_what_does_not_get_smaller_is_not_compressed() -> None:
    assert wire.encode(Kind.SECTION, b"x", 0, level=9) == wire.encode(Kind.SECTION, b"x", 0)


def test_sections_and_their_names_come_back() -> None:
    section = Section("device.vmem0", 3, bytes(range(256)))

    assert wire.parse_section(wire.build_section(section)) == section


runs = st.lists(
    st.builds(
        lambda page, count, fill: Run(
            page * PAGE, count * PAGE, None if fill is None else bytes([fill]) * count * PAGE
        ),
        st.integers(0, 2**52 - 1),
        st.integers(1, 4),
        st.none() | st.integers(0, 255),
    ),
    max_size=8,
)


@given(runs)
def test_pages_come_back(runs: list[Run]) -> None:
    assert parse_pages(build_pages(runs)) == runs


@given(runs)
def test_the_fast_way_agrees_with_the_declaration(runs: list[Run]) -> None:
    payload = build_pages(runs)
    assert int.from_bytes(payload[:4], "little") == len(runs)
    for number, (gpa, size, data) in enumerate(runs):
        start = 4 + number * RunRecord.SIZE
        declared = RunRecord.parse(payload[start : start + RunRecord.SIZE])
        assert declared == RunRecord(gpa, size // PAGE, int(data is not None))


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise(payload: bytes) -> None:
    for parse in (parse_pages, wire.parse_section, lambda data: wire.parse_json(data, "it")):
        try:
            parse(payload)
        except MigrationError as error:
            assert "\n" not in str(error)


def packed(*parts: tuple[int, bytes | int]) -> list[tuple[list[Run], int, int]]:
    """The frames that a Packer makes of data, and of so many zeroes, at addresses."""
    found: list[tuple[list[Run], int, int]] = []

    def send(payload: bytes, data: int, zeroes: int) -> None:
        found.append((parse_pages(payload), data, zeroes))

    packer = Packer(send)
    for gpa, part in parts:
        if isinstance(part, int):
            packer.add_zeroes(gpa, part)
        else:
            packer.add(gpa, part)
    packer.flush()
    packer.flush()
    return found


def test_zeroes_are_only_mentioned() -> None:
    data = bytes(PAGE) + b"x" * PAGE + bytes(2 * PAGE) + b"y".ljust(PAGE, b"\0")

    [(found, sent, zeroes)] = packed((GIB, data))

    assert [(run.gpa - GIB, run.size, run.data is not None) for run in found] == [
        (0, PAGE, False),
        (PAGE, PAGE, True),
        (2 * PAGE, 2 * PAGE, False),
        (4 * PAGE, PAGE, True),
    ]
    assert (sent, zeroes) == (2 * PAGE, 3 * PAGE)


def test_frames_are_filled_and_no_more_than_that() -> None:
    found = packed(*((at * MIB, b"x" * (256 * KIB)) for at in range(9)), (GIB, 64 * GIB))

    assert [data for _, data, _ in found] == [PAGES_DATA, PAGES_DATA, 256 * KIB]
    assert found[-1][2] == 64 * GIB


def test_runs_without_data_fill_frames_too() -> None:
    found = packed(*((at * 2 * PAGE, PAGE) for at in range(RUNS_MAX + 1)))

    assert [len(runs) for runs, _, _ in found] == [RUNS_MAX, 1]
    assert max(len(build_pages(runs)) for runs, _, _ in found) <= wire.LIMITS[Kind.PAGES]


def test_nothing_makes_no_frame() -> None:
    assert packed() == packed((0, 0)) == []


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 30))
def test_pieces_cover_what_they_are_cut_from(gpa: int, size: int, unit: int) -> None:
    found = list(pieces(gpa, size, unit))

    assert [at for start, length in found for at in range(start, start + length)] == list(
        range(gpa, gpa + size)
    )
    assert all(start % unit + length <= unit and length for start, length in found)
