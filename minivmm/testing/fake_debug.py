"""The debugging side of the fake vCPU: registers in a dictionary, traps and watches as on hardware.

Linear addresses are guest physical ones, but for those of KERNEL on: they are so much above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from minivmm.kvm import abi, registers
from minivmm.kvm.debug import DebugEvent, Watch
from minivmm.kvm.debug_abi import DR6_SINGLE_STEP, VECTOR_BP, VECTOR_DB, GuestDebug
from minivmm.testing import host_memory

KERNEL = 0xFFFF_FFFF_8000_0000
"""Linear address of gpa 0, as Linux has it."""

_INT3 = 0xCC
_OUT = 0xE6


class Memory(Protocol):
    """What it needs of its VM."""

    def hva(self, gpa: int, size: int) -> int | None:
        """Host address of `size` bytes at `gpa`, if a slot has them."""


class FakeDebug:
    """As minivmm.kvm.debug.VcpuDebug, of which `reports_int3` and `reports_watches` may be off."""

    def __init__(self, memory: Memory, run_page: abi.KvmRun) -> None:
        names = (
            *registers.GENERAL,
            "eflags",
            *registers.SEGMENTS,
            *("fs_base", "gs_base", "k_gs_base"),
            *registers.CONTROL,
            *registers.X87,
            *registers.X87_CONTROL,
            *registers.XMM,
            "mxcsr",
        )
        self.values: dict[str, int] = dict.fromkeys(names, 0) | {"rip": 0x1000, "eflags": 2}
        self.flags = GuestDebug(0)
        self.watches: tuple[Watch | None, ...] = ()
        self.injected: list[GuestDebug] = []
        """Exceptions given to the guest."""
        self.pauses = 0
        """How often the guest was told of one."""
        self.reports_int3 = True
        self.reports_watches = True
        self._memory = memory
        self._event = DebugEvent(0, 0, 0)

    def registers(self) -> dict[str, int]:
        """A copy."""
        return dict(self.values)

    def set_registers(self, changes: Mapping[str, int]) -> None:
        """Any of them, in contrast to KVM."""
        self.values.update(changes)

    def translate(self, address: int) -> int | None:
        """By the rule above; no other address is mapped."""
        gpa = address - KERNEL if address >= KERNEL else address
        return gpa if self._memory.hva(gpa, 1) is not None else None

    def control(self, flags: GuestDebug, watches: Sequence[Watch | None] = ()) -> None:
        """Remember it; an injection is done at once."""
        injection = flags & (GuestDebug.INJECT_BP | GuestDebug.INJECT_DB)
        if injection:
            self.injected.append(injection)
        self.flags, self.watches = flags & ~injection, tuple(watches)

    def event(self) -> DebugEvent:
        """The last one."""
        return self._event

    def tell_of_pause(self) -> None:
        """Count it."""
        self.pauses += 1

    # -- for the fake vCPU -------------------------------------------------------------------------

    def execute(self, address: int) -> int | None:
        """Length of the instruction at `address`; None if it ends in Exit.DEBUG before."""
        slot = self._slot(address)
        if slot is not None:
            self._event = DebugEvent(VECTOR_DB, address, 1 << slot)
            return None
        code = self._byte(address)
        if code == _INT3 and self.reports_int3 and self.flags & GuestDebug.USE_SW_BP:
            self._event = DebugEvent(VECTOR_BP, address, 0)
            return None
        return 2 if code == _OUT else 1

    def operand(self, address: int) -> int:
        """The second byte of an instruction."""
        return self._byte(address + 1)

    def after(self, address: int) -> int | None:
        """An instruction is over, `address` is next: Exit.DEBUG if that was a step."""
        self.values["rip"] = address
        if self.flags & GuestDebug.SINGLESTEP:
            self._event = DebugEvent(VECTOR_DB, address, DR6_SINGLE_STEP)
            return abi.Exit.DEBUG
        return None

    def _slot(self, address: int) -> int | None:
        if self.reports_watches and self.flags & GuestDebug.USE_HW_BP:
            for slot, watch in enumerate(self.watches):
                if watch is not None and watch.address == address:
                    return slot
        return None

    def _byte(self, address: int) -> int:
        gpa = self.translate(address)
        hva = None if gpa is None else self._memory.hva(gpa, 1)
        return 0x90 if hva is None else host_memory.peek(hva, 1)[0]
