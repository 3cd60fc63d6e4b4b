"""A PCI device of the host, passed on by VFIO: what the guest sees of it, and what is emulated."""
