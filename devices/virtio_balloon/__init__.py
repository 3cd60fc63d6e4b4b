"""The traditional virtio memory balloon (virtio-spec 5.5), which virtio-mem is compared with."""
