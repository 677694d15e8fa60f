"""The journal on disk: `--log FILE`, lines of JSON, appended in the background."""

import logging
import os
import stat
from pathlib import Path
from typing import Final

import trio

from barfs.journal.records import Entry, Journal

log = logging.getLogger(__name__)

# How long lines are gathered before they are written, and how long a disk that fails is left
# alone, in seconds. What a machine does in its last moments may therefore be missing.
GATHER: Final = 0.1
RETRY: Final = 1.0


class LogFile:
    """Appends a journal to a file, which is made if it is not there, for its owner only.

    A disk that is slow or full holds nobody up: what it can't take in time is lost, and the numbers
    of the lines say how much. A file that was moved away, as logrotate does, is made anew, and
    begins with a whole line. OSError if it can't be made.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        self._path = path
        self._journal = journal
        self._taken = 0  # number of the last record
        self._text = b""  # whole lines, or the end of one that others began
        self._done = 0  # bytes of them that are written
        self._failing = False
        self._fd = self._open()
        if self._is_torn():
            self._text = b"\n"

    def _open(self) -> int:
        # O_NONBLOCK for a pipe without a reader, which would hold up the start and the end.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self._path, flags, 0o600)

    def _is_torn(self) -> bool:
        """Whether the file ends in a piece of a line, as when the machine went down."""
        about = os.fstat(self._fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size == 0:
            return False
        try:
            with open(self._path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), 1, about.st_size - 1) != b"\n"
        except OSError:
            return False

    async def follow(self) -> None:
        """Write what is recorded, until cancelled."""
        while True:
            await self._wait()
            await trio.sleep(GATHER)
            entries = self._gather()
            if not await trio.to_thread.run_sync(self._write, entries):
                await trio.sleep(RETRY)

    async def _wait(self) -> None:
        """Until there is something to write."""
        if self._text or self._taken != self._journal.count:
            return
        news = trio.Event()
        self._journal.listener = news.set
        try:
            await news.wait()
        finally:
            self._journal.listener = None

    def _gather(self) -> list[Entry]:
        """What is new, unless there are lines still to be written."""
        if self._text:
            return []
        entries = self._journal.after(self._taken)
        self._taken = self._journal.count
        return entries

    def _write(self, entries: list[Entry]) -> bool:
        """Write what is left, or these records; False if the disk did not take all of them."""
        if entries:
            self._text = b"".join(entry.line() for entry in entries)
            self._done = 0
        try:
            self._reopen_if_moved()
            while self._done < len(self._text):
                self._done += os.write(self._fd, memoryview(self._text)[self._done :])
            self._text = b""
        except OSError as error:
            if not self._failing:
                log.warning("--log %s: %s", self._path, error.strerror)
            self._failing = True
            return False
        self._failing = False
        return True

    def _reopen_if_moved(self) -> None:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self._fd)):
            fresh = self._open()
            os.close(self._fd)
            self._fd = fresh
            self._done = self._text.rfind(b"\n", 0, self._done) + 1

    def close(self) -> None:
        """Write what is left, if the disk takes it, and close the file."""
        if self._write([]):
            self._write(self._gather())
        os.close(self._fd)
