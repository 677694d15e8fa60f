"""/dev/mem, and /proc/iomem, which says what lies at which physical address."""

import errno
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from barfs.access.apertures import CopiedAperture, MappedAperture
from barfs.access.files import OFFSET_END, PAGE_SIZE, REFUSALS, refusal
from barfs.errors import (
    BarfsError,
    CachingConflict,
    DriverOwns,
    Mmap,
    NoSuchAddress,
    NotMappable,
    PhysicalSpan,
    What,
    excerpt,
)
from barfs.machine.source import Source
from barfs.names import AddressRange, PciAddress

REAL_DEVMEM: Final = Path("/dev/mem")

log = logging.getLogger(__name__)

# mmap_mem gives EAGAIN if a remapping fails because the kernel has the page mapped in another
# caching type (drivers/char/mem.c; arch/x86/mm/pat/memtype.c, reserve_pfn_range). With PAT, x86
# refuses to map System RAM with EINVAL even if STRICT_DEVMEM is off, while it allows reading and
# writing it (phys_mem_access_prot_allowed, in the same file).
_REFUSALS: Final = {**REFUSALS, errno.EAGAIN: CachingConflict, errno.EINVAL: NotMappable}

# x86 treats System RAM below 1 MiB specially (arch/x86/mm/init.c, devmem_is_allowed).
_LOW_MEMORY_END: Final = 1 << 20

# More lines of /proc/iomem are left out. A machine has thousands of them at the most. A recording
# may come from a stranger, and each range is a name in `phys`.
MOST_RANGES: Final = 1 << 14

_EMPTY_COPY: Final = "(tar saves nothing of /proc, cat does)"


class IomemRange(NamedTuple):
    """A line of /proc/iomem: its first and last physical address, its name and its depth."""

    start: int
    end: int
    name: str
    depth: int  # 0: not inside another range

    def __str__(self) -> str:
        return f"{self.start:08x}-{self.end:08x}"

    @property
    def is_ram(self) -> bool:
        """Whether it is System RAM, also a hot-added one (`System RAM (kmem)`, `(virtio_mem)`)."""
        return self.name.startswith("System RAM")


