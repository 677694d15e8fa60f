"""Memory that reads go through, from one to the next the same.

Fresh memory has to be found, cleared and mapped first, which takes a fifth of the time of a large
read. A mapping of a device can't do without: the kernel refuses to take an answer from there.
"""

import contextlib
import mmap
from functools import lru_cache
from typing import Final

# Up to here in ordinary memory, so that a daemon of small reads does not take up SIZE.
SMALL: Final = 4096

# More than any request, and a huge page where there are such.
SIZE: Final = 2 << 20

# Views that are kept, for so many lengths of requests.
_LENGTHS: Final = 128


class Bounce:
    """For one read at a time: what is in there is lost at the next `take`."""

    def __init__(self) -> None:
        self._small = memoryview(bytearray(SMALL))
        large = mmap.mmap(-1, SIZE)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            # The kernel takes an answer page by page: of one huge page that is soon done.
            large.madvise(mmap.MADV_HUGEPAGE)
        self._large = memoryview(large)
        self.take = lru_cache(maxsize=_LENGTHS)(self._take)

    def _take(self, length: int) -> memoryview | bytearray:
        """Room for so many bytes, with whatever is in there."""
        if length > SIZE:
            return bytearray(length)
        return (self._small if length <= SMALL else self._large)[:length]
