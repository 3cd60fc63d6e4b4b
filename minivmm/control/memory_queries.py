"""QMP commands that tell of memory: devices, sizes, backends, and all that `minivmm info` shows.

Shapes are QEMU's (qapi/machine.json); sizes are bytes, addresses guest physical.
"""

from __future__ import annotations

import os
from typing import Literal, TypedDict

from minivmm.control import qom
from minivmm.control.commands import command
from minivmm.control.face import Context
from minivmm.devices.spec import qom_path
from minivmm.devices.virtio_mem.device import VirtioMem

MemoryDevice = TypedDict(
    "MemoryDevice",
    {
        "id": str,
        "memaddr": int,
        "requested-size": int,
        "size": int,
        "max-size": int,
        "block-size": int,
        "node": int,
        "memdev": str,
    },
)
"""VirtioMEMDeviceInfo."""


class MemoryDeviceInfo(TypedDict):
    """MemoryDeviceInfo; there is one kind of it here."""

    type: Literal["virtio-mem"]
    data: MemoryDevice


SizeSummary = TypedDict("SizeSummary", {"base-memory": int, "plugged-memory": int})
"""MemoryInfo."""

Memdev = TypedDict(
    "Memdev",
    {
        "id": str,
        "size": int,
        "merge": bool,
        "dump": bool,
        "prealloc": bool,
        "share": bool,
        "reserve": bool,
        "host-nodes": list[int],
        "policy": Literal["default"],
    },
)
"""Memdev: what stands behind a memory device."""

AgentInfo = TypedDict("AgentInfo", {"ready": bool, "kernel-release": str | None})
"""The guest's agent."""

DeviceInfo = TypedDict(
    "DeviceInfo",
    {
        "type": Literal["virtio-mem"],
        "id": str,
        "qom-path": str,
        "requested-size": int,
        "size": int,
        "usable-size": int,
        "max-size": int,
        "block-size": int,
        "memaddr": int,
        "node": int,
        "resident": int,
        "resident-huge": int,
        "intrusions": int,
        "answers": dict[str, dict[str, int]],
    },
)
"""One memory device as `minivmm info` tells of it; `answers`: request -> answer -> how often."""

MachineInfo = TypedDict(
    "MachineInfo",
    {
        "name": str,
        "pid": int,
        "status": str,
        "base-memory": int,
        "memslots": int,
        "agent": AgentInfo,
        "memory-devices": list[DeviceInfo],
    },
)


@command("query-memory-devices")
def query_memory_devices(context: Context) -> list[MemoryDeviceInfo]:
    """Every virtio-mem device."""
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
def query_memory_size_summary(context: Context) -> SizeSummary:
    """Boot memory, and what is plugged beside it."""
    plugged = sum(device.plugged_size for device in context.machine.memory_devices.values())
    return {"base-memory": context.machine.boot_memory, "plugged-memory": plugged}


@command("query-memdev")
def query_memdev(context: Context) -> list[Memdev]:
    """The host memory behind every memory device; boot memory is anonymous and has no name."""
    return [
        {
            "id": qom.memory_path(device).rpartition("/")[2],
            "size": device.window.size,
            "merge": False,
            "dump": True,
            "prealloc": device.host_side.populates,
            "share": device.spec.backing != "anon",
            "reserve": False,
            "host-nodes": [],
            "policy": "default",
        }
        for device in context.machine.memory_devices.values()
    ]


@command("x-minivmm-info")
def info(context: Context) -> MachineInfo:
    """All that `minivmm info` shows, in one answer."""
    return {
        "name": context.machine.name,
        "pid": os.getpid(),
        "status": context.machine.state,
        "base-memory": context.machine.boot_memory,
        "memslots": context.machine.memslots,
        "agent": agent_info(context),
        "memory-devices": [_info(device) for device in context.machine.memory_devices.values()],
    }


def agent_info(context: Context) -> AgentInfo:
    """What is known of the guest's agent."""
    agent = context.agent
    return {
        "ready": agent is not None and agent.ready,
        "kernel-release": agent.kernel_release if agent else None,
    }


def _info(device: VirtioMem) -> DeviceInfo:
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
