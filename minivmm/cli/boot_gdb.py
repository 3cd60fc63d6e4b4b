"""`boot --gdb`: a place where GDB can connect, and a line that says where."""

from __future__ import annotations

from minivmm.control.face import Context
from minivmm.control.gdb_address import parse_address
from minivmm.control.gdb_server import GdbServer
from minivmm.kvm.debug_probe import probe
from minivmm.kvm.hypervisor import Hypervisor
from minivmm.loop import EventLoop
from minivmm.machine import Machine


async def open_gdb(
    machine: Machine, context: Context, loop: EventLoop, system: Hypervisor, address: str
) -> tuple[GdbServer, str]:
    """Listen at `address`; the server, and a line on it for the user. Raises HostError."""
    features = probe(system)
    server = GdbServer(context, machine.debugger, loop, features)
    where = await server.start(parse_address(address))
    machine.on_end.append(lambda outcome: loop.call_soon(lambda: server.ended(outcome)))
    lacks = "" if features.hardware else " (no hardware breakpoints or watchpoints on this host)"
    return server, f"gdb can connect: target remote {where}{lacks}"
