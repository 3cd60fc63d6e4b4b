"""A followed virtio-mem device, and an event of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from minivmm.testing.traced import BASE, Traced
from minivmm.units import GIB, MIB


@pytest.fixture
def traced() -> Iterator[Traced]:
    with Traced() as made:
        yield made


@pytest.fixture
def event() -> dict[str, Any]:
    """An answer as it is in a stream."""
    return {
        "n": 7,
        "t": 12.502113,
        "source": "vmem0",
        "name": "answer",
        "id": 93,
        "type": "PLUG",
        "gpa": BASE,
        "blocks": 64,
        "size": 128 * MIB,
        "answer": "ACK",
        "plugged": 256 * MIB,
        "state": {"plugged-size": 256 * MIB, "requested-size": GIB, "usable-size": GIB},
    }
