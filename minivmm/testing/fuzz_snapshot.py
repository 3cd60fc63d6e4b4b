"""The common configuration as a whole: what a reset leaves must be what there was at first."""

from __future__ import annotations

from minivmm.spec.virtio_pci import CommonConfig
from minivmm.testing.driver import VirtioPciDriver

_SHOWN = 3
"""Queues that are looked at, be there so many or not."""
_FIELDS = [name for _, _, name in CommonConfig.layout() if name != "config_generation"]
_QUEUE = "queue_"


def snapshot(driver: VirtioPciDriver) -> dict[str, int]:
    """All fields but config_generation, which a reset may leave; selects queue 0 in the end."""
    found = {name: driver.get(name) for name in _FIELDS if not name.startswith(_QUEUE)}
    for index in range(_SHOWN):
        driver.set("queue_select", index)
        found |= {
            f"{name} {index}": driver.get(name) for name in _FIELDS if name.startswith(_QUEUE)
        }
    driver.set("queue_select", 0)
    return found
