"""The NUMA nodes of a machine, once everything is decided; what users may ask for is in numa.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minivmm.memory.layout import Window


@dataclass(frozen=True)
class Node:
    """A node of the machine: vCPU indexes and bytes of boot memory; both may be none."""

    cpus: tuple[int, ...]
    memory: int


@dataclass(frozen=True)
class Topology:
    """Nodes by number; `distances[src][dst]`, or nothing if the user declared no nodes."""

    nodes: tuple[Node, ...]
    distances: tuple[tuple[int, ...], ...] = ()

    def split(self, ram: Sequence[Window]) -> Iterator[tuple[int, Window]]:
        """(node, window) for all of `ram` (ascending): memory is dealt out from address 0 on."""
        left = list(ram)
        for number, node in enumerate(self.nodes):
            wanted = node.memory
            while wanted and left:
                part = Window(left[0].base, min(wanted, left[0].size))
                wanted -= part.size
                left[0] = Window(part.end, left[0].end - part.end)
                if not left[0].size:
                    del left[0]
                yield number, part

    def cpus_by_node(self) -> Iterator[tuple[int, int]]:
        """(node, vCPU) in this order: Linux numbers its nodes as they first appear in SRAT."""
        return ((number, cpu) for number, node in enumerate(self.nodes) for cpu in node.cpus)

    @property
    def socket_cpus(self) -> int:
        """How many neighbouring vCPUs form a socket, so that no socket spans two nodes.

        The upper bits of its APIC id name a CPU's socket, hence a power of two unless it is all.
        """
        home = {cpu: number for number, cpu in self.cpus_by_node()}
        if len(set(home.values())) == 1:
            return len(home)
        shift = (len(home) - 1).bit_length()
        while any(home[cpu] != home[cpu >> shift << shift] for cpu in home):
            shift -= 1
        return 1 << shift
