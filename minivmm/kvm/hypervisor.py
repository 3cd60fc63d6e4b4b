"""What the machine asks of a hypervisor: the faces that System, Vm and Vcpu share with the fakes.

Only shapes; what the calls mean is documented where they are implemented (system.py, vm.py,
vcpu.py), and minivmm.testing.fake_kvm imitates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from minivmm.kvm.abi import KvmRun, KvmRunIo, KvmRunMmio
from minivmm.kvm.debug import DebugEvent, Watch
from minivmm.kvm.debug_abi import GuestDebug
from minivmm.spec.x86 import CpuidEntry, CpuState


class HypervisorVcpuDebug(Protocol):
    """The debugging side of a virtual CPU; see kvm/debug.py."""

    def registers(self) -> dict[str, int]:
        """All registers."""

    def set_registers(self, changes: Mapping[str, int]) -> None:
        """Change some."""

    def translate(self, address: int) -> int | None:
        """The gpa of a linear address."""

    def control(self, flags: GuestDebug, watches: Sequence[Watch | None] = ()) -> None:
        """Choose what ends in Exit.DEBUG."""

    def event(self) -> DebugEvent:
        """Details of an Exit.DEBUG."""

    def tell_of_pause(self) -> None:
        """Have the guest's watchdogs forgive a pause."""


class HypervisorVcpu(Protocol):
    """One virtual CPU; see kvm/vcpu.py and, for the exit accessors, kvm/exits.py."""

    index: int

    @property
    def debug(self) -> HypervisorVcpuDebug:
        """Its debugging side."""

    run_page: KvmRun
    io: KvmRunIo
    mmio: KvmRunMmio

    def initialise(self, cpuid: Sequence[CpuidEntry], state: CpuState | None) -> None:
        """Make and remember the power-on state."""

    def reset(self, state: CpuState | None) -> None:
        """Back to the power-on state."""

    @property
    def msr_indices(self) -> tuple[int, ...]:
        """The MSRs that are saved of it."""

    @property
    def tsc_khz(self) -> int:
        """Rate of its time stamp counter."""

    @property
    def scales_tsc(self) -> bool:
        """Whether that can be another than the host's."""

    def save_state(self) -> bytes:
        """All that a guest can change in it."""

    def load_state(self, data: bytes) -> None:
        """Take such a state over."""

    def run(self) -> int:
        """Run until an exit; returns an abi.Exit value or abi.EXIT_EFAULT."""

    def finish_access(self) -> None:
        """Finish the instruction of the last exit."""

    def kick(self) -> None:
        """Have run() return soon."""

    def io_data(self) -> memoryview:
        """Data bytes of an Exit.IO."""

    def mmio_value(self) -> int:
        """Value that an Exit.MMIO writes."""

    def set_mmio_value(self, value: int) -> None:
        """Answer the read of an Exit.MMIO."""

    def instruction_pointer(self) -> int:
        """RIP at the last exit."""

    def describe(self) -> str:
        """One line of registers."""


class HypervisorVm(Protocol):
    """One virtual machine; see kvm/vm.py."""

    def set_memory_region(
        self,
        slot: int,
        gpa: int,
        size: int,
        hva: int,
        *,
        readonly: bool = False,
        logged: bool = False,
    ) -> None:
        """Set or delete a memory slot."""

    def dirty_pages(self, slot: int, size: int) -> bytearray:
        """Which pages of a logged slot were written."""

    def create_vcpu(self, index: int) -> HypervisorVcpu:
        """A new vCPU."""

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Drive an interrupt pin."""

    def set_irqfd(
        self, fd: int, gsi: int, *, assign: bool = True, resample: int | None = None
    ) -> None:
        """Tie an eventfd to an interrupt."""

    def show_vfio(self, fd: int, *, shown: bool = True) -> None:
        """Tell KVM of a VFIO group or device."""

    def set_routes(self, msi: Mapping[int, tuple[int, int]]) -> None:
        """Replace the interrupt routes."""

    def set_ioeventfd(self, fd: int, address: int, length: int, *, assign: bool = True) -> None:
        """Tie guest writes to an eventfd."""

    def clock(self) -> float | None:
        """The guest's kvmclock in seconds."""

    def save_state(self) -> bytes:
        """Interrupt controllers and clock."""

    def load_state(self, data: bytes) -> None:
        """Take such a state over."""

    def reset_irqchips(self) -> None:
        """Interrupt controllers back to their first state."""

    def close(self) -> None:
        """End the virtual machine."""


class Hypervisor(Protocol):
    """The host's KVM; see kvm/system.py."""

    def check(self, capability: int) -> int:
        """What the host says about a capability."""

    def supported_cpuid(self) -> list[CpuidEntry]:
        """CPUID leaves the host can give."""

    def create_vm(self) -> HypervisorVm:
        """A new virtual machine."""

    def close(self) -> None:
        """Close the device."""
