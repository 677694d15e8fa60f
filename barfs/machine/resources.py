"""The addresses that the kernel has given a function: sysfs's `resource`, parsed."""

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from barfs.access.files import OFFSET_END
from barfs.errors import FunctionPart, NoSuchAddress, NoSuchNode, What, excerpt
from barfs.names import AddressRange, PciAddress, ViewKind

log = logging.getLogger(__name__)

# include/linux/ioport.h
IORESOURCE_PCI_FIXED: Final = 0x00000010
IORESOURCE_PCI_EA_BEI: Final = 0x00000020
IORESOURCE_IO: Final = 0x00000100
IORESOURCE_MEM: Final = 0x00000200
IORESOURCE_PREFETCH: Final = 0x00002000
IORESOURCE_MEM_64: Final = 0x00100000
IORESOURCE_DISABLED: Final = 0x10000000
IORESOURCE_UNSET: Final = 0x20000000

# The lines of sysfs's `resource`: the BARs, then the expansion ROM.
N_BARS: Final = 6
ROM_RESOURCE: Final = 6


class Resource(NamedTuple):
    """A line of sysfs's `resource`: first and last bus address, and the kernel's flags."""

    start: int
    end: int
    flags: int

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.end - self.start + 1

    @property
    def span(self) -> range:
        """Its addresses on the bus."""
        return range(self.start, self.end + 1)

    @property
    def is_memory(self) -> bool:
        """Whether it is MMIO, and not port I/O."""
        return bool(self.flags & IORESOURCE_MEM)

    @property
    def is_mapped(self) -> bool:
        """Whether it is MMIO that has an address."""
        return self.is_memory and self.assigned

    @property
    def is_64bit(self) -> bool:
        """Whether it is a memory BAR whose address has 64 bits."""
        return bool(self.flags & IORESOURCE_MEM_64)

    @property
    def prefetchable(self) -> bool:
        """Whether its bit says that reads have no side effects."""
        return bool(self.flags & IORESOURCE_PREFETCH)

    @property
    def is_fixed(self) -> bool:
        """Whether its place is not what the BAR's registers say.

        It is so for Enhanced Allocation, and for IDE in compatibility mode (drivers/pci/pci.c,
        pci_ea_flags; drivers/pci/probe.c, pci_setup_device).
        """
        return bool(self.flags & (IORESOURCE_PCI_FIXED | IORESOURCE_PCI_EA_BEI))

    @property
    def assigned(self) -> bool:
        """Whether the kernel has given it an address, and has not switched it off."""
        return not self.flags & (IORESOURCE_UNSET | IORESOURCE_DISABLED)


@lru_cache(maxsize=1 << 12)  # a listing of links parses the same few ids over and over
def parse_hex(text: str, *, bits: int) -> int:
    """A number as sysfs prints it, in hex. ValueError if it is none, or too large.

    int() would also take signs, underscores and the digits of any script.
    """
    match = re.fullmatch(r"\s*(?:0x)?([0-9a-fA-F]+)\s*", text)
    if match is None or int(match[1], 16) >> bits:
        raise ValueError(text)
    return int(match[1], 16)


def parse_resource(line: str) -> Resource | None:
    """Parse `<start> <end> <flags>` in hex. None if there is no resource. ValueError if garbage.

    Addresses that no file can reach, from 2**63 - 1 on, are garbage too. So is memory that is not a
    whole number of 4-byte words, since all BARs are (PCI Express 5.0, 7.8.5, for those of an
    Enhanced Allocation; others have at least 16 bytes).
    """
    start, end, flags = (parse_hex(word, bits=63) for word in line.split())
    if end >= OFFSET_END:
        raise ValueError(line)
    if flags == 0 or end < start:
        return None
    if flags & IORESOURCE_MEM and (start % 4 or (end + 1) % 4):
        raise ValueError(line)
    return Resource(start, end, flags)


@lru_cache(maxsize=1 << 14)  # a text means the same, whatever function has it
def _parse_resources(text: str) -> tuple[Mapping[int, Resource], tuple[tuple[int, str], ...]]:
    """BARs and expansion ROM by line number, and the lines that are garbage."""
    found, garbage = {}, []
    for index, line in enumerate(text.splitlines()[: ROM_RESOURCE + 1]):
        try:
            resource = parse_resource(line)
        except ValueError:
            garbage.append((index, line))
            continue
        if resource is not None and resource.flags & (IORESOURCE_MEM | IORESOURCE_IO):
            found[index] = resource
    return MappingProxyType(found), tuple(garbage)


def parse_resources(address: PciAddress, text: str) -> Mapping[int, Resource]:
    """BARs and expansion ROM in a function's `resource`, by line. Garbage is logged."""
    found, garbage = _parse_resources(text)
    for index, line in garbage:
        log.warning("%s: line %d of resource is garbage: %s", address, index, excerpt(line))
    return found


def windows_in(text: str) -> list[Resource]:
    """What a bridge forwards to the bus behind it, from the further lines of its `resource`."""
    found = []
    for line in text.splitlines()[ROM_RESOURCE + 1 :]:
        try:
            resource = parse_resource(line)
        except ValueError:
            continue
        if resource is not None and resource.flags & (IORESOURCE_MEM | IORESOURCE_IO):
            found.append(resource)
    return found


def bar_of(address: PciAddress, resources: Mapping[int, Resource], index: int) -> Resource:
    """One BAR of a function's resources. Raises NoSuchNode."""
    resource = resources.get(index)
    if resource is None or index == ROM_RESOURCE:
        raise NoSuchNode(f"there is no BAR {index}", what=FunctionPart(address))
    return resource


def check_window(what: What, offset: int, size: int, whole: int) -> None:
    """NoSuchAddress if `size` bytes from `offset` are not inside `whole` bytes."""
    if offset + size > whole:
        sentence = f"{size:#x} bytes at {offset:#x}, but it ends at {whole:#x}"
        raise NoSuchAddress(sentence, what=what)


def size_in_window(what: What, window: AddressRange, view: ViewKind, whole: int) -> int:
    """The size of a window into `whole` bytes. NoSuchAddress if it is not inside them.

    A window without an end goes to the end of the whole, and in a text view it is one register.
    """
    start, last = window
    if last is None:
        limit = start + view.width if view.is_text else whole
        last = max(start, min(limit, whole) - 1)
    size = last + 1 - start
    check_window(what, start, size, whole)
    return size
