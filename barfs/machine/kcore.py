"""/proc/kcore: it tells physical addresses of the kernel's virtual ones, and gives System RAM to
read.

It is an ELF core file (fs/proc/kcore.c). Its program headers tell for each range of virtual
addresses where it is in the file. For System RAM and the kernel's image they also tell the physical
address. So nothing has to be known of KASLR or of the layout of arm64. Opening it takes
CAP_SYS_RAWIO, and lockdown=confidentiality refuses it.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

# System V ABI, chapters 4 and 5: the header of a 64-bit ELF file, and a program header.
_HEADER: Final = struct.Struct("16sHHIQQQIHHHHHH")
_PROGRAM: Final = struct.Struct("IIQQQQQQ")
_MAGIC: Final = b"\x7fELF\x02"  # ELFCLASS64
_PT_LOAD: Final = 1

# Stands for a physical address that the kernel does not give (vmalloc, modules).
_NO_ADDRESS: Final = (1 << 64) - 1

# A machine has some dozen ranges of System RAM. A program header takes 56 bytes.
_MOST_HEADERS: Final = 1 << 12


class BadCore(ValueError):
    """It is no core file of a 64-bit kernel."""


class Segment(NamedTuple):
    """`size` bytes at a virtual address, at `offset` in the file.

    `physical` is their physical address, None if the kernel does not tell it.
    """

    virtual: int
    size: int
    offset: int
    physical: int | None


def parse_headers(data: bytes) -> Sequence[Segment]:
    """The ranges of a core file, from its first bytes. Raises BadCore.

    It assumes a 64-bit kernel in the machine's own byte order, because it runs on that machine.
    """
    if len(data) < _HEADER.size:
        raise BadCore("it ends before its header does")
    ident, *_, first, _, _, _, each, count, _, _, _ = _HEADER.unpack_from(data)
    if not ident.startswith(_MAGIC):
        raise BadCore("it is no 64-bit ELF file")
    if each != _PROGRAM.size or count > _MOST_HEADERS or first + each * count > len(data):
        raise BadCore("its program headers are not where it says")
    found = []
    for at in range(first, first + each * count, each):
        kind, _, offset, virtual, physical, _, size, _ = _PROGRAM.unpack_from(data, at)
        if kind == _PT_LOAD and size:
            known = None if physical == _NO_ADDRESS else physical
            found.append(Segment(virtual, size, offset, known))
    return found


class Piece(NamedTuple):
    """`size` bytes at `offset` in the file."""

    offset: int
    size: int


class CoreFile:
    """The core file below `proc`, if there is one. It is kept open, since opening it needs more
    rights.

    `refusal` tells why there is none.
    """

    def __init__(self, proc: Path) -> None:
        self.path = proc / "kcore"
        self.refusal: OSError | None = None
        self.fd = -1
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self.refusal = error

    def segments(self) -> Sequence[Segment]:
        """Its ranges now, since memory may have been added. Raises BadCore and OSError."""
        if self.refusal is not None:
            raise self.refusal
        length = _HEADER.size
        head = os.pread(self.fd, length, 0)
        if len(head) == length:
            _, *_, first, _, _, _, each, count, _, _, _ = _HEADER.unpack(head)
            length = min(first + each * count, _HEADER.size + _PROGRAM.size * _MOST_HEADERS)
        return parse_headers(os.pread(self.fd, length, 0))

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def to_physical(segments: Sequence[Segment], virtual: int) -> int | None:
    """The physical address of a virtual one. None if no range tells it."""
    for segment in segments:
        if segment.physical is not None and 0 <= virtual - segment.virtual < segment.size:
            return segment.physical + virtual - segment.virtual
    return None


def room_after(segments: Sequence[Segment], virtual: int) -> int:
    """The bytes from a virtual address to the end of its range. 0 outside of all ranges."""
    return max(
        (
            segment.virtual + segment.size - virtual
            for segment in segments
            if 0 <= virtual - segment.virtual < segment.size
        ),
        default=0,
    )


def _pieces(starts: Sequence[tuple[int, int, int]], start: int, size: int) -> list[Piece] | None:
    """The pieces of the file that hold a whole range, ascending. None if part of it is missing."""
    found = []
    for begin, extent, offset in sorted(starts):
        if size and begin <= start < begin + extent:
            length = min(size, begin + extent - start)
            found.append(Piece(offset + start - begin, length))
            start, size = start + length, size - length
    return None if size else found


def physical_pieces(segments: Sequence[Segment], start: int, size: int) -> list[Piece] | None:
    """The pieces of the file with `size` bytes of physical memory. None if some are missing."""
    starts = [(s.physical, s.size, s.offset) for s in segments if s.physical is not None]
    return _pieces(starts, start, size)


def virtual_pieces(segments: Sequence[Segment], start: int, size: int) -> list[Piece] | None:
    """The pieces of the file with `size` bytes at a virtual address. None if some are missing."""
    return _pieces([(s.virtual, s.size, s.offset) for s in segments], start, size)
