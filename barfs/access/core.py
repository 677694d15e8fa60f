"""Memory that is read through a core file of the kernel's, in pieces, and never written."""

import errno
import os
from collections.abc import Sequence
from typing import Final

from barfs.access.files import Buffer
from barfs.errors import Access, AccessFault, BarfsError, KernelRefused, ReadOnly, What

MAX_WIDTH: Final = 8


class CoreAperture:
    """`size` bytes from `base`. `pieces` tells where they are in the file, ascending.

    A piece is an offset in the file and a length in bytes. The kernel chooses the widths of its
    copies, so this is for System RAM only. It gives zeros for pages that it withholds: offline,
    ballooned and poisoned ones (fs/proc/kcore.c, read_kcore_iter). The caller keeps `fd` and closes
    it.
    """

    max_width = MAX_WIDTH
    memory_like = True
    way = ""

    def __init__(
        self, fd: int, pieces: Sequence[tuple[int, int]], *, what: What, base: int
    ) -> None:
        self.size = sum(length for _, length in pieces)
        self.base = base
        self._what = what
        self._pieces = pieces
        self._fd = os.dup(fd)

    def copy_out(self, offset: int, into: Buffer) -> None:
        """Fill `into`. The kernel chooses the widths."""
        with memoryview(into) as rest:
            done, begin = 0, 0
            for start, length in self._pieces:
                while done < len(rest) and begin <= offset + done < begin + length:
                    at = offset + done - begin
                    got = self._read(rest[done : done + length - at], start + at, offset + done)
                    done += got
                begin += length

    def _read(self, into: memoryview, at: int, offset: int) -> int:
        during = Access("read", offset)
        try:
            got = os.preadv(self._fd, [into], at)
        except OSError as error:
            kind = KernelRefused if error.errno == errno.EPERM else AccessFault
            raise kind(what=self._what, during=during, system=error) from error
        if got == 0:
            raise AccessFault("nothing there", what=self._what, during=during)
        return got

    def copy_in(self, offset: int, data: Buffer) -> None:
        """ReadOnly."""
        raise self._refusal(offset, len(data))

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """Copy: memory has no widths."""
        del width
        self.copy_out(offset, into)

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        """ReadOnly."""
        del width
        raise self._refusal(offset, len(data))

    def _refusal(self, offset: int, length: int) -> BarfsError:
        during = Access("write", offset, length)
        return ReadOnly("/proc/kcore is only read", what=self._what, during=during)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
