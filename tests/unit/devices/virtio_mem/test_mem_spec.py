"""VirtioMemSpec: what users may write, and the one line they get for what they may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import HostError, UsageError
from minivmm.options import describe, from_mapping, parse_pairs, to_mapping
from minivmm.units import GIB, MIB


def parse(text: str) -> VirtioMemSpec:
    driver, values = parse_pairs(text)
    return from_mapping(VirtioMemSpec, values, what=driver)


def test_size_alone_is_enough() -> None:
    spec = parse("virtio-mem-pci,size=4G")

    assert spec == VirtioMemSpec(
        id="vmem0",
        size=4 * GIB,
        requested_size=0,
        block_size=2 * MIB,
        memaddr=None,
        node=0,
        unplugged_inaccessible="auto",
    )


def test_every_property_has_the_name_that_qemu_gives_it() -> None:
    spec = parse(
        "virtio-mem-pci,id=vm1,size=8G,requested-size=1G,block-size=4M,memaddr=0x140000000,node=3,"
        "unplugged-inaccessible=on"
    )

    assert spec == VirtioMemSpec(
        id="vm1",
        size=8 * GIB,
        requested_size=GIB,
        block_size=4 * MIB,
        memaddr=0x1_4000_0000,
        node=3,
        unplugged_inaccessible="on",
    )


def test_spec_survives_json() -> None:
    spec = parse("virtio-mem-pci,size=8G,requested-size=1G,memaddr=5G")

    values = json.loads(json.dumps(to_mapping(spec)))

    assert from_mapping(VirtioMemSpec, values, what="config") == spec


def test_help_shows_defaults() -> None:
    shown = {name: default for name, _, default in describe(VirtioMemSpec)}

    assert shown["size"] == "required"
    assert shown["block-size"] == "automatic"
    assert shown["memaddr"] == "automatic"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("requested-size=1G", "size= is required"),
        ("size=0", "size 0 leaves nothing to plug"),
        ("size=3M", r"size 3M is not a multiple of block-size 2M \(nearest: 2M, 4M\)"),
        ("size=4G,requested-size=3", r"requested-size 3 is not a multiple .*\(nearest: 0, 2M\)"),
        ("size=1G,requested-size=2G", "requested-size 2G exceeds size 1G"),
        ("size=1G,block-size=512K", "block-size 512K is not a power of two of at least 1M"),
        ("size=3G,block-size=3M", "block-size 3M is not a power of two"),
        ("size=3G,block-size=3M", r"nearest: 2M, 4M"),
        ("size=1G,block-size=512K", r"nearest: 1M\)"),
        ("size=32T", "size 32T exceeds .* 16T or less"),
        ("size=1G,backing=ssd", "'ssd' is not one of anon, memfd, file, hugetlb"),
        ("size=1G,backing=file", "backing=file needs path="),
        ("size=1G,path=/tmp/x", "path=/tmp/x is for backing=file"),
        ("size=1G,page-size=2M", "page-size=2M is for backing=hugetlb"),
        ("size=1G,backing=hugetlb,page-size=3M", "is no size of huge pages"),
        ("size=2G,backing=hugetlb,page-size=1G,block-size=2M", r"at least 1G .*\(nearest: 1G\)"),
        ("size=1G,block-size=1M,thp=on", "thp=on would populate unplugged neighbours"),
        ("size=1G,backing=memfd,unplugged-inaccessible=off", "does not go with backing=memfd"),
        ("size=1G,protect=maybe", "'maybe' is not one of off, report, stop, kill"),
        ("size=1G,prealloc=maybe", "'maybe' is neither on nor off"),
        ("size=1G,memaddr=0x100100000", "memaddr 0x100100000 .*nearest: 0x100000000, 0x100200000"),
        ("size=1G,node=64", "node 64 .* use 0 to 63"),
        ("size=1G,unplugged-inaccessible=maybe", "'maybe' is not one of auto, on, off"),
        ("size=1GB", "ambiguous"),
        ("size=1G,requested_size=1G", "did you mean requested-size"),
    ],
)
def test_nonsense_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(f"virtio-mem-pci,{text}")

    assert "\n" not in str(caught.value)


def test_error_names_the_device() -> None:
    with pytest.raises(UsageError, match=r"^vm7: "):
        parse("virtio-mem-pci,id=vm7,size=3M")


@pytest.mark.parametrize("text", ["block-size=1M,size=3M", "block-size=1G,size=1G", "size=2M"])
def test_extremes_are_accepted(text: str) -> None:
    assert parse(f"virtio-mem-pci,{text}").size > 0


def spec(**fields: object) -> VirtioMemSpec:
    return VirtioMemSpec(**({"size": 4 * GIB} | fields))  # type: ignore[arg-type]


def test_blocks_are_huge_pages_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minivmm.devices.virtio_mem.spec.thp_size", lambda: 4 * MIB)
    assert spec().block_size == 4 * MIB
    monkeypatch.setattr("minivmm.devices.virtio_mem.spec.thp_size", lambda: None)
    assert spec().block_size == 2 * MIB
    assert spec(block_size=MIB).block_size == MIB
    assert spec(backing="hugetlb", page_size=GIB).block_size == GIB


@pytest.mark.parametrize(
    ("fields", "populates", "insists", "thp"),
    [
        ({}, False, False, "on"),
        ({"prealloc": True}, True, False, "on"),
        ({"block_size": MIB}, False, False, "off"),
        ({"thp": "madvise-default"}, False, False, "madvise-default"),
        ({"backing": "memfd"}, False, True, "on"),
        ({"backing": "hugetlb"}, True, True, "on"),
        ({"backing": "hugetlb", "prealloc": False}, False, True, "on"),
        ({"unplugged_inaccessible": "on"}, False, True, "on"),
        ({"unplugged_inaccessible": "off"}, False, False, "on"),
    ],
)
def test_what_is_not_said_follows_from_the_backing(
    fields: dict[str, object], populates: bool, insists: bool, thp: str
) -> None:
    made = spec(**fields)

    assert (made.populates, made.insists, made.host_memory.thp) == (populates, insists, thp)


@pytest.mark.parametrize("backing", ["anon", "memfd"])
def test_only_who_asks_for_huge_pages_is_refused_on_a_host_without(
    backing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivmm.memory.hugepages.MM", tmp_path)

    spec(backing=backing).check_host()
    with pytest.raises(HostError, match="thp=on: this host's kernel has no transparent huge pages"):
        spec(backing=backing, thp="on").check_host()


def test_a_spec_survives_json() -> None:
    for made in (spec(), spec(backing="hugetlb", page_size=GIB), spec(prealloc=True, thp="off")):
        assert from_mapping(VirtioMemSpec, to_mapping(made), what="test") == made
