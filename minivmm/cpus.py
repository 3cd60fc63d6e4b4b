"""The vCPUs of a machine: how many, what CPUID tells each of them, and how the first one begins."""

from __future__ import annotations

from collections.abc import Sequence

from minivmm.board import Board
from minivmm.boot.cpuid import guest_cpuid
from minivmm.kvm.abi import Cap
from minivmm.kvm.hypervisor import Hypervisor, HypervisorVcpu, HypervisorVm
from minivmm.spec.x86 import CpuidEntry, CpuState


def leaves_of(
    system: Hypervisor, supported: Sequence[CpuidEntry], board: Board, count: int
) -> list[list[CpuidEntry]]:
    """What CPUID tells each of `count` vCPUs on a host that has the leaves `supported`."""
    deadline_timer = bool(system.check(Cap.TSC_DEADLINE_TIMER))
    return [
        guest_cpuid(
            supported,
            index=index,
            count=board.numa.socket_cpus,
            phys_bits=board.address_map.phys_bits,
            tsc_deadline=deadline_timer,
        )
        for index in range(count)
    ]


def create_vcpus(
    vm: HypervisorVm, leaves: Sequence[Sequence[CpuidEntry]], state: CpuState | None
) -> list[HypervisorVcpu]:
    """A vCPU for each of `leaves`; the first one begins with `state`. Raises HostError."""
    vcpus = [vm.create_vcpu(index) for index in range(len(leaves))]
    for vcpu in vcpus:
        vcpu.initialise(leaves[vcpu.index], state if vcpu.index == 0 else None)
    return vcpus
