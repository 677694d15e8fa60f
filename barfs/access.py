"""The access contract as pure functions: a request becomes checked accesses.

Nothing here touches hardware, and nothing may be added to an address after it has passed here.
"""

from typing import NamedTuple

from barfs.errors import PastEnd

# The widest access of a request that is not itself one access. Registers are 32 bits wide far more
# often than 64, and a device that wants 64 at a time gets it from a request of exactly 8 bytes.
RUN_WIDTH = 4


class Run(NamedTuple):
    """`length` bytes from `offset` in ascending accesses of `width` bytes."""

    offset: int
    width: int
    length: int


def clip_read(offset: int, length: int, size: int) -> int:
    """How much of a read lies before the end; 0 at and past it."""
    return max(0, min(length, size - offset))


def clip_write(offset: int, length: int, size: int) -> int:
    """How much of a write lies before the end; PastEnd where none of a non-empty one does."""
    if length and offset >= size:
        raise PastEnd(f"write of {length:#x} bytes at {offset:#x}, but the file ends at {size:#x}")
    return max(0, min(length, size - offset))


def plan(offset: int, length: int, base: int, max_width: int) -> tuple[Run, ...]:
    """The accesses of a request on a file whose byte 0 is at bus address `base`.

    1, 2, 4 or 8 naturally aligned bytes (and at most `max_width`) are one access. Anything else is
    ascending, naturally aligned accesses of at most 4 bytes that touch each byte once and none
    outside the request. Aligned is what the bus sees: `base + offset`.
    """
    if length in (1, 2, 4, 8) and length <= max_width and (base + offset) % length == 0:
        return (Run(offset, length, length),)
    runs = []
    end = offset + length
    while offset < end:
        width = RUN_WIDTH
        while (base + offset) % width or width > end - offset:
            width //= 2
        extent = end - offset - (end - offset) % width if width == RUN_WIDTH else width
        runs.append(Run(offset, width, extent))
        offset += extent
    return tuple(runs)