@lru_cache(maxsize=4)  # the text seldom changes, and every open asks for it
def parse_iomem(text: str) -> Sequence[IomemRange]:
    """The ranges in /proc/iomem, in its order. Lines of another form are left out, and logged.

    So are ranges that no file can reach, from 2**63 - 1 on. A reader without CAP_SYS_ADMIN sees all
    addresses as 0. Then there are no ranges.
    """
    ranges: list[IomemRange] = []
    for line in text.splitlines():
        if len(ranges) == MOST_RANGES:
            log.warning("iomem: only the first %d ranges are taken", MOST_RANGES)
            break
        match = re.fullmatch(r"((?:  )*)([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.*)", line)
        if match is None or not int(match[2], 16) <= int(match[3], 16) < OFFSET_END:
            log.warning("iomem: not a range: %s", excerpt(line))
            continue
        ranges.append(
            IomemRange(int(match[2], 16), int(match[3], 16), match[4], len(match[1]) // 2)
        )
    if all(entry.end == 0 for entry in ranges):
        return ()
    return tuple(ranges)


@lru_cache(maxsize=4)
def _top_of(text: str) -> Sequence[IomemRange]:
    """The top-level ranges, ascending. The last one of two with the same addresses counts."""
    found = {entry[:2]: entry for entry in parse_iomem(text) if entry.depth == 0}
    return tuple(sorted(found.values()))


@lru_cache(maxsize=4)
def _ram_of(text: str) -> Sequence[range]:
    """The addresses of System RAM, ascending. What touches is one range."""
    found: list[range] = []
    for entry in sorted(entry for entry in parse_iomem(text) if entry.is_ram):
        if found and entry.start <= found[-1].stop:
            last = found.pop()
            found.append(range(last.start, max(last.stop, entry.end + 1)))
        else:
            found.append(range(entry.start, entry.end + 1))
    return tuple(found)


class Segment(NamedTuple):
    """Part of a physical range that is of one kind of memory. Addresses and sizes are in bytes.

    `shared` are pages of which only part is System RAM. To the kernel such pages are not RAM.
    """

    start: int
    size: int
    is_ram: bool
    shared: bool = False
    claimed: bool = True  # it is in /proc/iomem
    as_memory: bool = False  # it may be copied, for somebody knows that it is memory

    @property
    def span(self) -> PhysicalSpan:
        """Its addresses."""
        return PhysicalSpan(self.start, self.size)

    @property
    def can_be_copied(self) -> bool:
        """Whether reading and writing /dev/mem gives the same bytes as mapping it would.

        It does not if STRICT_DEVMEM makes reads give zeros and drops writes, without an error,
        though it lets the same memory be mapped (drivers/char/mem.c, read_mem).
        """
        return self.is_ram and not self.shared and self.start >= _LOW_MEMORY_END


def split_by_kind(start: int, size: int, ranges: Iterable[IomemRange]) -> list[Segment]:
    """`size` bytes from `start`, cut where System RAM and its whole pages begin and end."""
    segments = []
    end = start + size

    def cut(stop: int, *, is_ram: bool, shared: bool = False) -> None:
        nonlocal start
        stop = min(stop, end)
        if start < stop:
            segments.append(Segment(start, stop - start, is_ram, shared))
            start = stop

    for ram in sorted(entry for entry in ranges if entry.is_ram):
        first_page = -(-ram.start // PAGE_SIZE) * PAGE_SIZE
        last_page = (ram.end + 1) // PAGE_SIZE * PAGE_SIZE
        cut(ram.start, is_ram=False)
        cut(min(first_page, ram.end + 1), is_ram=True, shared=True)
        cut(last_page, is_ram=True)
        cut(ram.end + 1, is_ram=True, shared=True)
    cut(end, is_ram=False)
    return segments


def owner_of(start: int, size: int, ranges: Iterable[IomemRange]) -> IomemRange | None:
    """The claim because of which the kernel refuses to map a range. None if it is System RAM's.

    STRICT_DEVMEM refuses System RAM. IO_STRICT_DEVMEM refuses what somebody has claimed: the
    deepest range that has a name of its own. The name of a PCI function or bus is no claim: it says
    what is there.
    """
    first, end = start - start % PAGE_SIZE, start + size
    end += -end % PAGE_SIZE
    found = None
    for entry in ranges:
        if entry.end < first or entry.start >= end:
            continue
        if entry.is_ram:
            return None
        if _is_pci(entry.name) or (found and entry.depth <= found.depth):
            continue
        found = entry
    return found


def _is_pci(name: str) -> bool:
    return name.startswith("PCI Bus ") or PciAddress.parse(name) is not None


class PhysicalMemory:
    """Physical memory through `devmem` (/dev/mem). The source's /proc/iomem describes it.

    With `unclaimed`, addresses that /proc/iomem does not have count as well, if they are asked for
    with a length.
    """

    def __init__(self, source: Source, devmem: Path, *, unclaimed: bool = False) -> None:
        self.source = source
        self.devmem = devmem
        self._unclaimed = unclaimed
        self._iomem = source.proc / "iomem"
        self._recorded: str | None = None  # a recording does not change

    def _text(self) -> str:
        if self._recorded is not None:
            return self._recorded
        text = self._text_now()
        if self.source.recording is not None:
            self._recorded = text
        return text

    def _text_now(self) -> str:
        try:
            raw = self.source.read_all(self._iomem)
        except OSError as error:
            raise NoSuchAddress(what=str(self._iomem), system=error) from error
        return raw.rstrip(b"\0").decode(errors="replace")

    def _read(self) -> Sequence[IomemRange]:
        return parse_iomem(self._text())

    def _is_empty(self) -> bool:
        return not self._text().strip()

    def why_blank(self) -> str:
        """What is the matter with a /proc/iomem that shows no ranges. Raises NoSuchAddress."""
        if self._is_empty():
            return f"{self._iomem} is empty {_EMPTY_COPY}"
        return f"{self._iomem} shows no addresses, which takes CAP_SYS_ADMIN"

    def ranges(self) -> list[IomemRange]:
        """The top-level ranges, ascending. Reads /proc/iomem and touches no memory."""
        return list(_top_of(self._text()))

    def owner(self, start: int, size: int) -> IomemRange | None:
        """Who has claimed a range: see owner_of. Raises NoSuchAddress. Touches no memory."""
        return owner_of(start, size, self._read())

    def resolve(self, wanted: AddressRange, register: int | None = None) -> tuple[int, int]:
        """Start and size, in bytes, of the range that a name gives. Touches no memory.

        A range without an end extends to the end of the top-level range that it starts in. A range
        with an end may span several adjacent ranges, but no gap, unless unclaimed addresses count.
        Then a range that begins at an unclaimed address and has no end is one register, if its
        width is given in bytes. Raises NoSuchAddress.
        """
        last = wanted.start - 1
        ranges = self.ranges()
        for entry in ranges:
            if entry.start > last + 1:
                break
            if entry.end <= last:
                continue
            last = entry.end
            if wanted.end is None:
                return wanted.start, last + 1 - wanted.start
            if last >= wanted.end:
                return wanted.start, wanted.end + 1 - wanted.start
        sentence = f"{last + 1:#x} is in no range of {self._iomem}"
        if ranges and self._unclaimed:
            size = wanted.end + 1 - wanted.start if wanted.end is not None else register
            if size and wanted.start + size <= OFFSET_END:
                return wanted.start, size
            sentence += f"; it needs a length, as in {wanted.start:x}+4"
        elif self._is_empty():
            sentence += f", which is empty {_EMPTY_COPY}"
        elif not ranges:
            sentence += " (which shows addresses only to root)"
        raise NoSuchAddress(sentence, what="phys")

    def is_claimed(self, start: int, size: int) -> bool:
        """Whether all of a range is in /proc/iomem. Touches no memory."""
        if not self._unclaimed:
            return True  # or it has no name
        last = start - 1
        for entry in self.ranges():
            if entry.start <= last + 1 and entry.end > last:
                last = entry.end
        return last >= start + size - 1

    def within(self, start: int, size: int) -> list[IomemRange]:
        """All ranges, of any depth, that share bytes with a range. Touches no memory."""
        return [
            entry for entry in self._read() if entry.start < start + size and start <= entry.end
        ]

    def is_ram(self, start: int, size: int) -> bool:
        """Whether all of a range is System RAM. Touches no memory."""
        ram = _ram_of(self._text())
        place = bisect_right(ram, start, key=lambda one: one.start)
        return place > 0 and start + size <= ram[place - 1].stop

    def segments(self, start: int, size: int) -> list[Segment]:
        """A range, cut into segments of one kind. NoSuchAddress if /proc/iomem lacks part of it.

        Touches no memory.
        """
        self.resolve(AddressRange(start, start + size - 1))
        found = split_by_kind(start, size, self._read())
        return [part._replace(claimed=self.is_claimed(part.start, part.size)) for part in found]

    def try_open(self) -> None:
        """Open and close /dev/mem. That touches no memory. Raises OSError."""
        # O_NONBLOCK: if it is a pipe, this does not wait.
        os.close(os.open(self.devmem, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))

    def map(
        self,
        start: int,
        size: int,
        *,
        what: What,
        memory_like: bool,
        uncached: bool,
        writable: bool,
    ) -> MappedAperture:
        """Map `size` bytes from physical address `start`.

        Raises KernelRefused under lockdown, CachingConflict, NotMappable and DriverOwns.
        """
        return MappedAperture(
            self.devmem,
            start,
            size,
            what=what,
            base=start,
            memory_like=memory_like,
            writable=writable,
            uncached=uncached,
            refuse=self._refuse,
        )

    def copy(self, segment: Segment, *, writable: bool) -> CopiedAperture:
        """Let the kernel copy a segment of System RAM: /dev/mem is read and written."""
        return CopiedAperture(
            self.devmem, segment.start, segment.size, what=segment.span, writable=writable
        )

    def _refuse(self, what: What, during: Mmap, error: OSError, start: int) -> BarfsError:
        """What the kernel means when it does not map physical memory.

        It has let /dev/mem be opened, so lockdown is not in force. EPERM then comes from
        CONFIG_STRICT_DEVMEM or CONFIG_IO_STRICT_DEVMEM (drivers/char/mem.c, range_is_allowed).
        """
        if error.errno == errno.EPERM:
            owner = owner_of(start, during.length, self._read())
            if owner is not None:
                sentence = f"{owner.name} owns {owner}"
                return DriverOwns(sentence, what=what, during=during, system=error)
        return refusal(what, during, error, _REFUSALS)
