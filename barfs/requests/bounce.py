"""Memory that all reads go through. It is kept from one read to the next.

Fresh memory would first have to be found, cleared and mapped. That takes a fifth of the time of a
large read. Data of a mapped device have to be copied somewhere, because the kernel refuses to take
an answer from such a mapping.
"""

import contextlib
import mmap
from functools import lru_cache
from typing import Final

# Reads of up to so many bytes use ordinary memory. So a daemon with small reads does not take up
# SIZE.
SMALL: Final = 4096

# In bytes: more than any request. It is a huge page, if the kernel has huge pages.
SIZE: Final = 2 << 20

# For how many lengths of requests a view is kept.
_LENGTHS: Final = 128


class Bounce:
    """Memory for one read at a time. The next `take` may overwrite it."""

    def __init__(self) -> None:
        self._small = memoryview(bytearray(SMALL))
        large = mmap.mmap(-1, SIZE)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            # The kernel takes an answer page by page. With one huge page that is done soon.
            large.madvise(mmap.MADV_HUGEPAGE)
        self._large = memoryview(large)
        self.take = lru_cache(maxsize=_LENGTHS)(self._take)

    def _take(self, length: int) -> memoryview | bytearray:
        """Room for so many bytes. It is not cleared."""
        if length > SIZE:
            return bytearray(length)
        return (self._small if length <= SMALL else self._large)[:length]
