"""What a host's KVM really reports to a debugger, found out by a guest of a few instructions.

KVM says that it can do everything where it can do little: KVM's instruction emulator, which runs
all guest code under kvm_pvm, delivers `int3` to the guest, and QEMU's emulation of SVM (7.2)
intercepts neither `int3` nor the debug registers that a guest is entered with.
"""

from __future__ import annotations

from contextlib import ExitStack
from ctypes import addressof, c_char
from mmap import mmap

from minivmm.kvm import abi
from minivmm.kvm.debug import DebugFeatures, Watch
from minivmm.kvm.debug_abi import GuestDebug
from minivmm.kvm.hypervisor import Hypervisor

PAGE_SIZE = 0x1000
PAGE = 0xFFFF_F000
"""gpa of the page with the reset vector, where a new vCPU starts in real mode."""
VECTOR = 0xFF0
"""Where in it."""

_INT3 = bytes.fromhex("cc e6eb")  # int3; out 0ebh,al
_NOPS = bytes.fromhex("90 90 e6eb")  # nop; nop; out 0ebh,al

_STOPS_WITHIN = 4
"""Exits after which a guest that was not stopped has surely passed."""


def probe(system: Hypervisor) -> DebugFeatures:
    """Try each kind of stop. Raises HostError if KVM cannot debug guests at all."""
    return DebugFeatures(
        software=_reports(system, _INT3, GuestDebug.USE_SW_BP, None),
        hardware=_reports(system, _NOPS, GuestDebug.USE_HW_BP, Watch(PAGE + VECTOR + 1)),
        block_interrupts=bool(system.check(abi.Cap.SET_GUEST_DEBUG2) & GuestDebug.BLOCKIRQ),
    )


def _reports(system: Hypervisor, code: bytes, flags: GuestDebug, watch: Watch | None) -> bool:
    """Does `code`, run from the reset vector, end in Exit.DEBUG before it does anything else?"""
    with ExitStack() as owned:
        vm = system.create_vm()
        owned.callback(vm.close)
        page = mmap(-1, PAGE_SIZE)  # unmapped with its last reference, after the VM's end
        page[VECTOR : VECTOR + len(code)] = code
        vm.set_memory_region(0, PAGE, PAGE_SIZE, addressof(c_char.from_buffer(page)))
        vcpu = vm.create_vcpu(0)
        vcpu.debug.control(GuestDebug.ENABLE | flags, (watch,))
        # An interruption is nobody's answer, and may come at any time.
        reasons = (vcpu.run() for _ in range(_STOPS_WITHIN))
        reason = next((one for one in reasons if one != abi.Exit.INTR), abi.Exit.INTR)
        return reason == abi.Exit.DEBUG
