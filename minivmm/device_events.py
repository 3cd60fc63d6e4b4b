"""QMP events of devices: what changed in a device, told under QEMU's names and with its data."""

from __future__ import annotations

from collections.abc import Callable

from minivmm.board import Board
from minivmm.devices.spec import qom_path
from minivmm.devices.virtio_balloon.device import VirtioBalloon

Emit = Callable[[str, dict[str, object]], None]


def report_sizes(board: Board, emit: Emit) -> None:
    """Have every change of a plugged size, and of the balloon's, emitted; lock held."""
    for device in board.memory_devices.values():
        device.on_size_change = _plugged(device.identifier, emit)
    if board.balloon is not None:
        board.balloon.on_change = _ballooned(board.balloon, board.boot_memory, emit)


def _plugged(identifier: str, emit: Emit) -> Callable[[int], None]:
    path = qom_path(identifier)

    def report(size: int) -> None:
        emit("MEMORY_DEVICE_SIZE_CHANGE", {"id": identifier, "size": size, "qom-path": path})

    return report


def _ballooned(balloon: VirtioBalloon, memory: int, emit: Emit) -> Callable[[], None]:
    return lambda: emit("BALLOON_CHANGE", {"actual": memory - balloon.size})
