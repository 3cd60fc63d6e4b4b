"""The Python interface: `import minivmm` gives these names (docs/testing-drivers.md)."""

from minivmm.api import aio
from minivmm.api.booting import boot
from minivmm.api.plan import Device, VirtioBalloon, VirtioBlk, VirtioMem, VirtioRng
from minivmm.api.resizing import ResizeResult, ResizeState
from minivmm.api.vm import MemoryDevice, Resize, Vm
from minivmm.api.work import Completed
from minivmm.devices.virtio_mem.verdict import Diagnosis
from minivmm.trace import Event

__all__ = [
    "Completed",
    "Device",
    "Diagnosis",
    "Event",
    "MemoryDevice",
    "Resize",
    "ResizeResult",
    "ResizeState",
    "VirtioBalloon",
    "VirtioBlk",
    "VirtioMem",
    "VirtioRng",
    "Vm",
    "aio",
    "boot",
]
