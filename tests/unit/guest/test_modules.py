"""Module trees: finding, decompressing, reading .modinfo, ordering."""

from __future__ import annotations

import gzip
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minivmm.errors import HostError, ImageError
from minivmm.guest.modules import ModuleTree, modinfo, read_module

MakeModule = Callable[..., bytes]
MakeTree = Callable[..., Path]


def names(tree: Path, *wanted: str) -> list[str]:
    return [module.name for module in ModuleTree(tree).load_order(wanted)[0]]


def test_modinfo_of_a_module(make_module: MakeModule) -> None:
    info = modinfo(make_module("a,b-c", name="x"), Path("x.ko"))

    assert info["depends"] == ["a,b-c"]
    assert info["name"] == ["x"]
    assert info["license"] == ["GPL"]


@pytest.mark.parametrize("data", [b"", b"MZ", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(99)])
def test_modinfo_of_something_else_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"y\.ko is damaged"):
        modinfo(data, Path("y.ko"))


def test_modinfo_of_any_cut_module_is_an_image_error(make_module: MakeModule) -> None:
    whole = make_module("a")
    for length in range(len(whole)):
        with pytest.raises(ImageError):
            modinfo(whole[:length], Path("y.ko"))


def test_dependencies_come_first(make_tree: MakeTree) -> None:
    tree = make_tree({"top.ko": "mid,base", "m/mid.ko": "base", "b/base.ko": "", "other.ko": "top"})

    assert names(tree, "top") == ["base", "mid", "top"]


def test_a_shared_dependency_is_loaded_once(make_tree: MakeTree) -> None:
    tree = make_tree({"p.ko": "base", "q.ko": "base", "base.ko": ""})

    assert names(tree, "p", "q") == ["base", "p", "q"]


def test_dashes_and_underscores_are_the_same(make_tree: MakeTree) -> None:
    tree = make_tree({"virtio-rng.ko": "rng_core", "rng-core.ko": ""})

    assert names(tree, "virtio_rng") == ["rng_core", "virtio_rng"]
    assert names(tree, "virtio-rng") == ["rng_core", "virtio_rng"]


def test_builtin_drivers_are_neither_loaded_nor_missing(make_tree: MakeTree) -> None:
    tree = make_tree({"mem.ko": "virtio-ring"}, builtin=("virtio_ring.ko", "virtio-pci.ko"))

    order, missing = ModuleTree(tree).load_order(["virtio_pci", "mem"])

    assert [module.name for module in order] == ["mem"]
    assert missing == []


def test_missing_modules_are_named(make_tree: MakeTree) -> None:
    order, missing = ModuleTree(make_tree({"a.ko": "gone"})).load_order(["nothing", "a"])

    assert [module.name for module in order] == ["a"]
    assert missing == ["nothing", "gone"]


def test_a_dependency_cycle_ends(make_tree: MakeTree) -> None:
    assert names(make_tree({"a.ko": "b", "b.ko": "a"}), "a") == ["b", "a"]


def test_a_tree_without_modules_order_is_searched(make_tree: MakeTree) -> None:
    assert names(make_tree({"deep/er/a.ko": ""}, order=False), "a") == ["a"]


def test_a_module_added_later_than_modules_order_is_found(
    make_tree: MakeTree, make_module: MakeModule
) -> None:
    tree = make_tree({"a.ko": ""})
    (tree / "updates").mkdir()
    (tree / "updates" / "extra.ko").write_bytes(make_module())

    assert names(tree, "extra") == ["extra"]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".ko", bytes), (".ko.xz", lzma.compress), (".ko.gz", gzip.compress)]
)
def test_compressed_modules(
    make_tree: MakeTree,
    make_module: MakeModule,
    suffix: str,
    compress: Callable[[bytes], bytes],
) -> None:
    tree = make_tree({"a.ko": ""})
    (tree / "kernel" / "a.ko").unlink()
    (tree / "kernel" / f"a{suffix}").write_bytes(compress(make_module(release="5.0")))

    [module] = ModuleTree(tree).load_order(["a"])[0]

    assert module.data == make_module(release="5.0")
    assert module.release == "5.0"


@pytest.mark.parametrize("suffix", ["xz", "gz"])
def test_damaged_compression_is_an_image_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.ko.{suffix}"
    path.write_bytes(b"rubbish")
    with pytest.raises(ImageError, match=str(path)):
        read_module(path)


def test_zstd_without_a_decompressor_names_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "a.ko.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd")

    with pytest.raises(HostError, match=r"pip install backports\.zstd"):
        read_module(path)


def test_zstd_uses_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeZstd:
        class ZstdError(Exception):
            pass

        @staticmethod
        def decompress(data: bytes) -> bytes:
            return data[::-1]

    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", FakeZstd)
    path = tmp_path / "a.ko.zst"
    path.write_bytes(b"cba")

    assert read_module(path) == b"abc"
