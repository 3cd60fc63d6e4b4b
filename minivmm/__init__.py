"""minivmm: a small, readable KVM-based VMM with a complete virtio-mem device.

    import minivmm

    with minivmm.boot(memory="512M", devices=[minivmm.VirtioMem(size="4G")]) as vm:
        assert vm.mem["vmem0"].resize("1G").wait().done
        print(vm.run("grep MemTotal /proc/meminfo").stdout)

The names in `__all__` are the Python interface (docs/testing-drivers.md): they stay. They are
loaded when they are first used, so that importing this costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import minivmm.boot  # noqa: F401 - a package, and by the class below the function as well
from minivmm.version import __version__

if TYPE_CHECKING:
    from minivmm import errors as errors
    from minivmm.api import Completed as Completed
    from minivmm.api import Device as Device
    from minivmm.api import Diagnosis as Diagnosis
    from minivmm.api import Event as Event
    from minivmm.api import MemoryDevice as MemoryDevice
    from minivmm.api import Resize as Resize
    from minivmm.api import ResizeResult as ResizeResult
    from minivmm.api import ResizeState as ResizeState
    from minivmm.api import VirtioBalloon as VirtioBalloon
    from minivmm.api import VirtioBlk as VirtioBlk
    from minivmm.api import VirtioMem as VirtioMem
    from minivmm.api import VirtioRng as VirtioRng
    from minivmm.api import Vm as Vm
    from minivmm.api import aio as aio
    from minivmm.api import boot as boot
    from minivmm.devices.virtio_mem import mischief as mischief

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
    "__version__",
    "aio",
    "boot",
    "errors",
    "mischief",
]

_MODULES = {"errors": "minivmm.errors", "mischief": "minivmm.devices.virtio_mem.mischief"}
"""Names that are modules elsewhere."""


class _Boot(ModuleType):
    """The package minivmm.boot, which loads kernels, can be called: then it boots a machine.

    Python puts a package into its parent under its name whenever something imports it; a function
    beside it would be there or not, depending on what was imported before.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        return import_module("minivmm.api").boot(*args, **options)


sys.modules["minivmm.boot"].__class__ = _Boot


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in __all__:
        raise AttributeError(f"module 'minivmm' has no attribute {name!r}")
    return getattr(import_module("minivmm.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
