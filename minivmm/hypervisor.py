"""What a machine needs of a hypervisor: minivmm.kvm is the real one, minivmm.testing has a fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from minivmm.kvm.abi import KvmRun, KvmRunIo, KvmRunMmio
from minivmm.spec.x86 import CpuidEntry, CpuState


class HypervisorVcpu(Protocol):
    """One virtual CPU; kvm.vcpu.Vcpu says what each method does."""

    index: int
    run_page: KvmRun
    io: KvmRunIo
    mmio: KvmRunMmio

    def initialise(self, cpuid: Sequence[CpuidEntry], state: CpuState | None) -> None:
        """CPUID, MSRs, LAPIC; `state` for the boot CPU only."""

    def reset(self, state: CpuState | None) -> None:
        """Back to power-on, then `state`."""

    def run(self) -> int:
        """Run guest code until something needs us; the exit reason."""

    def kick(self) -> None:
        """Make run() return soon, from any thread."""

    def io_data(self) -> memoryview:
        """Data bytes of the current port I/O exit."""

    def mmio_value(self) -> int:
        """What the current MMIO exit writes."""

    def set_mmio_value(self, value: int) -> None:
        """Answer the read of the current MMIO exit."""

    def describe(self) -> str:
        """Registers in one line."""


class HypervisorVm(Protocol):
    """One virtual machine; kvm.vm.Vm says what each method does."""

    def set_memory_region(
        self, slot: int, gpa: int, size: int, hva: int, *, readonly: bool = False
    ) -> None:
        """Set or delete a memslot."""

    def create_vcpu(self, index: int) -> HypervisorVcpu:
        """A new vCPU with APIC id `index`."""

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Assert or release an IOAPIC pin."""

    def set_irqfd(self, fd: int, gsi: int, *, assign: bool = True) -> None:
        """Let an eventfd raise a GSI."""

    def set_routes(self, msi: Mapping[int, tuple[int, int]]) -> None:
        """Replace all MSI routes."""

    def set_ioeventfd(self, fd: int, address: int, length: int, *, assign: bool = True) -> None:
        """Let guest writes raise an eventfd."""

    def reset_irqchips(self) -> None:
        """Interrupt controllers as after creation."""

    def close(self) -> None:
        """Release the VM."""


class HypervisorSystem(Protocol):
    """/dev/kvm; kvm.system.System says what each method does."""

    def supported_cpuid(self) -> list[CpuidEntry]:
        """CPUID leaves that a guest can be given."""

    def create_vm(self) -> HypervisorVm:
        """A new VM with its irqchip."""
