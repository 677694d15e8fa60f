"""What a device is, as text for people and for grep. Reads config space, and nothing else of it."""

from barfs.names import PciAddress
from barfs.pci import PciBus


def describe(pci: PciBus, address: PciAddress) -> str:
    """`key: value` lines. DeviceGone."""
    return f"address: {address}\nid: {pci.id(address)}\n"
