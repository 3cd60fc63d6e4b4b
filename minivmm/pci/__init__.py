"""A PCI bus: configuration space, BARs, MSI-X, ECAM and CF8/CFC."""
