"""Notifier: what a transport asks of the bus it is on; virtio-pci's is pci.py."""

from __future__ import annotations

from typing import Protocol


class Notifier(Protocol):
    """How notifications leave, and what the bus allows."""

    def notify_queue(self, index: int) -> None:
        """Used buffers of queue `index` want attention."""

    def notify_config(self) -> None:
        """Configuration space or status changed."""

    def on_device_reset(self) -> None:
        """Forget interrupt mappings and everything that has not been delivered."""

    def on_queue_reset(self, index: int) -> None:
        """The same for queue `index` alone."""

    @property
    def bus_master(self) -> bool:
        """May the device touch guest memory?"""
