"""Where the facts of a machine come from: the files of sysfs, /proc and /boot.

Only here are they read and written. What differs between a real sysfs and plain files is a method
of the source, so a machine that was saved takes another source and nothing else.
"""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Final, Protocol

from barfs.access.files import PAGE_SIZE, RomFile, StrPath, SysfsFile, read_file
from barfs.errors import What
from barfs.machine.presence import PlainPresence, Presence, settled
from barfs.machine.uevents import Watch
from barfs.names import PciAddress

SYSFS: Final = Path("/sys")
PROC: Final = Path("/proc")
BOOT: Final = Path("/boot")


class Source(Protocol):
    """The files of a machine, by their whole paths: those that messages and mends name.

    Whatever reads, writes, lists or opens raises OSError as the system call does, but for what
    says otherwise. Nothing here asks a device, but for `config` and `rom`.
    """

    sysfs: Path
    proc: Path
    boot: Path
    watch: Watch | None  # tells of functions that come and go; None: nobody does

    def read(self, path: StrPath, length: int = PAGE_SIZE, offset: int = 0) -> bytes:
        """Up to `length` bytes of a file from `offset`, in one read."""

    def read_all(self, path: StrPath, limit: int | None = None) -> bytes:
        """All of a file, or its first `limit` bytes."""

    def names(self, directory: StrPath) -> list[str]:
        """What is in a directory."""

    def target(self, link: StrPath) -> str:
        """Where a link points to."""

    def size(self, path: StrPath) -> int:
        """The size of a file in bytes."""

    def exists(self, path: StrPath) -> bool:
        """Whether there is something at a path. Raises nothing."""

    def is_directory(self, path: StrPath) -> bool:
        """Whether there is a directory at a path. Raises nothing."""

    def write(self, path: StrPath, data: bytes) -> None:
        """Write to a file that is there, in one write."""

    def stamp(self) -> Hashable | None:
        """Something that is another once functions came or went; None if that can't be told."""

    def hear(self) -> None:
        """Take in what the kernel has said of functions that came and went. Raises nothing."""

    def presence(self, path: StrPath, address: PciAddress) -> Presence:
        """A watch over a function, by its `resource`. DeviceGone."""

    def open_config(self, path: StrPath, what: What, *, writable: bool) -> SysfsFile:
        """A function's config space. Raises what open_file does."""

    def open_rom(self, path: StrPath, what: What) -> SysfsFile:
        """A function's expansion ROM, to be read. Raises what open_file does."""

    def bar_file(self, path: StrPath, start: int) -> tuple[StrPath, int]:
        """What to map for a function's `resourceN`, and the offset in it where the BAR begins.

        `start` is the bus address of the BAR.
        """

    def text(self, path: StrPath) -> str | None:
        """The text of a file; None if it can't be read."""
        try:
            return self.read_all(path).decode(errors="replace")
        except (OSError, ValueError):  # ValueError: a zero byte in the path
            return None


class _Files(Source):
    """What real and plain files have in common."""

    watch: Watch | None = None

    def __init__(self, sysfs: Path, proc: Path, boot: Path) -> None:
        self.sysfs, self.proc, self.boot = sysfs, proc, boot

    def read(self, path: StrPath, length: int = PAGE_SIZE, offset: int = 0) -> bytes:
        """See Source."""
        return read_file(path, length, offset)

    def read_all(self, path: StrPath, limit: int | None = None) -> bytes:
        """See Source."""
        with open(path, "rb", buffering=0) as file:
            if limit is None:
                return file.readall()
            pieces, rest = [], limit
            while rest and (piece := file.read(rest)):
                pieces.append(piece)
                rest -= len(piece)
            return b"".join(pieces)

    def names(self, directory: StrPath) -> list[str]:
        """See Source."""
        return os.listdir(directory)

    def target(self, link: StrPath) -> str:
        """See Source."""
        return os.fsdecode(os.readlink(link))

    def size(self, path: StrPath) -> int:
        """See Source."""
        return os.stat(path).st_size

    def exists(self, path: StrPath) -> bool:
        """See Source."""
        return os.path.exists(path)

    def is_directory(self, path: StrPath) -> bool:
        """See Source."""
        return os.path.isdir(path)

    def write(self, path: StrPath, data: bytes) -> None:
        """See Source. Not by open(), which would make a file where there is none."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def hear(self) -> None:
        """See Source."""

    def open_config(self, path: StrPath, what: What, *, writable: bool) -> SysfsFile:
        """See Source."""
        return SysfsFile(path, what=what, writable=writable)


class RealSource(_Files):
    """A kernel's own sysfs. Functions come and go with its messages."""

    def __init__(self, sysfs: Path, proc: Path, boot: Path) -> None:
        super().__init__(sysfs, proc, boot)
        self._watch = self.watch = Watch()

    def stamp(self) -> Hashable | None:
        """See Source."""
        return self._watch.stamp()

    def hear(self) -> None:
        """See Source."""
        self._watch.hear()

    def presence(self, path: StrPath, address: PciAddress) -> Presence:
        """See Source."""
        return Presence(path, address)

    def open_rom(self, path: StrPath, what: What) -> SysfsFile:
        """See Source."""
        return RomFile(path, what=what, writable=True)

    def bar_file(self, path: StrPath, start: int) -> tuple[StrPath, int]:
        """See Source. A mapping starts with the page of the first byte (drivers/pci/mmap.c).

        BARs smaller than a page may share one.
        """
        return path, start % PAGE_SIZE


class PlainSource(_Files):
    """Plain files in the place of sysfs: the simulated machine, or a copy that was unpacked."""

    def stamp(self) -> Hashable | None:
        """See Source. The names in a directory of plain files change its time, as in no sysfs."""
        try:
            return settled(os.stat(self.sysfs / "bus/pci/devices").st_mtime_ns)
        except OSError:
            return None

    def presence(self, path: StrPath, address: PciAddress) -> Presence:
        """See Source."""
        return PlainPresence(path, address)

    def open_rom(self, path: StrPath, what: What) -> SysfsFile:
        """See Source. It need not be enabled."""
        return SysfsFile(path, what=what, writable=False)

    def bar_file(self, path: StrPath, start: int) -> tuple[StrPath, int]:
        """See Source."""
        del start
        return path, 0


def source_of(sysfs: Path = SYSFS, proc: Path = PROC, boot: Path = BOOT) -> Source:
    """The source of what is at some paths. Whether that is a real sysfs is asked here alone."""
    return (RealSource if _is_sysfs(sysfs) else PlainSource)(sysfs, proc, boot)


def _is_sysfs(path: Path) -> bool:
    """Whether `path` is a real sysfs rather than a tree of plain files."""
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
