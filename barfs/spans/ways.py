"""Ways to bytes: sysfs's `resourceN`, and /dev/mem mapped or copied. They are tried in order.

A new way is a class, and a place in the lists of `Ways`.
"""

import errno
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

from barfs.access.apertures import Aperture, MappedAperture, PortAperture, refuse_mapping
from barfs.access.core import CoreAperture
from barfs.access.files import ReadFile
from barfs.devmem import PhysicalMemory, Segment
from barfs.diagnosis.obstacles import Obstacles
from barfs.errors import (
    BarfsError,
    CachingConflict,
    DriverOwns,
    KernelRefused,
    Mmap,
    NoSuchAddress,
    NotMappable,
    What,
)
from barfs.machine.functions import Allowed
from barfs.machine.kcore import BadCore, CoreFile, physical_pieces
from barfs.machine.kernel import read_kernel
from barfs.machine.resources import Resource
from barfs.names import PciAddress

# The kernel refused one way. Another way may still lead there.
Refused: TypeAlias = KernelRefused | DriverOwns


class BarPart(NamedTuple):
    """`size` bytes of a function's BAR from `offset`. Messages call it `what`."""

    what: What
    address: PciAddress
    bar: int
    resource: Resource
    offset: int
    size: int
    combine: bool  # whether to map it write-combining
    memory_like: bool = False  # whether it may be copied

    @property
    def base(self) -> int:
        """The bus address of the first byte."""
        return self.resource.start + self.offset


# The thing to be reached: part of a BAR, or of physical memory.
Place: TypeAlias = BarPart | Segment


class Way(Protocol):
    """A way to bytes."""

    name: str

    def open(self, place: Place, refused: Refused | None, *, writable: bool) -> Aperture | None:
        """An aperture over a place. None if this way does not lead there.

        `refused` is the first refusal of the ways before, if there was one. When this raises
        KernelRefused or DriverOwns, the next way is tried. Any other error is final.
        """


class Ports:
    """The way to I/O ports: sysfs's `resourceN` is read and written."""

    name = "resource"

    def __init__(self, pci: Allowed) -> None:
        self._pci = pci

    def open(self, place: Place, refused: Refused | None, *, writable: bool) -> Aperture | None:
        del refused
        if not isinstance(place, BarPart) or place.resource.is_memory:
            return None
        path = self._pci.path(place.address, f"resource{place.bar}")
        file, begin = self._pci.source.bar_file(path, 0)  # ports begin at offset 0
        start = begin + place.offset
        return PortAperture(
            file, start, place.size, what=place.what, base=place.base, writable=writable
        )


class MappedResource:
    """A way to memory BARs: sysfs's `resourceN` is mapped, uncached or write-combining."""

    name = "resource"

    def __init__(self, pci: Allowed, memory: PhysicalMemory) -> None:
        self._pci = pci
        self._memory = memory

    def open(self, place: Place, refused: Refused | None, *, writable: bool) -> Aperture | None:
        del refused
        if not isinstance(place, BarPart) or not place.resource.is_memory:
            return None
        name = f"resource{place.bar}_wc" if place.combine else f"resource{place.bar}"
        path = self._pci.path(place.address, name)
        file, begin = self._pci.source.bar_file(path, place.resource.start)
        return MappedAperture(
            file,
            begin + place.offset,
            place.size,
            what=place.what,
            base=place.base,
            memory_like=place.memory_like,
            writable=writable,
            refuse=partial(self._refuse, place=place),
        )

    def _refuse(
        self, what: What, during: Mmap, error: OSError, start: int, *, place: BarPart
    ) -> BarfsError:
        """The error when the kernel does not map `resourceN`."""
        if error.errno != errno.EINVAL:
            return refuse_mapping(what, during, error, start)
        if not self._may_be_exclusive(place.resource):
            # The pages are mapped in another caching type (arch/x86/mm/pat/memtype.c,
            # reserve_pfn_range).
            return CachingConflict(what=what, during=during, system=error)
        # iomem_is_exclusive() gives EINVAL if a driver has the range and IO_STRICT_DEVMEM is on.
        driver = self._pci.driver(place.address)
        owner = f"the driver {driver}" if driver else "a driver (see /proc/iomem)"
        return DriverOwns(f"{owner} owns the range", what=what, during=during, system=error)

    def _may_be_exclusive(self, resource: Resource) -> bool:
        """Whether a driver may have a BAR for itself, by what /proc/iomem and the kernel tell."""
        if read_kernel(self._pci.source).io_strict is False:
            return False
        try:
            known = bool(self._memory.ranges())
            return not known or self._memory.owner(resource.start, 1) is not None
        except NoSuchAddress:
            return True


