"""Saved state of a vCPU, and of what KVM keeps for the VM: interrupt controllers and clock.

There is no PIT. Interrupt routes, irqfds and ioeventfds are not in it either: they are made again
by the devices that own them. What KVM itself refuses of a state is told as BadState.

Guest time goes on from where it was saved: kvmclock and time stamp counters continue with the
values that they had, however long ago that was.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from ctypes import byref
from typing import Any

from minivmm.errors import BadState, HostError
from minivmm.kvm import abi, saved_abi
from minivmm.kvm.ioctl import Ioctl, call
from minivmm.kvm.pieces import MP_STATE, VcpuTraits, get_piece, get_pieces, pieces
from minivmm.kvm.state import read_msrs, set_state
from minivmm.saved import Form, build, parse, require
from minivmm.spec.platform import IOAPIC_BASE

_VCPU = Form("minivmm.kvm.saved_forms", "VCPU")
_VM = Form("minivmm.kvm.saved_forms", "VM")

CHIPS = (abi.CHIP_PIC_MASTER, abi.CHIP_PIC_SLAVE, abi.CHIP_IOAPIC)
"""The interrupt controllers that KVM keeps for the VM, in the order in which they are saved."""

CHIP_SIZE = abi.KvmIrqchip.chip.size
"""Bytes of the state of one."""


def save_vcpu(fd: int, traits: VcpuTraits, msrs: Sequence[int]) -> bytes:
    """State of the vCPU that is `fd`, which has finished its last access. Raises HostError."""
    values = get_pieces(fd, traits)
    return build(
        _VCPU,
        tsc_khz=tsc_khz(fd),
        pieces=[{"name": name.encode(), "value": bytes(value)} for name, value in values.items()],
        msrs=[{"index": index, "value": value} for index, value in read_msrs(fd, msrs).items()],
    )


def load_vcpu(fd: int, traits: VcpuTraits, msrs: Sequence[int], name: str, data: bytes) -> None:
    """Take a state over; `msrs` are those that a guest can change, in the order to write them.

    Guest memory is there, its content need not be. Raises BadState.
    """
    state = parse(name, _VCPU, data)
    values = _values(traits, name, [(one.name, one.value) for one in state.pieces])
    written = _msrs(msrs, name, [(one.index, one.value) for one in state.msrs])
    try:
        if traits.scales_tsc and state.tsc_khz not in (0, tsc_khz(fd)):
            call(fd, Ioctl.SET_TSC_KHZ, state.tsc_khz, to=f"run a TSC at {state.tsc_khz} kHz")
        get_piece(fd, MP_STATE)  # as reset does: nothing must wait behind what is set now
        set_state(fd, traits, values, written)
    except HostError as error:
        raise BadState(name, "registers", "refused", str(error)) from error


def tsc_khz(fd: int) -> int:
    """Rate of the vCPU's time stamp counter in kHz; 0 if the host's own is not to be relied on."""
    with suppress(HostError):
        return call(fd, Ioctl.GET_TSC_KHZ, to="ask for the TSC's rate")
    return 0


def save_vm(fd: int) -> bytes:
    """Interrupt controllers and kvmclock of the VM that is `fd`. Raises HostError."""
    chips = [get_chip(fd, chip_id) for chip_id in CHIPS]
    return build(_VM, clock=get_clock(fd), chips=[bytes(chip.chip) for chip in chips])


def load_vm(fd: int, data: bytes) -> None:
    """Take them over, after the vCPUs: an interrupt that waits goes to one. Raises BadState."""
    state = parse("chips", _VM, data)
    ioapic = state.chips[CHIPS.index(abi.CHIP_IOAPIC)]
    base = int.from_bytes(ioapic[:8], "little")
    require(base == IOAPIC_BASE, "chips", "IOAPIC address", hex(base), f"{IOAPIC_BASE:#x} it is")
    clock = saved_abi.KvmClockData(state.clock)
    try:
        for chip_id, content in zip(CHIPS, state.chips, strict=True):
            chip = abi.KvmIrqchip(chip_id, 0, (ctypes.c_uint8 * CHIP_SIZE)(*content))
            call(fd, Ioctl.SET_IRQCHIP, byref(chip), to="set an interrupt controller")
        call(fd, Ioctl.SET_CLOCK, byref(clock), to="set the guest's clock")
    except HostError as error:
        raise BadState("chips", "registers", "refused", str(error)) from error


def get_chip(fd: int, chip_id: int) -> abi.KvmIrqchip:
    """One interrupt controller as it is now. Raises HostError."""
    chip = abi.KvmIrqchip(chip_id)
    call(fd, Ioctl.GET_IRQCHIP, byref(chip), to="read an interrupt controller")
    return chip


def get_clock(fd: int) -> int:
    """The guest's kvmclock, in nanoseconds. Raises HostError."""
    data = saved_abi.KvmClockData()
    call(fd, Ioctl.GET_CLOCK, byref(data), to="read the guest's clock")
    return int(data[0])


def _values(traits: VcpuTraits, name: str, given: Sequence[tuple[bytes, bytes]]) -> dict[str, Any]:
    """The pieces, each there once and of its size."""
    expected = pieces(traits)
    names = [piece.name for piece in expected]
    found = [key.decode("ascii", "replace") for key, _ in given]
    require(found == names, name, "pieces", ", ".join(found), f"this host has {', '.join(names)}")
    values = {}
    for piece, (_, value) in zip(expected, given, strict=True):
        why = f"this host's KVM has {piece.size} bytes"
        require(len(value) == piece.size, name, f"size of {piece.name}", len(value), why)
        values[piece.name] = piece.kind.from_buffer_copy(value)
    return values


def _msrs(
    known: Sequence[int], name: str, given: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The MSRs in the order to write them; only such as the guest could have written itself."""
    values = dict(given)
    require(len(values) == len(given), name, "MSRs", len(given), "one is there twice")
    for index in values:
        require(index in known, name, "MSR", f"{index:#x}", "this host does not have it in guests")
    return [(index, values[index]) for index in known if index in values]
