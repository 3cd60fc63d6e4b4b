"""Is a saved state of a virtio-pci function one that a guest could have brought it into?

Its forms are in saved_forms.py. What can only be seen by trying (ring positions, alignment) is
judged by those who take it over.
"""

from __future__ import annotations

from typing import Any

from minivmm.saved import require
from minivmm.spec.virtio import DeviceStatus, Feature
from minivmm.spec.virtio_pci import NO_VECTOR, Isr
from minivmm.virtio.transport import Transport

MOST_TROUBLE = 1000
"""Characters kept of what is told about a broken device."""

_KNOWN = int(
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.DRIVER_OK
    | DeviceStatus.NEEDS_RESET
    | DeviceStatus.FAILED
)
_DEAD = DeviceStatus.NEEDS_RESET | DeviceStatus.FAILED


def transport_values(transport: Transport) -> dict[str, object]:
    """Values of TRANSPORT; of the device model there is nothing in them."""
    queues = zip(transport.queue_registers, transport.rings(), strict=True)
    return {
        "status": int(transport.status),
        "driver_features": transport.driver_features,
        "trouble": transport.trouble[:MOST_TROUBLE],
        "generation": transport.generation.value,
        "generation_seen": transport.generation.seen,
        "queues": [registers.save() | {"ring": ring} for registers, ring in queues],
    }


def judge_transport(saved: Any, transport: Transport) -> None:
    """Raises BadState unless `saved`, of form TRANSPORT, fits to `transport` and its device."""
    name, status = transport.device.identifier, DeviceStatus(saved.status & _KNOWN)
    text = f"{saved.status:#x}"
    require(not saved.status & ~_KNOWN, name, "status", text, "it has bits that do not exist")
    settled = DeviceStatus.FEATURES_OK in status
    started = DeviceStatus.DRIVER_OK in status
    require(settled or not started, name, "status", text, "DRIVER_OK without FEATURES_OK")
    if settled:
        _judge_features(saved.driver_features, transport)
    count, wanted = len(saved.queues), len(transport.queue_registers)
    require(count == wanted, name, "queues", count, f"the device has {wanted}")
    for index, queue in enumerate(saved.queues):
        live = started and not status & _DEAD and queue.enabled
        field = f"queue {index}"
        require(settled or not queue.enabled, name, field, "enabled", "no feature is settled")
        has = "with a ring" if queue.ring else "without a ring"
        require(live == (queue.ring is not None), name, field, has, f"at status {text}")


def _judge_features(features: int, transport: Transport) -> None:
    device = transport.device
    name, text, offered = device.identifier, f"{features:#x}", transport.device_features
    why = f"this device offers {offered:#x}"
    require(not features & ~offered, name, "features", text, why)
    require(bool(features & Feature.VERSION_1.mask), name, "features", text, "VERSION_1 is missing")
    why = f"the device model's own state has {device.features:#x}"
    require(features == device.features, name, "features", text, why)


def judge_interrupts(saved: Any, name: str, *, queues: int, vectors: int) -> None:
    """Raises BadState unless ISR and vectors, of form FUNCTION, can be of function `name`."""
    known = not saved.isr & ~int(Isr.QUEUE | Isr.CONFIG)
    require(known, name, "ISR", f"{saved.isr:#x}", "it has bits that do not exist")
    common, count = saved.common, len(saved.common.queue_vectors)
    require(count == queues, name, "queue vectors", count, f"the device has {queues} queues")
    for vector in (common.config_vector, *common.queue_vectors):
        known = vector < vectors or vector == NO_VECTOR
        require(known, name, "vector", vector, f"the function has {vectors}")
    here = vectors > 0
    require(saved.has_msix == here, name, "MSI-X", saved.has_msix, f"this function's: {here}")
