"""The machine file of a snapshot: what was put in comes out, or one line says what is wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.errors import BadState, HostError
from minivmm.saved import Section
from minivmm.snapshot import format as snapshot_format
from minivmm.snapshot.format import ID_SIZE, MACHINE_FILE, MAGIC, Contents, pack, read, unpack
from minivmm.version import __version__

SECTIONS = (Section("cpu0", 1, b"registers"), Section("device.vmem0", 1, b""))
DESCRIPTION: dict[str, object] = {"cpus": 1, "memory": {"0x0": 64}}
FILE = pack(DESCRIPTION, SECTIONS)


def rehashed(data: bytes) -> bytes:
    """`data` with a checksum that is right: as one who means harm would write it."""
    return data[:-ID_SIZE] + hashlib.sha256(data[:-ID_SIZE]).digest()


def complaint(data: bytes) -> str:
    """What is said about `data`: one line."""
    with pytest.raises(BadState) as error:
        unpack(data)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_was_packed_comes_out() -> None:
    contents = unpack(FILE)

    assert contents == Contents(FILE[-ID_SIZE:], __version__, DESCRIPTION, SECTIONS)
    assert contents.section("cpu0") == SECTIONS[0]
    with pytest.raises(BadState, match="section cpu1: it is missing"):
        contents.section("cpu1")


def test_the_same_state_has_the_same_id_and_another_has_another() -> None:
    assert pack(DESCRIPTION, SECTIONS) == FILE
    assert pack(DESCRIPTION, SECTIONS[:1])[-ID_SIZE:] != FILE[-ID_SIZE:]


def test_no_flipped_bit_is_overlooked() -> None:
    for at in range(8 * len(FILE)):
        data = bytearray(FILE)
        data[at // 8] ^= 1 << at % 8
        complaint(bytes(data))


def test_no_cut_is_overlooked() -> None:
    for size in range(len(FILE)):
        complaint(FILE[:size])
    complaint(FILE + b"\0")


def test_a_damaged_section_is_named() -> None:
    assert "it is damaged, in cpu0" in complaint(FILE.replace(b"registers", b"registerz"))


def test_names_in_a_hostile_file_become_one_printable_line() -> None:
    odd = pack(DESCRIPTION, (Section("\x1b[2J\n" * 99, 1, b"registers"),))

    said = complaint(odd.replace(b"registers", b"registerz"))

    assert said.isprintable()
    assert len(said) < 1000


def test_foreign_files_are_called_so() -> None:
    assert "first bytes nothing: this is no snapshot" in complaint(b"")
    assert "this is no snapshot of minivmm" in complaint(b"\x7fELF" + bytes(1000))
    as_text = MAGIC.replace(b"\r\n", b"\n") + FILE[len(MAGIC) :]
    assert "this is no snapshot of minivmm" in complaint(as_text)


def test_a_later_format_is_called_so() -> None:
    later = bytearray(FILE)
    later[len(MAGIC)] = 2

    said = complaint(rehashed(bytes(later)))

    assert f"format 2: this minivmm ({__version__}) reads format 1" in said


@given(data=st.data())
def test_a_hostile_file_with_a_right_checksum_is_a_state_or_refused(data: st.DataObject) -> None:
    """Lengths and counts that lie lead to a line, never to another exception or much memory."""
    file = bytearray(FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(len(MAGIC) + 2, len(file) - ID_SIZE - 1))
        file[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(FILE) - ID_SIZE - len(MAGIC) - 2))
    body = bytes(file[:-ID_SIZE])
    try:
        contents = unpack(rehashed(body[: len(body) - cut] + bytes(ID_SIZE)))
    except BadState as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(contents.description, dict)


def test_a_description_that_is_no_object_is_refused() -> None:
    for text in (b"[1]", b"7", b"{", b"[" * 100_000, b"\xff"):
        odd = bytearray(FILE)
        length = len(b'{"cpus": 1, "memory": {"0x0": 64}}')
        at = odd.index(b'{"cpus"')
        odd[at - 4 : at + length] = len(text).to_bytes(4, "little") + text
        complaint(rehashed(bytes(odd)))


def test_a_directory_that_is_none_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot be read as a snapshot \(No such file"):
        read(tmp_path / "nothing")
    with pytest.raises(HostError, match=f"No such file or directory: {MACHINE_FILE}"):
        read(tmp_path)


def test_a_file_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MACHINE_FILE).write_bytes(FILE)

    assert read(tmp_path) == unpack(FILE)
    monkeypatch.setattr(snapshot_format, "MOST_BYTES", len(FILE) - 1)
    with pytest.raises(BadState, match=f"length {len(FILE)}: this is no snapshot"):
        read(tmp_path)
