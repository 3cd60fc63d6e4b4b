"""The common configuration structure of virtio-pci (virtio-spec 4.1.4.3) as a register table.

It adds to the transport what only this structure has: selectors and MSI-X vector numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivmm.registers import Read, Register, RegisterFile, Write, constant
from minivmm.spec.virtio_pci import NO_VECTOR, CommonConfig
from minivmm.virtio.notification import NotificationArea
from minivmm.virtio.queue_registers import Part, QueueRegisters
from minivmm.virtio.transport import Transport


class CommonConfiguration:
    """Selectors, vectors, and `registers`, the BusDevice of the whole structure."""

    def __init__(
        self,
        transport: Transport,
        notifications: NotificationArea,
        vectors: int,
        on_moved: Callable[[int, int], None],
    ) -> None:
        """`on_moved`(old, new) is called when an event leaves the vector `old`."""
        self._transport = transport
        self._on_moved = on_moved
        self._notifications = notifications
        self._vectors = vectors
        self.reset()
        access = {**self._device_access(), **self._queue_access()}
        self.registers = RegisterFile(
            Register(offset, width, name, *access[name])
            for offset, width, name in CommonConfig.layout()
        )

    def reset(self) -> None:
        """Selectors 0, no event mapped to a vector (PCI-D-30)."""
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self.queue_select = 0
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(self._transport.queue_registers)

    def save(self) -> dict[str, object]:
        """Values of saved_forms.COMMON."""
        return {
            "device_feature_select": self._device_feature_select,
            "driver_feature_select": self._driver_feature_select,
            "queue_select": self.queue_select,
            "config_vector": self.config_vector,
            "queue_vectors": self.queue_vectors,
        }

    def load(self, saved: Any) -> None:
        """Take over what saved.judge_interrupts let pass."""
        self._device_feature_select = saved.device_feature_select
        self._driver_feature_select = saved.driver_feature_select
        self.queue_select = saved.queue_select
        self.config_vector = saved.config_vector
        self.queue_vectors = list(saved.queue_vectors)

    def is_mapped(self, vector: int) -> bool:
        """Is any event mapped to `vector`?"""
        return vector in (self.config_vector, *self.queue_vectors)

    def unmap_queue(self, index: int) -> None:
        """Queue `index` was reset: it is mapped to no vector (GEN-D-7)."""
        self._map_queue(index, NO_VECTOR)

    def _device_access(self) -> dict[str, tuple[Read, Write | None]]:
        transport = self._transport
        return {
            "device_feature_select": self._variable("_device_feature_select"),
            "device_feature": (
                lambda: transport.device_feature_word(self._device_feature_select),
                None,
            ),
            "driver_feature_select": self._variable("_driver_feature_select"),
            "driver_feature": (
                lambda: transport.driver_feature_word(self._driver_feature_select),
                lambda v: transport.write_driver_features(self._driver_feature_select, v),
            ),
            "config_msix_vector": (lambda: self.config_vector, self._set_config_vector),
            "num_queues": (constant(len(transport.queue_registers)), None),
            "device_status": (lambda: int(transport.status), transport.write_status),
            "config_generation": (transport.generation.read, None),
            "admin_queue_index": (constant(0), None),
            "admin_queue_num": (constant(0), None),
        }

    def _queue_access(self) -> dict[str, tuple[Read, Write | None]]:
        """Registers of the selected queue; all of them read as nothing if there is none (B.7)."""
        return {
            "queue_select": self._variable("queue_select"),
            "queue_size": self._of_queue(lambda q: q.size, QueueRegisters.set_size),
            "queue_msix_vector": (self._queue_vector, self._set_queue_vector),
            "queue_enable": (
                self._of_queue(lambda q: int(q.enabled), None)[0],
                self._enable_queue,
            ),
            "queue_notify_off": (lambda: self.queue_select if self._selected else 0, None),
            "queue_desc": self._address(Part.DESCRIPTORS),
            "queue_driver": self._address(Part.DRIVER),
            "queue_device": self._address(Part.DEVICE),
            "queue_notif_config_data": (self._notif_config_data, None),
            "queue_reset": (constant(0), self._reset_queue),
        }

    @property
    def _selected(self) -> QueueRegisters | None:
        queues = self._transport.queue_registers
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    def _variable(self, name: str) -> tuple[Read, Write]:
        """A register that is nothing but storage."""
        return (lambda: int(getattr(self, name)), lambda value: setattr(self, name, value))

    def _of_queue(
        self,
        read: Callable[[QueueRegisters], int],
        write: Callable[[QueueRegisters, int], None] | None,
    ) -> tuple[Read, Write]:
        """A register of the selected queue: 0, and deaf, if it does not exist (PCI-D-15)."""

        def read_selected() -> int:
            queue = self._selected
            return read(queue) if queue else 0

        def write_selected(value: int) -> None:
            queue = self._selected
            if queue and write:
                write(queue, value)

        return read_selected, write_selected

    def _address(self, part: Part) -> tuple[Read, Write]:
        return self._of_queue(lambda q: q.address(part), lambda q, gpa: q.set_address(part, gpa))

    def _enable_queue(self, value: int) -> None:
        if self._selected:
            self._transport.enable_queue(self.queue_select, value)

    def _reset_queue(self, value: int) -> None:
        if self._selected:
            self._transport.reset_queue(self.queue_select, value)

    def _notif_config_data(self) -> int:
        return self._notifications.config_data(self.queue_select) if self._selected else 0

    def _valid_vector(self, vector: int) -> int:
        """`vector`, or NO_VECTOR for a number that the table does not have (PCI-D-31)."""
        return vector if vector < self._vectors else NO_VECTOR

    def _set_config_vector(self, vector: int) -> None:
        old, self.config_vector = self.config_vector, self._valid_vector(vector)
        self._moved(old, self.config_vector)

    def _queue_vector(self) -> int:
        return self.queue_vectors[self.queue_select] if self._selected else NO_VECTOR

    def _set_queue_vector(self, vector: int) -> None:
        if self._selected:
            self._map_queue(self.queue_select, self._valid_vector(vector))

    def _map_queue(self, index: int, vector: int) -> None:
        old, self.queue_vectors[index] = self.queue_vectors[index], vector
        self._moved(old, vector)

    def _moved(self, old: int, new: int) -> None:
        if old not in (NO_VECTOR, new):
            self._on_moved(old, new)
