"""The virtio entropy device (virtio-spec 5.4): randomness of the host for the guest."""
