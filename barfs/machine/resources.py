"""The kernel's entries of what a function has been given: sysfs's `resource`, parsed."""

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from barfs.access.files import OFFSET_END
from barfs.errors import FunctionPart, NoSuchAddress, NoSuchNode, What
from barfs.names import PciAddress

log = logging.getLogger(__name__)

# include/linux/ioport.h
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
    """A line of sysfs's `resource`: bus addresses, the end included, and the kernel's flags."""

    start: int
    end: int
    flags: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.start + 1

    @property
    def span(self) -> range:
        """Its addresses on the bus."""
        return range(self.start, self.end + 1)

    @property
    def is_memory(self) -> bool:
        """MMIO, not port I/O."""
        return bool(self.flags & IORESOURCE_MEM)

    @property
    def is_mapped(self) -> bool:
        """MMIO that has an address."""
        return self.is_memory and self.assigned

    @property
    def is_64bit(self) -> bool:
        """A memory BAR whose address has 64 bits."""
        return bool(self.flags & IORESOURCE_MEM_64)

    @property
    def prefetchable(self) -> bool:
        """Reads have no side effects."""
        return bool(self.flags & IORESOURCE_PREFETCH)

    @property
    def assigned(self) -> bool:
        """The kernel has given it an address and not switched it off."""
        return not self.flags & (IORESOURCE_UNSET | IORESOURCE_DISABLED)


def parse_hex(text: str, *, bits: int) -> int:
    """A number as sysfs prints it, hex with 0x; ValueError if it is not, or too large.

    Not int(), which takes signs, underscores and the digits of any script.
    """
    match = re.fullmatch(r"\s*(?:0x)?([0-9a-fA-F]+)\s*", text)
    if match is None or int(match[1], 16) >> bits:
        raise ValueError(text)
    return int(match[1], 16)


def parse_resource(line: str) -> Resource | None:
    """`<start> <end> <flags>` in hex; None where there is no resource. ValueError if garbage.

    Addresses that no file can reach, from 2**63 - 1 on, are garbage too, and memory that is not
    made of double words, as all BARs are (PCI Express 5.0, 7.8.5, for those of an Enhanced
    Allocation; others are of 16 bytes at least).
    """
    start, end, flags = (parse_hex(word, bits=63) for word in line.split())
    if end >= OFFSET_END:
        raise ValueError(line)
    if flags == 0 or end < start:
        return None
    if flags & IORESOURCE_MEM and (start % 4 or (end + 1) % 4):
        raise ValueError(line)
    return Resource(start, end, flags)


@lru_cache(maxsize=1 << 14)  # of what a text means, whatever function has it
def _parse_resources(text: str) -> tuple[Mapping[int, Resource], tuple[tuple[int, str], ...]]:
    """BARs and expansion ROM by line, and the lines that are garbage."""
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
    """BARs and expansion ROM in a function's `resource`, by line; garbage is logged, left out."""
    found, garbage = _parse_resources(text)
    for index, line in garbage:
        log.warning("%s: line %d of resource is garbage: %a", address, index, line)
    return found


def bar_of(address: PciAddress, resources: Mapping[int, Resource], index: int) -> Resource:
    """One BAR of a function's resources; NoSuchNode."""
    resource = resources.get(index)
    if resource is None or index == ROM_RESOURCE:
        raise NoSuchNode(f"there is no BAR {index}", what=FunctionPart(address))
    return resource


def check_window(what: What, offset: int, size: int, whole: int) -> None:
    """NoSuchAddress if `size` bytes from `offset` are not inside `whole` bytes."""
    if offset + size > whole:
        sentence = f"{size:#x} bytes at {offset:#x}, but it ends at {whole:#x}"
        raise NoSuchAddress(sentence, what=what)
