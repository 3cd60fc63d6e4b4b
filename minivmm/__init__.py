"""minivmm: a small, readable KVM-based VMM with a complete virtio-mem device."""

__version__ = "0.1.0"
