"""The virtio console device with many ports (virtio-spec 5.3): the guest agent's wires."""
