"""Events and MSI-X vectors as tests of interrupts think of them: event 0, then one per queue."""

from __future__ import annotations

from minivmm.spec import pci
from minivmm.testing.driver import MESSAGE_ADDRESS, DeviceBench, VirtioPciDriver

CONFIGURATION = 0
"""The event "configuration changed"; event n + 1 is "queue n has used buffers"."""


def map_event(driver: VirtioPciDriver, event: int, vector: int) -> int:
    """Map `event` to `vector`; what the device says about that."""
    name = "config_msix_vector" if event == CONFIGURATION else "queue_msix_vector"
    if event != CONFIGURATION:
        driver.set("queue_select", event - 1)
    driver.set(name, vector)
    return driver.get(name)


def cause(bench: DeviceBench, event: int) -> None:
    """Have `event` happen, on a device that echoes. Raises AssertionError if it does not."""
    if event == CONFIGURATION:
        bench.device.signals.config()
    else:
        assert bench.driver.request(event - 1, b"x", 1) == b"x"


def mask(
    driver: VirtioPciDriver, vector: int, *, masked: bool = True, data: int | None = None
) -> None:
    """Write the table entry of `vector`; its message is its own number, or `data`."""
    word = vector if data is None else data
    driver.set_msix_entry(vector, pci.MsixEntry(MESSAGE_ADDRESS, 0, word, int(masked)))


def pending(bench: DeviceBench) -> int:
    """The pending bits of the first 64 vectors, as the driver reads them."""
    driver = bench.driver
    place = driver.read_pci(driver.msix_capability + pci.MsixCapability.OFFSETS["pba"], 4)
    return bench.mmio.read(driver.bar_address(place & 7) + (place & ~7), 8)
