"""Which busybox is taken, and how a static program is told from a dynamic one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from minivmm.errors import HostError
from minivmm.guest import busybox

LOAD, INTERPRETER = 1, 3


def write_program(path: Path, *segments: int, machine: int = 62) -> Path:
    """An ELF file with program headers of the given types and nothing else."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    table = b"".join(struct.pack("<IIQQQQQQ", kind, 5, 0, 0, 0, 0, 0, 0) for kind in segments)
    path.write_bytes(ident + header + table)
    return path


def test_static_program(tmp_path: Path) -> None:
    assert busybox.is_static(write_program(tmp_path / "b", LOAD, LOAD))


def test_program_with_a_loader_is_not_static(tmp_path: Path) -> None:
    assert not busybox.is_static(write_program(tmp_path / "b", LOAD, INTERPRETER))


def test_program_of_another_machine_is_not_taken(tmp_path: Path) -> None:
    assert not busybox.is_static(write_program(tmp_path / "b", LOAD, machine=183))


@pytest.mark.parametrize(
    "content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" * 20]
)
def test_no_program_is_not_static(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b").write_bytes(content)
    assert not busybox.is_static(tmp_path / "b")


def test_missing_file_is_not_static(tmp_path: Path) -> None:
    assert not busybox.is_static(tmp_path / "b")


def test_variable_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write_program(tmp_path / "mine", LOAD)
    monkeypatch.setattr(busybox, "PLACES", (write_program(tmp_path / "theirs", LOAD),))
    monkeypatch.setenv("MINIVMM_BUSYBOX", str(mine))

    assert busybox.find_busybox() == mine


def test_unusable_variable_is_an_error_not_a_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busybox, "PLACES", (write_program(tmp_path / "theirs", LOAD),))
    monkeypatch.setenv("MINIVMM_BUSYBOX", str(tmp_path / "none"))

    with pytest.raises(HostError, match="MINIVMM_BUSYBOX"):
        busybox.find_busybox()


def test_dynamic_one_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic = write_program(tmp_path / "dynamic", INTERPRETER)
    static = write_program(tmp_path / "static", LOAD)
    monkeypatch.delenv("MINIVMM_BUSYBOX", raising=False)
    monkeypatch.setattr(busybox, "PLACES", (dynamic, static))

    assert busybox.find_busybox() == static


def test_none_at_all_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIVMM_BUSYBOX", raising=False)
    monkeypatch.setattr(busybox, "PLACES", ())

    with pytest.raises(HostError, match="apt-get install busybox-static"):
        busybox.find_busybox()


def test_applets_are_what_it_lists(tmp_path: Path) -> None:
    path = tmp_path / "busybox"
    path.write_text('#!/bin/sh\n[ "$1" = --list ] && printf "sh\\nls\\n["\n')
    path.chmod(0o755)

    assert busybox.applets(path) == ["[", "ls", "sh"]


def test_applets_of_a_failing_program_is_a_host_error(tmp_path: Path) -> None:
    path = tmp_path / "busybox"
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)

    with pytest.raises(HostError, match="cannot list"):
        busybox.applets(path)
