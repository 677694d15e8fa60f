"""The lists of capabilities in config space, and the places of parts that they tell.

Pure: a function that is given reads config space.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from barfs.registers.checks import PLACE
from barfs.registers.maps import Part, Place, Space

# PCI Local Bus Specification 3.0, 6.2.3 and 6.7; PCI Express Base Specification 4.0, 7.6.
_STATUS: Final = 0x06
_STATUS_LIST: Final = 1 << 4
_HEADER_TYPE: Final = 0x0E
_POINTER: Final = {0: 0x34, 1: 0x34, 2: 0x14}
_EXTENDED: Final = 0x100
_VENDOR: Final = 0x09

# virtio 1.2, 4.1.4: struct virtio_pci_cap.
_VIRTIO_TYPE, _VIRTIO_BAR, _VIRTIO_OFFSET, _VIRTIO_LENGTH = 3, 4, 8, 12

# Reads `width` bytes of config space at an offset, as a number. Gives None if they can't be read.
Read = Callable[[int, int], int | None]


class Capability(NamedTuple):
    """A capability at an offset of config space."""

    number: int
    offset: int
    extended: bool


def header_type(read: Read) -> int | None:
    """The type of the header: 0 for a device, 1 for a bridge, 2 for a CardBus bridge."""
    found = read(_HEADER_TYPE, 1)
    return None if found is None or found == 0xFF else found & 0x7F


def walk(read: Read, size: int) -> Iterator[Capability]:
    """All capabilities of a function, in the order of their lists. Its config space has `size`
    bytes.

    A list that leads into itself ends there.
    """
    yield from _walk_list(read)
    seen = set[int]()
    offset = _EXTENDED if size > _EXTENDED else 0
    while offset >= _EXTENDED and offset + 4 <= size and offset not in seen:
        seen.add(offset)
        header = read(offset, 4)
        if header is None or header in {0, 0xFFFFFFFF}:
            return
        yield Capability(header & 0xFFFF, offset, extended=True)
        offset = header >> 20 & ~3


def _walk_list(read: Read) -> Iterator[Capability]:
    kind, status = header_type(read), read(_STATUS, 2)
    if kind not in _POINTER or status is None or not status & _STATUS_LIST:
        return
    seen = set[int]()
    offset = (read(_POINTER[kind], 1) or 0) & ~3
    while 0x40 <= offset <= 0xFC and offset not in seen:
        seen.add(offset)
        both = read(offset, 2)
        if both is None or both & 0xFF == 0xFF:
            return
        yield Capability(both & 0xFF, offset, extended=False)
        offset = both >> 8 & ~3


def place_in_config(part: Part, read: Read, size: int, found: list[Capability]) -> Place | None:
    """The place of a part whose registers are in config space. None if the function lacks it."""
    match = PLACE.fullmatch(part.place)
    if match is None:
        return None
    start: int | None = 0
    if match["header"]:
        start = 0 if header_type(read) == int(match["header"]) else None
    elif match["cap"] or match["ecap"]:
        extended = match["ecap"] is not None
        wanted = int(match["ecap"] or match["cap"], 16), extended
        starts = (c.offset for c in found if (c.number, c.extended) == wanted)
        start = next(starts, None)
    if start is None or not _holds(part, read, start):
        return None
    return Place(Space.CONFIG, None, start, size)


def _holds(part: Part, read: Read, start: int) -> bool:
    """Whether a part is there, by its condition and the contents of config space."""
    if part.when is None:
        return True
    value = read(start + part.when.offset, part.when.width)
    return value is not None and value & part.when.mask in part.when.values


def place_of_virtio(part: Part, read: Read, found: list[Capability]) -> Place | None:
    """The place of a structure of a virtio device. The part names its type."""
    match = PLACE.fullmatch(part.place)
    if match is None or not match["virtio"]:
        return None
    for capability in found:
        at = capability.offset
        if capability.extended or capability.number != _VENDOR:
            continue
        kind, bar = read(at + _VIRTIO_TYPE, 1), read(at + _VIRTIO_BAR, 1)
        start, length = read(at + _VIRTIO_OFFSET, 4), read(at + _VIRTIO_LENGTH, 4)
        if kind == int(match["virtio"]) and bar is not None and bar <= 5:
            if start is None or length is None:
                return None
            return Place(Space.BAR, bar, start, start + length)
    return None
