"""PCI BARs and physical memory as files."""

__version__ = "0.1.0"
