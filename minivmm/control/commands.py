"""The QMP commands: one table, declared arguments, QEMU's shapes and error texts.

A command runs with the machine's lock held and returns its JSON value. The socket is qmp.py's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from minivmm import __version__
from minivmm.control import qom
from minivmm.control.face import Context
from minivmm.devices.spec import qom_path
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.errors import Refused

F = TypeVar("F", bound=Callable[..., object])

QEMU_VERSION = {"micro": 0, "minor": 2, "major": 7}
"""QEMU release whose semantics are followed; clients insist on the keys."""

CAPABILITIES: list[str] = []
"""Optional QMP features on offer: none (out-of-band execution is not)."""

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "any": (object,),
}
"""Argument kinds under the names of QEMU's messages, and the Python types that JSON gives."""


@dataclass(frozen=True)
class Command:
    """A QMP command; `arguments` maps outside names to kinds, `optional` likewise."""

    name: str
    arguments: dict[str, str]
    optional: dict[str, str]
    function: Callable[..., object]

    def run(self, context: Context, arguments: dict[str, Any]) -> object:
        """Check `arguments` against the declaration and execute. Raises Refused as QEMU does."""
        for name, kind in {**self.arguments, **self.optional}.items():
            if name in arguments:
                _check(name, kind, arguments[name])
            elif name in self.arguments:
                raise Refused(f"Parameter '{name}' is missing")
        for name in arguments:
            if name not in self.arguments and name not in self.optional:
                raise Refused(f"Parameter '{name}' is unexpected")
        return self.function(context, **{k.replace("-", "_"): v for k, v in arguments.items()})


COMMANDS: dict[str, Command] = {}
"""Every command by name."""


def command(
    name: str, *, optional: dict[str, str] | None = None, **arguments: str
) -> Callable[[F], F]:
    """Put the decorated function into the table; keywords name arguments ('_' for '-')."""

    def add(function: F) -> F:
        required = {key.replace("_", "-"): kind for key, kind in arguments.items()}
        COMMANDS[name] = Command(name, required, optional or {}, function)
        return function

    return add


def version() -> dict[str, object]:
    """What the greeting and query-version say."""
    return {"qemu": QEMU_VERSION, "package": f"minivmm {__version__}"}


@command("qmp_capabilities", optional={"enable": "array"})
def negotiate(context: Context, enable: list[object] | None = None) -> object:
    """Leave negotiation mode (the session does it when this succeeds)."""
    for name in enable or []:
        raise Refused(f"Capability {name} not available")
    return {}


@command("query-version")
def query_version(context: Context) -> object:
    """Greeting's version again."""
    return version()


@command("query-commands")
def query_commands(context: Context) -> object:
    """Names of all commands."""
    return [{"name": name} for name in COMMANDS]


@command("query-name")
def query_name(context: Context) -> object:
    """The VM's name."""
    return {"name": context.machine.name}


@command("query-status")
def query_status(context: Context) -> object:
    """RunState."""
    running = context.machine.state == "running"
    return {"status": context.machine.state, "singlestep": False, "running": running}


@command("quit")
def quit_machine(context: Context) -> object:
    """End at once, without asking the guest."""
    context.machine.request_quit()
    return {}


@command("stop")
def stop(context: Context) -> object:
    """Pause the vCPUs."""
    context.machine.pause()
    return {}


@command("cont")
def cont(context: Context) -> object:
    """Resume them."""
    context.machine.resume()
    return {}


@command("system_reset")
def system_reset(context: Context) -> object:
    """Hard reset."""
    context.machine.request_reset()
    return {}


@command("system_powerdown")
def system_powerdown(context: Context) -> object:
    """Press the power button; the guest decides."""
    context.machine.request_powerdown()
    return {}


@command("qom-get", path="string", property="string")
def qom_get(context: Context, path: str, property: str) -> object:
    """Read a property."""
    return qom.qom_get(context.machine, path, property)


@command("qom-set", path="string", property="string", value="any")
def qom_set(context: Context, path: str, property: str, value: object) -> object:
    """Write a property; `requested-size` of a virtio-mem device is the one that takes a value."""
    qom.qom_set(context.machine, path, property, value)
    return {}


@command("qom-list", path="string")
def qom_list(context: Context, path: str) -> object:
    """Properties and children of an object."""
    return qom.qom_list(context.machine, path)


@command("query-memory-devices")
def query_memory_devices(context: Context) -> list[dict[str, Any]]:
    """MemoryDeviceInfo of every virtio-mem device (QEMU qapi/machine.json)."""
    return [
        {
            "type": "virtio-mem",
            "data": {
                "memdev": qom.memory_path(device),
                "memaddr": device.window.base,
                "block-size": device.block_size,
                "size": device.plugged_size,
                "node": device.spec.node,
                "max-size": device.window.size,
                "requested-size": device.requested_size,
                "id": device.identifier,
            },
        }
        for device in context.machine.memory_devices.values()
    ]


@command("query-memory-size-summary")
def query_memory_size_summary(context: Context) -> object:
    """Boot memory, and what is plugged beside it."""
    plugged = sum(device.plugged_size for device in context.machine.memory_devices.values())
    return {"base-memory": context.machine.boot_memory, "plugged-memory": plugged}


@command("x-minivmm-info")
def info(context: Context) -> object:
    """All that `minivmm info` shows, in one answer; keys in QMP spelling, sizes in bytes."""
    agent = context.agent
    return {
        "name": context.machine.name,
        "pid": os.getpid(),
        "status": context.machine.state,
        "base-memory": context.machine.boot_memory,
        "memslots": context.machine.memslots,
        "agent": {
            "ready": agent is not None and agent.ready,
            "kernel-release": agent.kernel_release if agent else None,
        },
        "memory-devices": [_info(device) for device in context.machine.memory_devices.values()],
    }


def _info(device: VirtioMem) -> dict[str, object]:
    usage = device.region.usage()
    return {
        "type": "virtio-mem",
        "id": device.identifier,
        "qom-path": qom_path(device.identifier),
        "requested-size": device.requested_size,
        "size": device.plugged_size,
        "usable-size": device.usable_region_size,
        "max-size": device.window.size,
        "block-size": device.block_size,
        "memaddr": device.window.base,
        "node": device.spec.node,
        "resident": usage.resident,
        "resident-huge": usage.huge,
        "intrusions": device.intruders.count,
        "answers": device.ledger.counts(),
    }


@command("x-minivmm-inspect")
def inspect(context: Context) -> object:
    """State of every part, for people and bug reports."""
    return context.machine.inspect()


def _check(name: str, kind: str, value: object) -> None:
    is_bool_for_int = kind == "integer" and isinstance(value, bool)
    if not isinstance(value, _KINDS[kind]) or is_bool_for_int:
        raise Refused(f"Invalid parameter type for '{name}', expected: {kind}")
