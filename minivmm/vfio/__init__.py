"""The host's devices for guests: VFIO groups and containers, iommufd, devices; nothing of PCI."""
