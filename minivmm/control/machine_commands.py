"""QMP commands about the machine as a whole: negotiation, its name and state, its life, its CPUs.

Shapes and texts are those of QEMU 7.2 (qapi/control.json, run-state.json, machine.json).
"""

from __future__ import annotations

from typing import Literal, TypedDict

from minivmm.control.commands import Nothing, command
from minivmm.control.face import Context
from minivmm.control.qom import cpu_path
from minivmm.control.tree import walk
from minivmm.errors import Refused
from minivmm.migration.states import refuse_on_the_way
from minivmm.version import __version__


class QemuVersion(TypedDict):
    """Three numbers."""

    major: int
    minor: int
    micro: int


class Version(TypedDict):
    """VersionInfo."""

    qemu: QemuVersion
    package: str


class NameInfo(TypedDict):
    """NameInfo."""

    name: str


class StatusInfo(TypedDict):
    """StatusInfo."""

    status: str
    singlestep: bool
    running: bool


class KvmInfo(TypedDict):
    """KvmInfo."""

    enabled: bool
    present: bool


class TargetInfo(TypedDict):
    """TargetInfo."""

    arch: Literal["x86_64"]


CurrentMachine = TypedDict("CurrentMachine", {"wakeup-suspend-support": bool})
"""CurrentMachineParams."""

CpuProperties = TypedDict(
    "CpuProperties", {"node-id": int, "socket-id": int, "core-id": int, "thread-id": int}
)
"""CpuInstanceProperties: where the guest sees the CPU."""

CpuInfo = TypedDict(
    "CpuInfo",
    {
        "cpu-index": int,
        "qom-path": str,
        "thread-id": int,
        "props": CpuProperties,
        "target": Literal["x86_64"],
    },
)
"""CpuInfoFast; `thread-id` is the host's, 0 before the machine starts."""

QEMU_VERSION: QemuVersion = {"micro": 0, "minor": 2, "major": 7}
"""QEMU release whose semantics are followed; clients insist on the keys."""

CAPABILITIES: list[str] = []
"""Optional QMP features on offer: none (out-of-band execution is not)."""


def version() -> Version:
    """What the greeting and query-version say."""
    return {"qemu": QEMU_VERSION, "package": f"minivmm {__version__}"}


@command("qmp_capabilities")
def negotiate(context: Context, enable: list[str] | None = None) -> Nothing:
    """Leave negotiation mode (the session does it when this succeeds)."""
    for name in enable or []:
        raise Refused(f"Capability {name} not available")
    return {}


@command("query-version")
def query_version(context: Context) -> Version:
    """Greeting's version again."""
    return version()


@command("query-name")
def query_name(context: Context) -> NameInfo:
    """The VM's name."""
    return {"name": context.machine.name}


@command("query-status")
def query_status(context: Context) -> StatusInfo:
    """RunState."""
    running = context.machine.state == "running"
    return {"status": context.machine.state, "singlestep": False, "running": running}


@command("quit")
def quit_machine(context: Context) -> Nothing:
    """End at once, without asking the guest."""
    context.machine.request_quit()
    return {}


@command("stop")
def stop(context: Context) -> Nothing:
    """Pause the vCPUs."""
    context.machine.pause()
    return {}


@command("cont")
def cont(context: Context) -> Nothing:
    """Resume them."""
    context.machine.resume()
    return {}


@command("system_reset")
def system_reset(context: Context) -> Nothing:
    """Hard reset."""
    refuse_on_the_way(context.machine.state)
    context.machine.request_reset()
    return {}


@command("system_powerdown")
def system_powerdown(context: Context) -> Nothing:
    """Press the power button; the guest decides."""
    context.machine.request_powerdown()
    return {}


@command("query-cpus-fast")
def query_cpus_fast(context: Context) -> list[CpuInfo]:
    """Every vCPU: its thread on the host, its node, socket and core in the guest."""
    machine = context.machine
    node = {cpu: number for number, cpu in machine.numa.cpus_by_node()}
    cores = machine.numa.socket_cpus
    return [
        {
            "cpu-index": index,
            "qom-path": cpu_path(index),
            "thread-id": thread,
            "props": {
                "node-id": node[index],
                "socket-id": index // cores,
                "core-id": index % cores,
                "thread-id": 0,
            },
            "target": "x86_64",
        }
        for index, thread in enumerate(machine.thread_ids)
    ]


@command("query-kvm")
def query_kvm(context: Context) -> KvmInfo:
    """There is no other way to run guest code here."""
    return {"enabled": True, "present": True}


@command("query-target")
def query_target(context: Context) -> TargetInfo:
    """The guest's architecture."""
    return {"arch": "x86_64"}


@command("query-current-machine")
def query_current_machine(context: Context) -> CurrentMachine:
    """The machine cannot sleep (no S3), so there is nothing to wake up from."""
    return {"wakeup-suspend-support": False}


@command("x-minivmm-inspect")
def inspect(context: Context, path: str = "") -> object:
    """State of every part, for people and bug reports; `path` (a.b.c) chooses a part of it."""
    return walk(context.machine.inspect(), path)
