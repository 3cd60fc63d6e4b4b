"""QMP events of devices: what changed in a device, told under QEMU's names and with its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minivmm.board import Board
from minivmm.devices.spec import qom_path
from minivmm.devices.virtio_console.device import CONSOLE_PORT

if TYPE_CHECKING:
    from minivmm.devices.virtio_balloon.device import VirtioBalloon

Emit = Callable[[str, dict[str, object]], None]


def report_changes(board: Board, emit: Emit) -> None:
    """Have changes of plugged sizes, the balloon and ports of the console emitted; lock held."""
    for device in board.memory_devices.values():
        device.on_size_change = _plugged(device.identifier, emit)
    if board.balloon is not None:
        board.balloon.on_change = _ballooned(board.balloon, board.boot_memory, emit)
    for port in board.console.ports:
        if port.id != CONSOLE_PORT:
            port.on_open_change = _opened(port.name, emit)


def _plugged(identifier: str, emit: Emit) -> Callable[[int], None]:
    path = qom_path(identifier)

    def report(size: int) -> None:
        emit("MEMORY_DEVICE_SIZE_CHANGE", {"id": identifier, "size": size, "qom-path": path})

    return report


def _opened(name: str, emit: Emit) -> Callable[[bool], None]:
    return lambda opened: emit("VSERPORT_CHANGE", {"id": name, "open": opened})


def _ballooned(balloon: VirtioBalloon, memory: int, emit: Emit) -> Callable[[], None]:
    return lambda: emit("BALLOON_CHANGE", {"actual": memory - balloon.size})
