"""The entropy device (virtio-spec 5.4), which has neither features nor configuration."""

DEVICE_ID = 4

REQUEST_QUEUE = 0
"""The driver's buffers, to be filled with random bytes (5.4.2)."""
