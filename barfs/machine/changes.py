"""The kernel's messages of changes in directories of ordinary files, through inotify(7).

sysfs and /proc send none of them. A file that is changed through a mapping, or through another of
its names, sends none either.
"""

import ctypes
import errno
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from barfs.access.files import StrPath

log = logging.getLogger(__name__)

# include/uapi/linux/inotify.h
_MODIFY: Final = 0x2
_ATTRIB: Final = 0x4
_MOVED: Final = 0x40 | 0x80
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_SELF: Final = 0x400 | 0x800
_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000
_ONLY_DIRECTORIES: Final = 0x01000000

_MASK: Final = _MODIFY | _ATTRIB | _MOVED | _CREATE | _DELETE | _SELF | _ONLY_DIRECTORIES
_EVENT: Final = struct.Struct("iIII")  # followed by the name

# How many directories are watched, so that others of this user can watch some, too
# (fs.inotify.max_user_watches may be 8192).
MOST: Final = 1024

_BUFFER: Final = 1 << 16


class Changes:
    """Watches directories, while `run` runs."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._watches: dict[str, int] = {}
        self._add: Callable[[int, bytes, int], int] | None = None
        self._tell: Callable[[], None] = lambda: None
        self._matters: Callable[[bytes], bool] = lambda _name: True

    def watches(self, directory: StrPath) -> bool:
        """Whether each change of names and files in a directory has been told of since before now.

        If not, the directory is watched from now on if that is possible. A directory that is not
        there is not watched. Raises nothing.
        """
        path = os.fspath(directory)
        if path in self._watches:
            return True
        if self._fd is not None and self._add is not None and len(self._watches) < MOST:
            number = self._add(self._fd, os.fsencode(path), _MASK)
            if number >= 0:
                self._watches[path] = number
        return False

    async def run(
        self, tell: Callable[[], None], matters: Callable[[bytes], bool] = lambda _name: True
    ) -> None:
        """Call `tell` when something has changed, or messages were lost, until cancelled.

        A change of a file whose name does not matter is not told. It returns at once where the
        kernel has no inotify, or too many use it.
        """
        # It is needed only here, and slow to import.
        import trio  # noqa: PLC0415

        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            log.info("no inotify: %s", os.strerror(ctypes.get_errno()))
            return
        self._tell, self._matters = tell, matters
        self._fd, self._add = fd, libc.inotify_add_watch
        try:
            while True:
                await trio.lowlevel.wait_readable(fd)
                self.hear()
        finally:
            self._fd = None
            self._watches.clear()
            os.close(fd)

    def hear(self) -> None:
        """Take in the messages that wait, so that everything that was done is known."""
        changed = False
        while self._fd is not None:
            try:
                data = os.read(self._fd, _BUFFER)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    log.warning("inotify: %s", error.strerror)
                break
            changed |= self._has_changed(data)
        if changed:
            self._tell()

    def _has_changed(self, data: bytes) -> bool:
        at, changed = 0, False
        while at < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + length].rstrip(b"\0")
            at += length
            if mask & (_IGNORED | _SELF):
                # The directory is gone, or is elsewhere. Whatever is there now is watched anew.
                self._watches = {
                    path: known for path, known in self._watches.items() if known != number
                }
            if not mask & (_MODIFY | _ATTRIB) or self._matters(name):
                changed = True
        return changed


def nearest(directory: Path) -> Path:
    """A directory, or if it is not there, the nearest one above it that is."""
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    return directory
