"""The virtio-mem device: block model, answer table, device (virtio-spec 5.15)."""
