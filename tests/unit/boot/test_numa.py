"""--numa: what it comes to, and what is refused with which way out (QEMU's -numa node and dist)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.boot.nodes import Node, Topology
from minivmm.boot.numa import NumaDistance, NumaNode, numa_text, parse_numa, resolve
from minivmm.errors import UsageError
from minivmm.memory.layout import Window
from minivmm.units import GIB, MIB


def topology(*texts: str, cpus: int = 4, memory: int = GIB, **devices: int) -> Topology:
    return resolve([parse_numa(text) for text in texts], cpus=cpus, memory=memory, devices=devices)


HALVES = ("node,cpus=0-1,mem=512M", "node,cpus=2-3,mem=512M")


def test_without_entries_all_is_in_node_0() -> None:
    assert topology() == Topology((Node((0, 1, 2, 3), GIB),))
    assert topology(vmem0=2).nodes == (Node((0, 1, 2, 3), GIB), Node((), 0), Node((), 0))


def test_nodes_are_numbered_in_order_or_by_nodeid() -> None:
    first, second = Node((0, 1), 512 * MIB), Node((2, 3), 512 * MIB)

    assert topology(*HALVES).nodes == (first, second)
    assert topology(f"{HALVES[0]},nodeid=1", f"{HALVES[1]},nodeid=0").nodes == (second, first)


def test_cpus_may_be_repeated_with_ranges() -> None:
    nodes = topology("node,cpus=3,cpus=0-1,cpus=1,mem=1G", "node,cpus=2").nodes

    assert [node.cpus for node in nodes] == [(0, 1, 3), (2,)]


def test_cpus_that_nobody_assigned_are_dealt_out_in_turn() -> None:
    nodes = topology("node,mem=1G", "node", "node").nodes

    assert [node.cpus for node in nodes] == [(0, 3), (1,), (2,)]


def test_a_node_may_have_nothing_but_a_device() -> None:
    found = topology(*HALVES, "node,nodeid=2", vmem0=2)

    assert found.nodes[2] == Node((), 0)
    assert len(found.distances) == 3


def test_distances_are_symmetric_unless_both_are_given_and_20_by_default() -> None:
    found = topology(
        *(*HALVES, "node"),
        *("dist,src=1,dst=0,val=11", "dist,src=0,dst=2,val=254", "dist,src=2,dst=0,val=255"),
        "dist,src=1,dst=1,val=10",
    )

    assert found.distances == ((10, 11, 254), (11, 10, 20), (255, 20, 10))


def test_boot_memory_is_cut_at_borders_and_at_the_hole() -> None:
    found = topology("node,mem=2G,cpus=0-3", "node", "node,mem=3G", memory=5 * GIB)

    assert list(found.split((Window(0, 3 * GIB), Window(4 * GIB, 2 * GIB)))) == [
        (0, Window(0, 2 * GIB)),
        (2, Window(2 * GIB, GIB)),
        (2, Window(4 * GIB, 2 * GIB)),
    ]


@pytest.mark.parametrize(
    ("homes", "size"),
    [
        ([(0, 1, 2)], 3),
        ([(0, 1, 2), ()], 3),
        ([(0, 1), (2, 3)], 2),
        ([(0, 1, 2, 3), (4, 5)], 4),
        ([(0, 2), (1, 3)], 1),
        ([(0, 1, 2), (3, 4, 5)], 1),
    ],
)
def test_sockets_do_not_span_nodes(homes: list[tuple[int, ...]], size: int) -> None:
    assert Topology(tuple(Node(cpus, 0) for cpus in homes)).socket_cpus == size


@given(st.lists(st.integers(0, 3), min_size=1, max_size=64))
def test_no_socket_ever_spans_two_nodes(homes: list[int]) -> None:
    nodes = (Node(tuple(i for i, home in enumerate(homes) if home == n), 0) for n in range(4))
    size = Topology(tuple(nodes)).socket_cpus

    assert all(home == homes[i // size * size] for i, home in enumerate(homes))


@given(st.lists(st.integers(0, 63), max_size=9), st.none() | st.integers(0, 63), st.integers(0))
def test_text_there_and_back(cpus: list[int], nodeid: int | None, mem: int) -> None:
    node = NumaNode(nodeid=nodeid, cpus=tuple(sorted(set(cpus))), mem=mem)
    distance = NumaDistance(src=mem, dst=1, val=255)

    assert parse_numa(numa_text(node)) == node
    assert parse_numa(numa_text(distance)) == distance


REFUSED = [
    (["dist,src=0,dst=1,val=20"], ["no node is declared", "--numa node"]),
    (["node,nodeid=64"], ["node 64", "0 to 63"]),
    ([*HALVES, "node,nodeid=1"], ["node 1 is declared twice", "free: 2"]),
    ([HALVES[0], f"{HALVES[1]},nodeid=2"], ["node 2", "node 1 is not", "use nodeid=1"]),
    ([HALVES[0], "node,cpus=2-4,mem=512M"], ["node 1: cpus=4", "0 to 3", "--cpus 5"]),
    ([HALVES[0], "node,cpus=1-3,mem=512M"], ["CPU 1 is in node 0 and in node 1"]),
    (["node,cpus=1,mem=1G"], ["CPUs 0, 2-3 are in no node", "cpus=0,cpus=2-3"]),
    (["node,cpus=3-2,mem=1G"], ["3-2", "2-3"]),
    (["node,cpus=0-65536,mem=1G"], ["65536", "0 to 65535"]),
    (["node,cpus=,mem=1G"], ["numa node: cpus", "''"]),
    (["node,cpus=a,mem=1G"], ["numa node: cpus", "'a'"]),
    (["node", "node"], ["mem of all nodes is 0", "1G", "mem=1G in node 1"]),
    (["node,mem=512M", "node,mem=256M"], ["768M", "1G", "mem=512M in node 1", "-m 768M"]),
    (["node,mem=4G"], ["4G", "1G", "mem=1G in node 0", "-m 4G"]),
    (["node,mem=511M", "node,mem=513M"], ["node 0: mem 511M", "4M", "nearest: 508M, 512M"]),
    (["node,mem=1023M", "node,mem=1M"], ["node 0: mem 1023M", "nearest: 1020M, 1G"]),
    (["node,mem=1024"], ["node 0: mem 1K", "nearest: 0, 4M", "1024 MiB are 1024M"]),
    (["node,mem=1GB"], ["1GB", "1GiB"]),
    (["node,nodeid=0,nodeid=1"], ["nodeid=", "twice"]),
    ([*HALVES, "dist,src=0,dst=2,val=20"], ["from 0 to 2", "node 2", "0 to 1"]),
    ([*HALVES, "dist,src=0,dst=1,val=10"], ["val 10", "11 to 254", "255"]),
    ([*HALVES, "dist,src=0,dst=1,val=256"], ["val 256", "11 to 254", "255"]),
    ([*HALVES, "dist,src=1,dst=1,val=20"], ["from 1 to 1", "val 20", "use 10"]),
    ([*HALVES, *["dist,src=0,dst=1,val=20"] * 2], ["from 0 to 1", "twice"]),
    ([*HALVES, "dist,src=0,dst=1"], ["val= is required"]),
    ([*HALVES, "dist,src=0,dst=1,value=20"], ["'value'", "did you mean val?"]),
    (["cpu,node-id=0"], ["'cpu'", "valid: node, dist"]),
]


@pytest.mark.parametrize(("texts", "parts"), REFUSED)
def test_what_is_refused(texts: list[str], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        topology(*texts)

    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_nearest_values_are_accepted() -> None:
    assert len(topology("node,mem=512M", "node,mem=512M").nodes) == 2
    assert len(topology("node,mem=508M", "node,mem=517M", memory=1025 * MIB).nodes) == 2
    assert len(topology(*HALVES, "dist,src=0,dst=1,val=11").nodes) == 2
    assert len(topology(*["node"] * 63, "node,mem=1G").nodes) == 64


def test_a_device_in_no_node_is_refused() -> None:
    with pytest.raises(UsageError, match="big: node 2 is not declared: use 0 to 1, or add --numa"):
        topology(*HALVES, big=2)
