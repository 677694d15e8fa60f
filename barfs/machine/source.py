"""Where the facts of a machine come from: the files of sysfs, /proc and /boot.

Only here are they read and written. What differs between a real sysfs and plain files is a method
of the source, so a machine that was saved takes another source and nothing else.
"""

import logging
import os
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from threading import Lock
from typing import Final, Protocol

from barfs.access.files import (
    NONBLOCK,
    PAGE_SIZE,
    ReadFile,
    RomFile,
    StrPath,
    SysfsFile,
    WriteFile,
    read_file,
)
from barfs.errors import What
from barfs.machine.changes import Changes
from barfs.machine.presence import PlainPresence, Presence, settled
from barfs.machine.recording import Recording
from barfs.machine.uevents import Watch
from barfs.names import PciAddress

log = logging.getLogger(__name__)

REAL_SYSFS: Final = Path("/sys")
REAL_PROC: Final = Path("/proc")
BOOT: Final = Path("/boot")
KERNEL_LOG: Final = Path("/dev/kmsg")

_RECORD_SIZE: Final = 8192  # none is larger (kernel/printk/printk.c, PRINTKRB_RECORD_MAX)


class Source(Protocol):
    """The files of a machine, by their whole paths. Messages and mends name these paths.

    A method that reads, writes, lists or opens raises OSError as the system call does, if it does
    not say otherwise. Only `config` and `rom` ask a device.
    """

    sysfs: Path
    proc: Path
    boot: Path
    watch: Watch | None  # tells of functions that come and go; None if nothing tells of them
    changes: Changes  # tells of changes of ordinary files, while it runs
    recording: Recording | None = None  # what it is from, if it is a machine that was recorded

    def read(self, path: StrPath, length: int = PAGE_SIZE, offset: int = 0) -> bytes:
        """Up to `length` bytes of a file from `offset`, in one read."""

    def read_all(self, path: StrPath, limit: int | None = None) -> bytes:
        """All of a file, or its first `limit` bytes."""

    def names(self, directory: StrPath) -> list[str]:
        """The names in a directory."""

    def target(self, link: StrPath) -> str:
        """The path that a link points to."""

    def size(self, path: StrPath) -> int:
        """The size of a file in bytes."""

    def exists(self, path: StrPath) -> bool:
        """Whether there is something at a path. Raises nothing."""

    def is_directory(self, path: StrPath) -> bool:
        """Whether there is a directory at a path. Raises nothing."""

    def write(self, path: StrPath, data: bytes) -> None:
        """Write to a file that is there, in one write."""

    def stamp(self) -> Hashable | None:
        """A value that changes when functions come or go. None if that can't be told."""

    def hear(self) -> None:
        """Take in the kernel's messages of functions that came and went. Raises nothing."""

    def tells_of(self, address: PciAddress) -> bool:
        """Whether something has told of each change of a function since before now.

        Raises nothing.
        """

    def presence(self, path: StrPath, address: PciAddress) -> Presence:
        """A watch over a function. `path` is that of its `resource`. Raises DeviceGone."""

    def open_config(self, path: StrPath, what: What, *, writable: bool) -> WriteFile:
        """A function's config space. Raises what open_file does."""

    def open_rom(self, path: StrPath, what: What) -> ReadFile:
        """A function's expansion ROM, for reading. Raises what open_file does."""

    def bar_file(self, path: StrPath, start: int) -> tuple[StrPath, int]:
        """The file to map for a function's `resourceN`, and the offset in it where the BAR begins.

        `start` is the bus address of the BAR.
        """

    def listen(self) -> None:
        """Open the kernel's log, while this process may. Raises nothing."""

    def last_said(self, address: PciAddress, words: str) -> str | None:
        """The last line with some words that the kernel logged of a function.

        None if there is none, or nobody listens. Raises nothing.
        """

    def text(self, path: StrPath) -> str | None:
        """The text of a file. None if it can't be read."""
        try:
            return self.read_all(path).rstrip(b"\0").decode(errors="replace")
        except (OSError, ValueError):  # ValueError: a zero byte in the path
            return None


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | NONBLOCK)


class _Files(Source):
    """What real and plain files have in common."""

    watch: Watch | None = None

    def __init__(self, sysfs: Path, proc: Path, boot: Path) -> None:
        self.sysfs, self.proc, self.boot = sysfs, proc, boot
        self.changes = Changes()

    def read(self, path: StrPath, length: int = PAGE_SIZE, offset: int = 0) -> bytes:
        return read_file(path, length, offset)

    def read_all(self, path: StrPath, limit: int | None = None) -> bytes:
        with open(path, "rb", buffering=0, opener=_opener) as file:
            if limit is None:
                return file.readall() or b""  # None: an empty pipe
            pieces, rest = [], limit
            while rest and (piece := file.read(rest)):
                pieces.append(piece)
                rest -= len(piece)
            return b"".join(pieces)

    def names(self, directory: StrPath) -> list[str]:
        return os.listdir(directory)

    def target(self, link: StrPath) -> str:
        return os.fsdecode(os.readlink(link))

    def size(self, path: StrPath) -> int:
        return os.stat(path).st_size

    def exists(self, path: StrPath) -> bool:
        return os.path.exists(path)

    def is_directory(self, path: StrPath) -> bool:
        return os.path.isdir(path)

    def write(self, path: StrPath, data: bytes) -> None:
        # Not by open(), which would make a file where there is none.
        fd = os.open(path, os.O_WRONLY | NONBLOCK)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def listen(self) -> None:
        """Nothing: no kernel has a log of these functions."""

    def last_said(self, address: PciAddress, words: str) -> str | None:
        del address, words
        return None

    def open_config(self, path: StrPath, what: What, *, writable: bool) -> SysfsFile:
        return SysfsFile(path, what=what, writable=writable)