class MappedDevMem:
    """/dev/mem is mapped: System RAM as the kernel has it, and everything else uncached."""

    name = "devmem"

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    def open(self, place: Place, refused: Refused | None, *, writable: bool) -> Aperture | None:
        del refused
        if isinstance(place, BarPart):
            what, start, is_ram = place.what, place.base, False
            memory_like = place.memory_like
        else:
            what, start, is_ram = place.span, place.start, place.is_ram
            memory_like = is_ram or place.as_memory
        opened = partial(
            self._memory.map,
            start,
            place.size,
            what=what,
            memory_like=memory_like,
            writable=writable,
        )
        try:
            return opened(uncached=not is_ram)
        except CachingConflict:
            if is_ram or not (isinstance(place, BarPart) or place.claimed):
                raise
            # The kernel uses tables that firmware left in reserved memory (ACPI's) as cached
            # memory. They must not be mapped in a second caching type.
            return opened(uncached=False)


class CopiedDevMem:
    """The way to System RAM that can't be mapped: /dev/mem is read and written."""

    name = "devmem, copied"

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    def open(self, place: Place, refused: Refused | None, *, writable: bool) -> Aperture | None:
        if not isinstance(refused, (CachingConflict, NotMappable)):
            return None
        if isinstance(place, BarPart) or not place.can_be_copied:
            return None
        return self._memory.copy(place, writable=writable)


class KernelCore:
    """System RAM that /dev/mem keeps back: /proc/kcore, which is only read.

    It has no check for STRICT_DEVMEM, and is closed by lockdown=confidentiality alone
    (fs/proc/kcore.c, open_kcore).
    """

    name = "kcore"

    def __init__(self, core: CoreFile) -> None:
        self._core = core

    def open(self, place: Place, refused: Refused | None, *, writable: bool) -> Aperture | None:
        """See Way."""
        if refused is None or writable or isinstance(place, BarPart) or not place.is_ram:
            return None
        try:
            pieces = physical_pieces(self._core.segments(), place.start, place.size)
        except (OSError, BadCore):
            return None
        if pieces is None:
            return None
        return CoreAperture(self._core.fd, pieces, what=place.span, base=place.start)


def through_devmem(memory: PhysicalMemory) -> Sequence[Way]:
    """The ways through /dev/mem, to System RAM and to memory BARs."""
    return (MappedDevMem(memory), CopiedDevMem(memory))


class Holder(Protocol):
    """What holds functions open for as long as the mount lasts."""

    def decode(self, address: PciAddress, resource: Resource) -> None:
        """Have a BAR's space decoded, before it is asked whether the BAR answers."""

    def open_rom(self, address: PciAddress) -> ReadFile:
        """Open the expansion ROM, to be read."""

    def note(self, address: PciAddress) -> str | None:
        """A line for `info` about a function that is held."""


class Ways:
    """The ways of one machine. `bars` are the ways to BARs, `core` is the kernel's own memory.

    `holder` is what holds functions open for the mount, if the ways take that.
    """

    def __init__(
        self,
        pci: Allowed,
        memory: PhysicalMemory,
        bars: Sequence[Way],
        *,
        core: CoreFile | None = None,
        holder: Holder | None = None,
    ) -> None:
        self.pci = pci
        self.obstacles = Obstacles(pci)
        self.holder = holder
        self._memory = memory
        self._to_memory = (*through_devmem(memory), *([] if core is None else [KernelCore(core)]))
        if pci.source.recording is not None:
            self._to_memory = tuple(bars)  # the one way to all of it
        self._to_bars = bars

    def open_part(self, part: BarPart, *, writable: bool) -> Aperture:
        """Open part of a BAR. Raises what the ways raise."""
        return _first(self._to_bars, part, part.what, writable=writable)

    def open_physical(
        self, start: int, size: int, *, writable: bool, as_memory: bool = False
    ) -> list[Aperture]:
        """Open physical memory. There is an aperture for each segment of one kind, ascending.

        System RAM is memory-like, and with `as_memory` all of it is. Raises NoSuchAddress, and
        KernelRefused under lockdown and STRICT_DEVMEM.
        """
        apertures: list[Aperture] = []
        try:
            for segment in self._memory.segments(start, size):
                place = segment._replace(as_memory=as_memory)
                opened = _first(self._to_memory, place, segment.span, writable=writable)
                apertures.append(opened)
        except BaseException:
            for aperture in apertures:
                aperture.close()
            raise
        return apertures


def _first(ways: Sequence[Way], place: Place, what: What, *, writable: bool) -> Aperture:
    """The aperture of the first way that leads to a place. The first refusal if none does."""
    refused: Refused | None = None
    try:
        for way in ways:
            try:
                aperture = way.open(place, refused, writable=writable)
            except (KernelRefused, DriverOwns) as error:
                refused = refused or error
                continue
            if aperture is not None:
                aperture.way = way.name
                return aperture
        raise refused or BarfsError("no way leads there", what=what)
    finally:
        refused = None  # its traceback holds this frame, and this frame would hold it
