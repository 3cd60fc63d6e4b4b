"""Virtio without any device: virtqueues, the status machine, the PCI transport."""
