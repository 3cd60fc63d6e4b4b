"""Doorbells over KVM: a guest write becomes an eventfd count and a callback on the loop.

The vCPU that rings does not leave the kernel (reference F.5).
"""

from __future__ import annotations

from collections.abc import Callable

from minivmm.kvm.hypervisor import HypervisorVm
from minivmm.loop import EventLoop


class KvmDoorbells:
    """The bus.Doorbells of a machine."""

    def __init__(self, vm: HypervisorVm, loop: EventLoop) -> None:
        self._vm = vm
        self._loop = loop
        self._closers: dict[int, Callable[[], None]] = {}

    def bind(self, gpa: int, length: int, ring: Callable[[], None]) -> Callable[[], None]:
        """Call `ring` on the loop for writes of `length` bytes at `gpa`; returns the unbinder."""
        fd, close = self._loop.watch_eventfd(ring)
        self._closers[fd] = close
        self._vm.set_ioeventfd(fd, gpa, length)

        def unbind() -> None:
            self._vm.set_ioeventfd(fd, gpa, length, assign=False)
            del self._closers[fd]
            close()

        return unbind

    def close(self) -> None:
        """Stop listening: nothing rings any more, whatever a guest still had counted."""
        for close in self._closers.values():
            close()
        self._closers.clear()
