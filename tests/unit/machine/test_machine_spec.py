"""MachineSpec: what is refused and how, devices from the command line, JSON there and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivmm.boot.numa import NumaDistance, NumaNode
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.errors import UsageError
from minivmm.machine_spec import (
    MAX_CPUS,
    ONLINE_POLICIES,
    MachineSpec,
    parse_device,
    spec_from_json,
    spec_to_json,
)
from minivmm.units import GIB, MIB

WORDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=20)


@st.composite
def device_specs(draw: st.DrawFn, identifier: str) -> VirtioMemSpec:
    block = MIB << draw(st.integers(0, 8))
    blocks = draw(st.integers(1, 1000))
    return VirtioMemSpec(
        id=identifier,
        size=block * blocks,
        requested_size=block * draw(st.integers(0, blocks)),
        block_size=block,
        memaddr=draw(st.none() | st.integers(1, 1000).map(lambda n: n * block)),
        node=draw(st.integers(0, 63)),
        unplugged_inaccessible=draw(st.sampled_from(["auto", "on", "off"])),
    )


@st.composite
def machine_specs(draw: st.DrawFn) -> MachineSpec:
    optional = st.none() | WORDS
    return MachineSpec(
        name=draw(optional),
        memory=draw(st.integers(0, 1 << 50)),
        cpus=draw(st.integers(1, MAX_CPUS)),
        kernel=draw(optional),
        modules=draw(optional),
        initrd=draw(optional),
        online=draw(st.sampled_from(ONLINE_POLICIES)),
        append=tuple(draw(st.lists(WORDS, max_size=3))),
        devices=tuple(draw(device_specs(f"m{n}")) for n in range(draw(st.integers(0, 3)))),
    )


def refusal(data: Any) -> str:
    with pytest.raises(UsageError) as caught:
        spec_from_json(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=60, deadline=None)
@given(machine_specs())
def test_json_there_and_back(spec: MachineSpec) -> None:
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


def test_json_as_a_person_writes_it() -> None:
    spec = spec_from_json(
        {
            "memory": "2G",
            "cpus": 2,
            "devices": [{"driver": "virtio-mem-pci", "size": "4G", "requested-size": "1G"}],
        }
    )

    assert (spec.memory, spec.cpus) == (2 * GIB, 2)
    assert spec.devices == (VirtioMemSpec(size=4 * GIB, requested_size=GIB),)


def test_defaults() -> None:
    assert spec_from_json({}) == MachineSpec()
    assert spec_from_json({"schema": 1}) == MachineSpec()


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"memroy": 1}, ["memroy", "did you mean memory?"]),
        ({"memory": "much"}, ["config: memory", "much"]),
        ({"memory": None}, ["config: memory", "None"]),
        ({"cpus": True}, ["config: cpus", "True"]),
        ({"cpus": 0}, ["cpus 0", "1 to 64"]),
        ({"cpus": 65}, ["cpus 65", "1 to 64"]),
        ({"cpus": -1}, ["config: cpus", "-1"]),
        ({"online": "maybe"}, ["config: online", "maybe", "online_movable"]),
        ({"append": "quiet"}, ["append", "'quiet'", "list of texts"]),
        ({"append": [1]}, ["append", "[1]", "list of texts"]),
        ({"numa": 5}, ["numa", "5", "list"]),
        ({"numa": ["node"]}, ["numa entry", "'node'", '"type": "node"']),
        ({"numa": [{"nodeid": 0}]}, ["numa entry", '"type": "node"']),
        ({"numa": [{"type": "nodes"}]}, ["'nodes'", "did you mean node?"]),
        ({"numa": [{"type": "node", "cpu": 0}]}, ["'cpu'", "did you mean cpus?"]),
        ({"numa": [{"type": "node", "cpus": [True]}]}, ["numa node: cpus", "True"]),
        ({"numa": [{"type": "node", "cpus": 0, "mem": "1G"}]}, ["1G", "512M", "mem=512M in"]),
        ({"devices": 5}, ["devices", "5", "list"]),
        ({"devices": None}, ["devices", "None", "list"]),
        ({"devices": {"driver": "virtio-mem-pci"}}, ["devices", "list"]),
        ({"devices": ["virtio-mem-pci"]}, ["device", "'virtio-mem-pci'", '"driver"']),
        ({"devices": [{"size": 1}]}, ["device", '"driver"']),
        ({"devices": [{"driver": "virtio-men-pci"}]}, ["virtio-men-pci", "did you mean"]),
        ({"devices": [{"driver": "virtio-mem-pci"}]}, ["virtio-mem-pci: size= is required"]),
    ],
)
def test_what_json_is_refused(data: Any, parts: list[str]) -> None:
    message = refusal(data)

    assert all(part in message for part in parts), message


def test_two_devices_of_one_id() -> None:
    device = {"driver": "virtio-mem-pci", "size": "1G", "id": "twin"}

    message = refusal({"devices": [device, device]})

    assert "'twin'" in message
    assert "id=" in message


NODES = [
    {"type": "node", "cpus": "0-1", "mem": "1G"},
    {"type": "node", "nodeid": 1, "cpus": [2, "3"], "mem": GIB},
    {"type": "dist", "src": 0, "dst": 1, "val": 31},
]


def test_numa_there_and_back() -> None:
    spec = spec_from_json({"memory": "2G", "cpus": 4, "numa": NODES})

    assert spec.numa == (
        NumaNode(cpus=(0, 1), mem=GIB),
        NumaNode(nodeid=1, cpus=(2, 3), mem=GIB),
        NumaDistance(src=0, dst=1, val=31),
    )
    printed = json.loads(json.dumps(spec_to_json(spec)))
    assert printed["numa"] == [
        {"type": "node", "cpus": [0, 1], "mem": GIB},
        {"type": "node", "nodeid": 1, "cpus": [2, 3], "mem": GIB},
        {"type": "dist", "src": 0, "dst": 1, "val": 31},
    ]
    assert spec_from_json(printed) == spec


def test_a_device_belongs_to_a_declared_node() -> None:
    device = {"driver": "virtio-mem-pci", "size": "1G", "node": 2}
    machine = {"memory": "2G", "cpus": 4, "numa": NODES}

    message = refusal({**machine, "devices": [device]})

    assert all(part in message for part in ("vmem0: node 2", "0 to 1", "--numa node,nodeid=2"))
    assert spec_from_json({**machine, "devices": [{**device, "node": 1}]}).devices[0].node == 1


def test_devices_get_free_ids() -> None:
    first = parse_device("virtio-mem-pci,size=1G")
    second = parse_device("virtio-mem-pci,size=1G", (first.id,))
    third = parse_device("virtio-mem-pci,size=1G", ("vmem1", "vmem0", "other"))

    assert [first.id, second.id, third.id] == ["vmem0", "vmem1", "vmem2"]
    assert parse_device("virtio-mem-pci,size=1G,id=mine", ("vmem0",)).id == "mine"


def test_every_property_of_a_device() -> None:
    device = parse_device(
        "virtio-mem-pci,id=m,size=8G,requested-size=1G,block-size=4M,memaddr=0x200000000,"
        "node=1,unplugged-inaccessible=on"
    )

    assert device == VirtioMemSpec(
        id="m",
        size=8 * GIB,
        requested_size=GIB,
        block_size=4 * MIB,
        memaddr=8 * GIB,
        node=1,
        unplugged_inaccessible="on",
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("virtio-mem,size=1G", ["'virtio-mem'", "did you mean virtio-mem-pci?"]),
        ("", ["''", "valid: virtio-mem-pci"]),
        ("virtio-mem-pci", ["size= is required"]),
        ("virtio-mem-pci,size=", ["size"]),
        ("virtio-mem-pci,size=big", ["virtio-mem-pci: size", "big"]),
        ("virtio-mem-pci,size=1G,size=2G", ["size=", "twice"]),
        ("virtio-mem-pci,sise=1G", ["'sise'", "did you mean size?"]),
        ("virtio-mem-pci,size=1G,=3", ["empty key", "key=value"]),
        ("virtio-mem-pci,size=1G,id=", ["virtio-mem-pci: id"]),
        ("virtio-mem-pci,size=3M", ["vmem0: size", "block-size", "nearest: 2M, 4M"]),
        ("virtio-mem-pci,size=1G,requested-size=2G", ["requested-size 2G", "lower"]),
        ("virtio-mem-pci,size=1G,node=64", ["node 64", "0 to 63"]),
    ],
)
def test_what_devices_are_refused(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_device(text)

    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message
