"""config_generation of a device: it moves if the driver may have seen half of a change."""

from __future__ import annotations


class Generation:
    """An 8-bit counter. It moves once per value that the driver has seen, so it cannot wrap around
    to that value, however many changes pass unread (PCI-D-11).
    """

    def __init__(self) -> None:
        self.value = 0
        self.seen = False
        """The driver has read this value."""

    def read(self) -> int:
        """For the driver; the next change after this read will be visible."""
        self.seen = True
        return self.value

    def change(self) -> None:
        """The configuration space is another one now."""
        if self.seen:
            self.value = (self.value + 1) & 0xFF
            self.seen = False
