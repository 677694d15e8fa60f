"""PCI BARs and physical memory as files."""
