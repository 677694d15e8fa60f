"""Ways to bytes: sysfs's `resourceN`, and /dev/mem mapped or copied. A short list, tried in order.

A way is a class with a line in `Ways`. It says that a place is not its own, or opens it.
"""

import errno
from collections.abc import Sequence
from functools import partial
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from barfs.access.apertures import Aperture, MappedAperture, PortAperture, refuse_mapping
from barfs.devmem import PhysicalMemory, Segment
from barfs.errors import (
    BarfsError,
    CachingConflict,
    DriverOwns,
    KernelRefused,
    Mmap,
    NotMappable,
    What,
)
from barfs.machine.functions import Functions
from barfs.machine.resources import Resource
from barfs.names import AddressRange, PciAddress

# What --bars-via names: by which way memory BARs are reached.
BarsVia: TypeAlias = Literal["resource", "devmem"]

# Why the ways before were refused, as far as another way may be open.
Refused: TypeAlias = KernelRefused | DriverOwns


class BarPart(NamedTuple):
    """`size` bytes of a function's BAR from `offset`, as `what` in messages."""

    what: What
    address: PciAddress
    index: int
    resource: Resource
    offset: int
    size: int
    combine: bool  # to be mapped write-combining

    @property
    def base(self) -> int:
        """The bus address of the first byte."""
        return self.resource.start + self.offset


# What is to be reached.
Place: TypeAlias = BarPart | Segment


class Way(Protocol):
    """A way to bytes."""

    name: str  # what tells it from others, to people

    def open(
        self, place: Place, refused: Refused | None, *, writable: bool
    ) -> Aperture | None:
        """An aperture over a place; None if this way does not lead there.

        `refused` is what the kernel said to the way before, if there was one. KernelRefused and
        DriverOwns leave the place to the ways after this one, other errors don't.
        """


class Ports:
    """I/O ports by reading and writing sysfs's `resourceN`."""

    name = "resource"

    def __init__(self, pci: Functions) -> None:
        self._pci = pci

    def open(
        self, place: Place, refused: Refused | None, *, writable: bool
    ) -> Aperture | None:
        """See Way."""
        del refused
        if not isinstance(place, BarPart) or place.resource.is_memory:
            return None
        path = self._pci.path(place.address, f"resource{place.index}")
        return PortAperture(
            path, place.offset, place.size, what=place.what, base=place.base, writable=writable
        )


class Resource_:
    pass
