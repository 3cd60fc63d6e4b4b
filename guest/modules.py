"""Finds kernel modules below /lib/modules/RELEASE and puts them, dependencies first, in order.

Debian's packages carry no modules.dep (depmod writes it at installation), so names and
dependencies are read from the modules themselves: their ELF section .modinfo. Loading is up to the
guest's init.
"""

from __future__ import annotations

import gzip
import importlib
import lzma
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minivmm.errors import HostError, ImageError

SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")

_ELF_MAGIC = b"\x7fELF\x02\x01"  # 64-bit, little-endian
_SECTION_TABLE = struct.Struct("<40xQ10xHHH")  # e_shoff; e_shentsize, e_shnum, e_shstrndx
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr; see elf(5)
_ZSTD_MODULES = ("compression.zstd", "backports.zstd", "zstandard")


@dataclass(frozen=True, slots=True)
class Module:
    """A loadable module: name with underscores, where it was found, uncompressed content."""

    name: str
    path: Path
    data: bytes
    depends: tuple[str, ...]
    """Names of the modules that must be loaded before it."""
    release: str
    """The kernel it was built for, as `uname -r` says; empty if it does not tell."""


class ModuleTree:
    """The modules of one kernel, `root` being its /lib/modules/RELEASE."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.builtin = frozenset(canonical(_stem(line)) for line in _lines(root, "modules.builtin"))
        """Names of drivers that are part of the kernel image."""
        self._paths = {canonical(_stem(line)): line for line in _lines(root, "modules.order")}
        self._searched = False
        self._loaded: dict[str, Module] = {}

    def find(self, name: str) -> Path | None:
        """The file of module `name` ('-' and '_' are the same), or None if there is none."""
        name = canonical(name)
        # modules.order names each module as it was built, before compression. Walking the tree
        # instead costs a second on the lab's slow file system, so that comes last.
        listed = self._paths.get(name)
        if listed is not None:
            base = self.root / listed
            for suffix in SUFFIXES:
                path = base.with_name(_stem(listed) + suffix)
                if path.exists():
                    return path
        if not self._searched:
            self._searched = True
            for path in sorted(self.root.rglob("*.ko*")):
                if path.name.endswith(SUFFIXES):
                    self._paths[canonical(_stem(path.name))] = str(path.relative_to(self.root))
            return self.find(name)
        return None

    def load_order(self, wanted: Iterable[str]) -> tuple[list[Module], list[str]]:
        """`wanted` and all they depend on, dependencies first; and the names that do not exist.

        Drivers built into the kernel are in neither list. Raises ImageError for a damaged module
        and HostError for a compression that cannot be undone here.
        """
        order: list[Module] = []
        missing: list[str] = []
        visited = set(self.builtin)

        def visit(name: str) -> None:
            if name in visited:
                return
            visited.add(name)
            module = self._load(name)
            if module is None:
                missing.append(name)
                return
            for dependency in module.depends:
                visit(canonical(dependency))
            order.append(module)

        for name in wanted:
            visit(canonical(name))
        return order, missing

    def _load(self, name: str) -> Module | None:
        if name not in self._loaded:
            path = self.find(name)
            if path is None:
                return None
            data = read_module(path)
            info = modinfo(data, path)
            depends = tuple(filter(None, ",".join(info.get("depends", [])).split(",")))
            release = info.get("vermagic", [""])[0].partition(" ")[0]
            self._loaded[name] = Module(name, path, data, depends, release)
        return self._loaded[name]


def canonical(name: str) -> str:
    """`name` with '_' for '-': the kernel and its file names use both for the same module."""
    return name.replace("-", "_")


def read_module(path: Path) -> bytes:
    """The uncompressed module in file `path`. Raises ImageError, HostError."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(raw)
        if path.suffix == ".gz":
            return gzip.decompress(raw)
        if path.suffix == ".zst":
            return _unzstd(raw, path)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ImageError(f"kernel module {path} cannot be read: {error}") from error
    return raw


def modinfo(data: bytes, path: Path) -> dict[str, list[str]]:
    """The key=value strings in section .modinfo of ELF file `data`; keys may occur repeatedly.

    Raises ImageError, naming `path`, if this is no ELF file of a 64-bit x86 kernel.
    """
    try:
        section = _section(data, b".modinfo")
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError(f"kernel module {path} is damaged: {error}") from error
    found: dict[str, list[str]] = {}
    for line in section.split(b"\0"):
        key, equals, value = line.decode("utf-8", "replace").partition("=")
        if equals:
            found.setdefault(key, []).append(value)
    return found


def _section(data: bytes, name: bytes) -> bytes:
    """Content of the ELF section `name`; ValueError if there is none."""
    if not data.startswith(_ELF_MAGIC):
        raise ValueError("not a 64-bit ELF file")
    offset, size, count, names_index = _SECTION_TABLE.unpack_from(data)
    headers = [_SECTION.unpack_from(data, offset + size * index) for index in range(count)]
    names = _content(data, headers[names_index])
    for header in headers:
        start = header[0]
        if names[start : names.index(b"\0", start)] == name:
            return _content(data, header)
    raise ValueError(f"no section {name.decode()}")


def _content(data: bytes, header: tuple[int, ...]) -> bytes:
    offset, size = header[4:6]
    if offset + size > len(data):
        raise ValueError("a section lies beyond the end of the file")
    return data[offset : offset + size]


def _unzstd(raw: bytes, path: Path) -> bytes:
    """Undo zstd with whichever of the modules that can is installed; their faces are the same."""
    for name in _ZSTD_MODULES:
        try:
            zstd = importlib.import_module(name)
        except ImportError:
            continue
        try:
            return bytes(zstd.decompress(raw))
        except zstd.ZstdError as error:
            raise ImageError(f"kernel module {path} cannot be read: {error}") from error
    raise HostError(
        f"kernel module {path} is compressed with zstd, which this Python cannot read:"
        " pip install backports.zstd"
    )


def _lines(root: Path, name: str) -> list[str]:
    try:
        return (root / name).read_text().split()
    except OSError:
        return []


def _stem(path: str) -> str:
    """File name of a module path, without directories and any of SUFFIXES."""
    return path.rsplit("/", 1)[-1].partition(".ko")[0]
