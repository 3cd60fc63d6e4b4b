"""Inputs for the guest part's tests: modules written byte by byte, module trees, a busybox."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

MakeModule = Callable[..., bytes]
MakeTree = Callable[..., Path]

RELEASE = "6.9.1-test-amd64"


def _module(depends: str = "", *, release: str = RELEASE, name: str = "x") -> bytes:
    """A relocatable ELF file with the sections "", .text, .modinfo and .shstrtab."""
    strings = b"\0.text\0.modinfo\0.shstrtab\0"
    modinfo = (
        f"license=GPL\0depends={depends}\0name={name}\0vermagic={release} SMP mod_unload\0".encode()
    )
    contents = [b"", b"\x90" * 5, modinfo, strings]
    headers, body = [], b""
    for content, section in zip(contents, (b"", b".text", b".modinfo", b".shstrtab"), strict=True):
        start = strings.index(section) if section else 0
        offset = 64 + len(body)
        headers.append(struct.pack("<IIQQQQIIQQ", start, 1, 0, 0, offset, len(content), 0, 0, 1, 0))
        body += content
    table = 64 + len(body)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, len(contents), 3)
    return ident + header + body + b"".join(headers)


@pytest.fixture
def make_module() -> MakeModule:
    return _module


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """make_tree({"a/x.ko": depends, ...}, builtin=[...], order=True) -> a /lib/modules/RELEASE."""

    def make(modules: dict[str, str], *, builtin: tuple[str, ...] = (), order: bool = True) -> Path:
        root = tmp_path / "modules"
        for name, depends in modules.items():
            path = root / "kernel" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_module(depends, name=path.stem))
        root.mkdir(exist_ok=True)
        (root / "modules.builtin").write_text("".join(f"kernel/{name}\n" for name in builtin))
        if order:
            (root / "modules.order").write_text("".join(f"kernel/{name}\n" for name in modules))
        return root

    return make


@pytest.fixture
def fake_busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A busybox with the commands sh and ls, for the tests that only look at the archive."""
    path = tmp_path / "busybox"
    path.write_bytes(b"not really busybox")
    monkeypatch.setattr("minivmm.guest.build.find_busybox", lambda: path)
    monkeypatch.setattr("minivmm.guest.build.applets", lambda busybox: ["busybox", "ls", "sh"])
    return path
