"""Guest memory by linear address, and the traps that a debugger has put into guest code.

All of it while the vCPUs are parked. Reading shows code as it was before traps came into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minivmm.errors import GuestAddressError, HostError
from minivmm.kvm.hypervisor import HypervisorVcpu
from minivmm.memory.guest import GuestMemory
from minivmm.memory.libc import PAGE_SIZE

KERNEL_HALF = 1 << 63
"""Linear addresses from here on mean the same on every CPU, in Linux and its like."""

TOP = 1 << 64

INT3 = b"\xcc"

TRAP_PORT = 0xEB
OUT_TRAP = bytes((0xE6, TRAP_PORT))
"""`out TRAP_PORT, al`: stops kernel code on hosts whose KVM does not report `int3`."""


@dataclass(frozen=True)
class _Trap:
    """A trap in guest memory: the gpa of each byte, and what was there before."""

    places: tuple[int, ...]
    original: bytearray


class GuestCode:
    """What a debugger sees of guest memory."""

    def __init__(self, memory: GuestMemory, vcpus: Sequence[HypervisorVcpu]) -> None:
        self._memory = memory
        self._vcpus = vcpus
        self._traps: dict[int, _Trap] = {}
        self.trap = INT3
        """The instruction that stops a vCPU."""

    @property
    def trapped(self) -> bool:
        """There are traps."""
        return bool(self._traps)

    def has_trap(self, address: int) -> bool:
        """There is one at linear `address`."""
        return address in self._traps

    def read(self, cpu: int, address: int, length: int) -> bytes:
        """Up to `length` bytes from linear `address` on, as far as there is memory.

        Raises GuestAddressError if there is none at `address`.
        """
        data = bytearray()
        try:
            for gpa, size in self._pieces(cpu, address, length):
                data += self._memory.read(gpa, size)
                self._overlay(gpa, data, len(data) - size)
        except GuestAddressError:
            if not data:
                raise
        return bytes(data)

    def write(self, cpu: int, address: int, data: bytes) -> None:
        """Store `data` at linear `address`, under the traps. Raises GuestAddressError, and nothing
        is written, if any of it is no memory."""
        pieces = list(self._pieces(cpu, address, len(data)))
        for gpa, size in pieces:
            self._memory.check(gpa, size)
        done = 0
        for gpa, size in pieces:
            piece = bytearray(data[done : done + size])
            for trap in self._traps.values():
                for index, place in enumerate(trap.places):
                    if gpa <= place < gpa + size:
                        trap.original[index] = piece[place - gpa]
                        piece[place - gpa] = self.trap[index]
            self._memory.write(gpa, bytes(piece))
            done += size

    def set_trap(self, cpu: int, address: int) -> None:
        """Stop vCPUs at `address`; harmless when repeated.

        Raises GuestAddressError where there is no memory, HostError where no trap works.
        """
        if address in self._traps:
            return
        if self.trap == OUT_TRAP and address < KERNEL_HALF:
            raise HostError(
                f"no breakpoint at {address:#x}: this host's KVM can stop kernel code only"
            )
        pieces = self._pieces(cpu, address, len(self.trap))
        places = tuple(gpa + at for gpa, size in pieces for at in range(size))
        if any(place in trap.places for trap in self._traps.values() for place in places):
            raise HostError(f"no breakpoint at {address:#x}: it would overlap another")
        original = b"".join(self._memory.read(place, 1) for place in places)
        self._traps[address] = _Trap(places, bytearray(original))
        for place, byte in zip(places, self.trap, strict=True):
            self._memory.write(place, bytes((byte,)))

    def clear_trap(self, address: int) -> None:
        """Put back what was there; if something else is there now (a reset, an unplug), that stays.

        Harmless where there is no trap.
        """
        trap = self._traps.pop(address, None)
        if trap is None:
            return
        try:
            now = b"".join(self._memory.read(place, 1) for place in trap.places)
        except GuestAddressError:
            return
        if now == self.trap:
            for place, byte in zip(trap.places, trap.original, strict=True):
                self._memory.write(place, bytes((byte,)))

    def clear_all(self) -> None:
        """No trap is left in guest memory."""
        for address in list(self._traps):
            self.clear_trap(address)

    def _overlay(self, gpa: int, data: bytearray, start: int) -> None:
        """`data` from `start` on was read at `gpa`: undo traps in it."""
        size = len(data) - start
        for trap in self._traps.values():
            for index, place in enumerate(trap.places):
                at = start + place - gpa
                if gpa <= place < gpa + size and data[at] == self.trap[index]:
                    data[at] = trap.original[index]

    def _pieces(self, cpu: int, address: int, length: int) -> Iterator[tuple[int, int]]:
        """(gpa, size) of the pieces of [address, address + length), one for each page."""
        end = min(address + length, TOP)
        while address < end:
            size = min(end - address, PAGE_SIZE - address % PAGE_SIZE)
            yield self._translate(cpu, address), size
            address += size

    def _translate(self, cpu: int, address: int) -> int:
        """By the page tables of `cpu`; a kernel address by any that has it, as a CPU in user mode
        may have none, nor has one that is not started yet."""
        cpus = [cpu]
        if address >= KERNEL_HALF:
            cpus += (index for index in range(len(self._vcpus)) if index != cpu)
        for index in cpus:
            gpa = self._vcpus[index].debug.translate(address)
            if gpa is not None and self._is_memory(gpa):
                return gpa
        raise GuestAddressError(address, 1, "no memory is mapped there")

    def _is_memory(self, gpa: int) -> bool:
        try:
            self._memory.check(gpa, 1)
        except GuestAddressError:
            return False
        return True
