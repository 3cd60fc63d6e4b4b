"""Stock drivers on every ring format, feature and number of vectors that they know, and beyond.

One machine per kernel has them all, for each type of device. Pins alone: test_interrupts.py.
"""

from __future__ import annotations

from pathlib import Path

from harness import Guest
from interrupt_rows import interrupts
from matrix_guest import (
    ACCESS_PLATFORM,
    COMMON,
    EVENT_IDX,
    INDIRECT_DESC,
    NOTIFICATION_DATA,
    PACKED,
    RING_RESET,
    Case,
    Found,
    Matrix,
)

CASES = {
    "split": Case(""),
    "packed": Case("packed=on,vectors=2", COMMON | {PACKED}),
    "packed-odd": Case(
        "packed=on,event_idx=off,queue-size=100,vectors=64", COMMON - {EVENT_IDX} | {PACKED}
    ),
    "packed-plain": Case(
        "packed=on,indirect_desc=off,vectors=1", COMMON - {INDIRECT_DESC} | {PACKED}
    ),
    "split-plain": Case(
        "event_idx=off,indirect_desc=off,queue_reset=off",
        COMMON - {EVENT_IDX, INDIRECT_DESC, RING_RESET},
    ),
    # No Linux takes NOTIF_CONFIG_DATA, and IN_ORDER only from 6.19 on.
    "split-tiny": Case("queue-size=1,in_order=on,notif_config_data=on"),
    "bells": Case("notification_data=on,event_idx=off", COMMON - {EVENT_IDX} | {NOTIFICATION_DATA}),
    "packed-bells": Case(
        "packed=on,notification_data=on,iommu_platform=on",
        COMMON | {PACKED, NOTIFICATION_DATA, ACCESS_PLATFORM},
    ),
    "slow-bells": Case(
        "packed=on,notification_data=on,ioeventfd=off,queue_reset=off",
        COMMON - {RING_RESET} | {PACKED, NOTIFICATION_DATA},
    ),
}
BALLOON = Case(
    "packed=on,indirect_desc=off,iommu_platform=on,notification_data=on,vectors=16",
    COMMON - {INDIRECT_DESC} | {PACKED, NOTIFICATION_DATA},
)
CONSOLE = Case(
    "packed=on,event_idx=off,iommu_platform=on,vectors=32",
    COMMON - {EVENT_IDX} | {PACKED, ACCESS_PLATFORM},
)


def test_every_device_works_on_every_kind_of_ring(kernel: str, tmp_path: Path) -> None:
    late: set[int] = set()
    unusable: set[str] = set()
    if kernel == "6.1":
        late = {NOTIFICATION_DATA}  # Linux took it up in 6.4
        unusable = {"packed-odd"}  # and sizes that are no powers of two after 6.1
    matrix = Matrix(tmp_path, CASES, balloon=BALLOON, console=CONSOLE, unusable=unusable)
    with Guest("-k", kernel, *matrix.options()) as guest:
        found = matrix.check_negotiated(guest, frozenset(late))
        if unusable:
            assert "bad queue size 100" in guest.shell("dmesg")

        matrix.work(guest)

        check_interrupts(guest, found)
        assert guest.shell("dmesg | grep -ci 'nobody cared' || true") == "0"


def check_interrupts(guest: Guest, found: dict[str, Found]) -> None:
    """Each queue has a message of its own; with one vector only, Linux falls back to the pin."""
    rows = interrupts(guest)
    for identifier, one in found.items():
        if not one.bound:
            continue
        users = {user for user in rows if user.split("-")[0] == one.linux}
        if identifier.endswith("packed-plain"):
            assert users == {one.linux}, identifier
            assert rows[one.linux].origin.startswith("IO-APIC"), identifier
        else:
            assert f"{one.linux}-config" in users, identifier
            assert f"{one.linux}-virtqueues" not in users, identifier
            assert all("MSI" in rows[user].origin for user in users), identifier
            queues = users - {f"{one.linux}-config"}
            assert any(sum(rows[user].counts) for user in queues), identifier
