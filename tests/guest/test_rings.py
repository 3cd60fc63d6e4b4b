"""Stock drivers on every ring format and feature that they know, all in one machine per kernel."""

from __future__ import annotations

from dataclasses import dataclass

from harness import Guest

MIB = 1 << 20

INDIRECT_DESC, EVENT_IDX, VERSION_1 = 28, 29, 32
ACCESS_PLATFORM, PACKED, IN_ORDER, NOTIFICATION_DATA, RING_RESET = 33, 34, 35, 38, 40
COMMON = frozenset({INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET})


@dataclass(frozen=True)
class Case:
    """Switches of a device, and the transport's features that Linux then takes."""

    switches: str
    features: frozenset[int]


CASES = {
    "split": Case("", COMMON),
    "packed": Case("packed=on", COMMON | {PACKED}),
    "packed-odd": Case("packed=on,event_idx=off,queue-size=100", COMMON - {EVENT_IDX} | {PACKED}),
    "packed-plain": Case("packed=on,indirect_desc=off", COMMON - {INDIRECT_DESC} | {PACKED}),
    "split-plain": Case("event_idx=off,indirect_desc=off,queue_reset=off", frozenset({VERSION_1})),
    "split-tiny": Case("queue-size=1,in_order=on", COMMON),  # Linux takes IN_ORDER from 6.19 on
    "bells": Case("notification_data=on", COMMON | {NOTIFICATION_DATA}),
    "packed-bells": Case(
        "packed=on,notification_data=on,iommu_platform=on",
        COMMON | {PACKED, NOTIFICATION_DATA, ACCESS_PLATFORM},
    ),
    "slow-bells": Case(
        "packed=on,notification_data=on,ioeventfd=off", COMMON | {PACKED, NOTIFICATION_DATA}
    ),
}
DEVICES = [
    "--device=" + ",".join(["virtio-mem-pci", f"id={name}", "size=1G", *case.switches.split()])
    for name, case in CASES.items()
]
DEVICE_TYPES = "for d in /sys/bus/virtio/devices/*; do cat $d/device $d/features; done"


def negotiated(guest: Guest) -> list[frozenset[int]]:
    """Bits 24 to 49 of each virtio-mem device, in the order of their slots."""
    words = guest.shell(DEVICE_TYPES).split()
    pairs = zip(words[::2], words[1::2], strict=True)
    masks = [mask for kind, mask in pairs if int(kind, 16) == 24]
    return [frozenset(bit for bit in range(24, 50) if mask[bit] == "1") for mask in masks]


def test_stock_driver_grows_and_shrinks_on_every_kind_of_ring(kernel: str) -> None:
    with Guest("-k", kernel, "-m", "512M", *DEVICES) as guest:
        usable = dict.fromkeys(CASES)
        late: set[int] = set()
        if kernel == "6.1":
            late = {NOTIFICATION_DATA}  # Linux took it up in 6.4
            del usable["packed-odd"]  # and sizes that are no powers of two after 6.1
            assert "bad queue size 100" in guest.shell("dmesg")
        assert negotiated(guest) == [case.features - late for case in CASES.values()]
        for size in (128 * MIB, 0, 128 * MIB):
            guest.resize(**dict.fromkeys(usable, size))