def _records(kernel_log: int) -> Iterator[str]:
    """What is in the kernel's log from here on; each read gives one record."""
    while True:
        try:
            record = os.read(kernel_log, _RECORD_SIZE)
        except BrokenPipeError:  # those that came next have been overwritten
            continue
        except OSError:  # EAGAIN: that was all
            return
        if not record:
            return
        yield record.partition(b";")[2].partition(b"\n")[0].decode(errors="replace")


class RealSource(_Files):
    """A kernel's own sysfs. Functions come and go with its messages."""

    def __init__(self, sysfs: Path, proc: Path, boot: Path) -> None:
        super().__init__(sysfs, proc, boot)
        self._watch = self.watch = Watch()
        self._log: int | None = None
        self._reading = Lock()  # of the log, which has one position

    def stamp(self) -> Hashable | None:
        return self._watch.stamp()

    def hear(self) -> None:
        self._watch.hear()

    def tells_of(self, address: PciAddress) -> bool:
        del address
        return self._watch.hears_all

    def listen(self) -> None:
        # Only opening it asks for rights (kernel/printk/printk.c, devkmsg_open).
        try:
            self._log = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            log.info("%s: %s", KERNEL_LOG, error.strerror)

    def last_said(self, address: PciAddress, words: str) -> str | None:
        if self._log is None:
            return None
        found = None
        with self._reading:
            os.lseek(self._log, 0, os.SEEK_SET)
            for line in _records(self._log):
                if f" {address}: " in line and words in line:
                    found = line
        return found

    def presence(self, path: StrPath, address: PciAddress) -> Presence:
        return Presence(path, address)

    def open_rom(self, path: StrPath, what: What) -> SysfsFile:
        return RomFile(path, what=what, writable=True)

    def bar_file(self, path: StrPath, start: int) -> tuple[StrPath, int]:
        # A mapping starts with the page of the BAR's first byte (drivers/pci/mmap.c). BARs that are
        # smaller than a page may share one.
        return path, start % PAGE_SIZE


class PlainSource(_Files):
    """Plain files in the place of sysfs: the simulated machine, or an unpacked copy."""

    def __init__(self, sysfs: Path, proc: Path, boot: Path) -> None:
        super().__init__(sysfs, proc, boot)
        self._devices = f"{sysfs}/bus/pci/devices"  # every open of a BAR asks for its stamp

    def stamp(self) -> Hashable | None:
        # Plain files that come or go change the time of their directory. In sysfs they do not.
        try:
            return settled(os.stat(self._devices).st_mtime_ns)
        except OSError:
            return None

    def hear(self) -> None:
        self.changes.hear()

    def tells_of(self, address: PciAddress) -> bool:
        watches = self.changes.watches
        return watches(self._devices) and watches(f"{self._devices}/{address}")

    def presence(self, path: StrPath, address: PciAddress) -> Presence:
        return PlainPresence(path, address)

    def open_rom(self, path: StrPath, what: What) -> SysfsFile:
        # A plain file need not be enabled.
        return SysfsFile(path, what=what, writable=False)

    def bar_file(self, path: StrPath, start: int) -> tuple[StrPath, int]:
        del start
        return path, 0


# What a plain function's BARs, ROM and config space hold changes no name.
_DATA: Final = re.compile(rb"resource\d+(_wc)?|rom|config")


def is_no_data(name: bytes) -> bool:
    """Whether a change of the contents of a function's file may change a name in the tree."""
    return _DATA.fullmatch(name) is None


def source_of(sysfs: Path = REAL_SYSFS, proc: Path = REAL_PROC, boot: Path = BOOT) -> Source:
    """The source for some paths. Only here it is asked whether they are a real sysfs."""
    return (RealSource if _is_sysfs(sysfs) else PlainSource)(sysfs, proc, boot)


def _is_sysfs(path: Path) -> bool:
    """Whether `path` is a real sysfs, and not a tree of plain files."""
    try:
        device = path.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    # mountinfo: id, parent, major:minor, ... " - " type, source, options
    return any(
        line.split()[2] == number and line.partition(" - ")[2].startswith("sysfs ")
        for line in mounts
    )
