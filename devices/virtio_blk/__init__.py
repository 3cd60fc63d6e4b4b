"""The virtio block device (virtio-spec 5.2): a raw file of the host as the guest's disk."""
