"""The journal on disk: `--log FILE`, lines of JSON, appended in the background.

The file may lie in somebody's directory, while the daemon is root. The owner of the directory must
gain nothing by that. So no symbolic link is followed that somebody else could have made. Nothing is
written to a file that belongs to a third party, or that has another name elsewhere.
"""

import contextlib
import errno
import logging
import os
import stat
import threading
from pathlib import Path
from typing import Final

import trio

from barfs.journal.records import Entry, Journal

log = logging.getLogger(__name__)

# How long lines are gathered before they are written, and how long a failing disk is left alone, in
# seconds. So the last moments of a machine may be missing.
GATHER: Final = 0.1
RETRY: Final = 1.0


# The kernel follows as many links in a path (include/linux/namei.h, MAXSYMLINKS).
_MAX_LINKS: Final = 40

_OTHERS_WRITE: Final = 0o022

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _open_directory(path: Path) -> int:
    """Open a directory. On the way only links of root or of this user are followed.

    Nobody else can make such a link, whoever owns the directory that it is in.
    """
    fd = os.open("/", _DIRECTORY)
    left = list(reversed(path.absolute().parts[1:]))
    links = 0
    try:
        while left:
            name = left.pop()
            try:
                fd, above = os.open(name, _DIRECTORY, dir_fd=fd), fd
            except NotADirectoryError:
                target = _trusted_link(name, fd)
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                left += reversed([part for part in target.split("/") if part])
                above = -1
                if target.startswith("/"):
                    fd, above = os.open("/", _DIRECTORY), fd
            if above >= 0:
                os.close(above)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _trusted_link(name: str, directory: int) -> str:
    """The target of a link that root or this user made. OSError for other links, and for no
    link.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if os.fstat(fd).st_uid not in {0, os.geteuid()}:
            raise OSError(errno.ELOOP, f"{name} is a symbolic link that somebody else has made")
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


class LogFile:
    """Appends a journal to a file. A file that is not there is made, for its owner only.

    A slow or full disk delays nobody. Lines that it can't take in time are lost, and the numbers of
    the lines tell how many. A file that was moved away, as logrotate does, is made anew. It begins
    with a whole line. OSError if the file can't be made, or can't be trusted.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        self._path = path
        self._journal = journal
        self._taken = 0  # number of the last record
        self._text = b""  # whole lines, or the end of a line that others began
        self._done = 0  # how many bytes of them are written
        self._entries: list[Entry] = []  # that are to become text
        self._failing = False
        self._writing = threading.Lock()
        # At the start a pipe or a device may be named. Later only a file may come to its place.
        self._kinds = {stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR}
        with contextlib.ExitStack() as stack:
            self._directory = _open_directory(path.parent)
            stack.callback(os.close, self._directory)
            self._fd = self._open()
            stack.pop_all()
        self._kinds = {stat.S_IFREG, stat.S_IFMT(os.fstat(self._fd).st_mode)}
        if self._is_torn():
            self._text = b"\n"

    def _open(self) -> int:
        # O_NONBLOCK: a pipe without a reader would block the start and the end.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
        try:
            fd = self._open_as(flags)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed") from None
        try:
            self._check(os.fstat(fd))
        except OSError:
            os.close(fd)
            raise
        return fd

    def _open_as(self, flags: int) -> int:
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path.name, flags, 0o600, dir_fd=self._directory)

    def _check(self, about: os.stat_result) -> None:
        """OSError unless root, this user or the directory's owner alone may have put it there."""
        if stat.S_IFMT(about.st_mode) not in self._kinds:
            raise OSError(errno.EINVAL, "it is no regular file")
        if not stat.S_ISREG(about.st_mode):
            return
        directory = os.stat(self._directory)
        if about.st_uid not in {0, os.geteuid(), directory.st_uid}:
            raise OSError(errno.EPERM, "it belongs to somebody else than its directory")
        is_ours = directory.st_uid == os.geteuid() and not directory.st_mode & _OTHERS_WRITE
        if about.st_nlink > 1 and not is_ours:
            raise OSError(errno.EPERM, "it is a file that has another name, too")

    def _is_torn(self) -> bool:
        """Whether the file ends in part of a line, as after a crash of the machine."""
        about = os.fstat(self._fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size == 0:
            return False
        try:
            fd = self._open_as(os.O_RDONLY)
        except OSError:
            return False
        try:
            return os.pread(fd, 1, about.st_size - 1) not in {b"\n", b""}
        finally:
            os.close(fd)

    async def follow(self) -> None:
        """Write records until cancelled. At the end a disk that hangs is not waited for."""
        while True:
            await self._wait()
            await trio.sleep(GATHER)
            self._gather()
            try:
                done = await trio.to_thread.run_sync(self._write, abandon_on_cancel=True)
            except (RuntimeError, MemoryError) as error:
                # No more threads can be started, or there is no memory for the lines.
                self._complain(str(error) or type(error).__name__)
                done = False
            if not done:
                await trio.sleep(RETRY)

    async def _wait(self) -> None:
        """Wait until there is something to write."""
        if self._text or self._entries or self._taken != self._journal.count:
            return
        news = trio.Event()
        self._journal.listener = news.set
        try:
            await news.wait()
        finally:
            self._journal.listener = None

    def _gather(self) -> None:
        """Take new records, unless there are lines that are not written yet."""
        if not self._text and not self._entries:
            self._entries = self._journal.after(self._taken)
            self._taken = self._journal.count

    def _write(self) -> bool:
        """Write what is left, or what was gathered. False if the disk did not take everything."""
        with self._writing:
            if not self._text:
                self._text = b"".join(entry.line() for entry in self._entries)
                self._entries = []
                self._done = 0
            try:
                self._reopen_if_moved()
                while self._done < len(self._text):
                    self._done += os.write(self._fd, memoryview(self._text)[self._done :])
                self._text = b""
            except OSError as error:
                self._complain(str(error.strerror))
                return False
            self._failing = False
            return True

    def _complain(self, words: str) -> None:
        """Write a line into the daemon's own log, the first time."""
        if not self._failing:
            log.warning("--log %s: %s", self._path, words)
        self._failing = True

    def _reopen_if_moved(self) -> None:
        try:
            there = os.stat(self._path.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self._fd)):
            fresh = self._open()
            os.close(self._fd)
            self._fd = fresh
            self._done = self._text.rfind(b"\n", 0, self._done) + 1

    def close(self) -> None:
        """Write what is left, if the disk takes it, and close the file."""
        if self._write():
            self._gather()
            self._write()
        os.close(self._fd)
        os.close(self._directory)
