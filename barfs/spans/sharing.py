"""What mounts of one machine tell each other of a function: locks on a file that all of them open.

A lock goes with the process that holds it, so one that was killed holds nothing.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from barfs.access.files import NONBLOCK, StrPath

# struct flock (uapi/asm-generic/fcntl.h): kind, whence, start, length, process.
_LOCK: Final = struct.Struct("hhqqi4x" if struct.calcsize("P") == 8 else "hhqqi")

# Locks of an open file, and not of a process (fcntl(2), "Open file description locks").
_GET: Final = getattr(fcntl, "F_OFD_GETLK", 36)
_SET: Final = getattr(fcntl, "F_OFD_SETLK", 37)


class Marks:
    """Numbered marks on a function that is in use. The marks of others can be seen.

    `path` is a file that only root may open, as others could hold locks for ever. Without it
    nothing is seen of others, and they see nothing.
    """

    def __init__(self, path: StrPath | None) -> None:
        self._fd = -1
        if path is not None:
            with contextlib.suppress(OSError):
                self._fd = os.open(path, os.O_RDONLY | NONBLOCK)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else is in such a block for the same function meanwhile. It may have to wait."""
        self._flock(fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._flock(fcntl.LOCK_UN)

    def _flock(self, operation: int) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # the file system has no locks
                fcntl.flock(self._fd, operation)

    def _lock(self, command: int, kind: int, number: int, length: int) -> int:
        """The kind of lock that fcntl(2) gives back."""
        asked = _LOCK.pack(kind, os.SEEK_SET, number, length, 0)
        found: int = _LOCK.unpack(fcntl.fcntl(self._fd, command, asked))[0]
        return found

    def set(self, number: int) -> None:
        """Set a mark. Raises OSError."""
        if self._fd >= 0:
            self._lock(_SET, fcntl.F_RDLCK, number, 1)

    def clear(self) -> None:
        """Take all marks away. Raises OSError."""
        if self._fd >= 0:
            self._lock(_SET, fcntl.F_UNLCK, 0, 0)

    def of_others(self, number: int) -> bool:
        """Whether somebody else has set a mark. Raises OSError."""
        return self._fd >= 0 and self._lock(_GET, fcntl.F_WRLCK, number, 1) != fcntl.F_UNLCK

    def close(self) -> None:
        """Take all marks away, and close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
