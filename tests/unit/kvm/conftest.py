"""Tiny guests on this machine's /dev/kvm, of whatever kind: enough for a few instructions."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from minivmm.errors import HostError
from minivmm.kvm.system import System
from minivmm.kvm.vcpu import KICK_SIGNAL, Vcpu, install_kick_handler
from minivmm.kvm.vm import Vm
from minivmm.memory.region import Region
from minivmm.spec.x86 import CpuState, Regs, Segment, Sregs, Table

RAM = 0x8000
"""Bytes of RAM at 0; what lies behind is MMIO that real-mode code can reach."""
CODE = 0x1000
STACK = 0x7000


def real_mode(rip: int = CODE) -> CpuState:
    """16-bit code in flat segments, interrupts off."""
    code = Segment(limit=0xFFFF, type=11, g=0)
    data = Segment(limit=0xFFFF, type=3, g=0)
    task = Segment(limit=0xFFFF, type=11, s=0, g=0)
    return CpuState(
        Regs(rip=rip, rsp=STACK), Sregs(code, data, task, idt=Table(limit=0x3FF), cr0=0x10)
    )


def long_mode() -> CpuState:
    """64-bit code under an identity mapping of the first 2 MiB; tables at 2000h, 3000h, 4000h."""
    code = Segment(selector=0x10, type=11, l=1)
    data = Segment(selector=0x18, type=3, db=1)
    task = Segment(limit=0x67, selector=0x20, type=11, s=0, g=0)
    return CpuState(
        Regs(rip=CODE, rsp=STACK, rsi=0x1234, rbx=0x55),
        Sregs(code, data, task, cr0=0x8000_0011, cr3=0x2000, cr4=0x20, efer=0x500),
    )


@dataclass
class TinyGuest:
    """A VM with RAM at 0 and one vCPU that starts at CODE."""

    system: System
    vm: Vm
    ram: Region
    state: CpuState
    vcpus: list[Vcpu] = field(default_factory=list)

    @property
    def cpu(self) -> Vcpu:
        return self.vcpus[0]

    def poke(self, gpa: int, data: bytes) -> None:
        self.ram.view(gpa, len(data))[:] = data

    def peek(self, gpa: int, length: int) -> bytes:
        return bytes(self.ram.view(gpa, length))

    def reset(self) -> None:
        self.cpu.reset(self.state)

    def add_cpu(self, state: CpuState | None) -> Vcpu:
        vcpu = self.vm.create_vcpu(len(self.vcpus))
        vcpu.initialise(self.system.supported_cpuid(), state)
        self.vcpus.append(vcpu)
        return vcpu


@pytest.fixture
def system() -> Iterator[System]:
    try:
        opened = System()
    except HostError as error:
        pytest.skip(f"no usable KVM here: {error}")
    yield opened
    opened.close()


@pytest.fixture
def boot(system: System) -> Iterator[Callable[..., TinyGuest]]:
    """boot(code, state=real mode) -> a guest about to execute `code`."""
    made: list[TinyGuest] = []
    before = signal.getsignal(KICK_SIGNAL)
    install_kick_handler()

    def make(code: bytes, state: CpuState | None = None) -> TinyGuest:
        guest = TinyGuest(system, system.create_vm(), Region(RAM), state or real_mode())
        made.append(guest)
        guest.vm.set_memory_region(0, 0, RAM, guest.ram.hva)
        guest.poke(CODE, code)
        guest.add_cpu(guest.state)
        return guest

    yield make
    for guest in made:
        guest.vm.close()
        guest.ram.close()
    signal.signal(KICK_SIGNAL, before)


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], None]], threading.Thread]]:
    """in_thread(work) -> a started thread, which must end within the test."""
    threads: list[threading.Thread] = []

    def start(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture
def boot64(boot: Callable[..., TinyGuest]) -> Callable[[bytes], TinyGuest]:
    """boot64(code) -> a guest about to execute `code` in 64-bit mode."""

    def make(code: bytes) -> TinyGuest:
        guest = boot(code, long_mode())
        for gpa, entry in ((0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x83)):
            guest.poke(gpa, entry.to_bytes(8, "little"))
        return guest

    return make
