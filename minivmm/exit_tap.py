"""What is told of vCPU exits while somebody follows them: what it was, and how long it took us."""

from __future__ import annotations

import time
from collections.abc import Callable

from minivmm.kvm.abi import IO_OUT, Exit
from minivmm.kvm.hypervisor import HypervisorVcpu
from minivmm.trace import Detail, Trace
from minivmm.vcpu import VcpuGroup, exit_name

Serve = Callable[[HypervisorVcpu, int], None]


def tell_exits(group: VcpuGroup, trace: Trace) -> None:
    """Have the exits of `group` told to `trace` whenever somebody wants them."""
    plain = group.serve

    def switch(on: bool) -> None:
        group.serve = told(plain, trace) if on else plain

    trace.on_detail(Detail.EXITS, switch)


def told(serve: Serve, trace: Trace) -> Serve:
    """`serve`, but each exit is told when it was served."""

    def serve_told(vcpu: HypervisorVcpu, reason: int) -> None:
        facts = _facts(vcpu, reason)  # now: what is read from a port takes the place of the data
        began = time.monotonic()
        serve(vcpu, reason)
        facts["seconds"] = time.monotonic() - began
        if facts["kind"] in ("io-in", "mmio-read"):
            facts["value"] = _value(vcpu, reason)
        trace.tell(Detail.EXITS, f"vcpu{vcpu.index}", "exit", facts)

    return serve_told


def _facts(vcpu: HypervisorVcpu, reason: int) -> dict[str, object]:
    """Kind and place of an exit, and what it writes; sizes in bytes."""
    if reason == Exit.IO:
        io = vcpu.io
        if io.direction != IO_OUT:
            return {"kind": "io-in", "port": io.port, "size": io.size, "count": io.count}
        value = _value(vcpu, reason)
        facts = {"kind": "io-out", "port": io.port, "size": io.size, "count": io.count}
        return {**facts, "value": value}
    if reason == Exit.MMIO:
        mmio = vcpu.mmio
        if not mmio.is_write:
            return {"kind": "mmio-read", "gpa": mmio.phys_addr, "size": mmio.len}
        value = _value(vcpu, reason)
        return {"kind": "mmio-write", "gpa": mmio.phys_addr, "size": mmio.len, "value": value}
    return {"kind": exit_name(reason)}


def _value(vcpu: HypervisorVcpu, reason: int) -> str:
    """What was read or written, in hexadecimal; of string I/O the first element."""
    if reason == Exit.MMIO:
        return f"{vcpu.mmio_value():#x}"
    return f"{int.from_bytes(vcpu.io_data()[: vcpu.io.size], 'little'):#x}"
