"""Files that stay open, and what the kernel's refusal of a system call means."""

import contextlib
import errno
import os
import resource
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final, Protocol, TypeAlias

from barfs.errors import (
    Access,
    BarfsError,
    DeviceGone,
    During,
    KernelRefused,
    NotAllowed,
    Opening,
    ReadOnly,
    TooManyFiles,
    What,
)

Buffer: TypeAlias = bytes | bytearray | memoryview
StrPath: TypeAlias = str | os.PathLike[str]

PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")

# The offset after the last byte that a file can have. A file's size is an off_t, too.
OFFSET_END: Final = (1 << 63) - 1

# How many descriptors open files never get. So the daemon still lists directories, looks up names
# and answers when open files have taken all the others.
RESERVED_FILES: Final = 64

# What an errno of open(2) or mmap(2) means, for any file. Callers add meanings of their own.
REFUSALS: Final[Mapping[int, type[BarfsError]]] = {
    errno.EPERM: KernelRefused,
    errno.EACCES: NotAllowed,
    errno.EROFS: ReadOnly,
    errno.ENOENT: DeviceGone,
    errno.ENODEV: DeviceGone,
    errno.ENXIO: DeviceGone,
    errno.EMFILE: TooManyFiles,
}


def refusal(
    what: What,
    during: During | None,
    error: OSError,
    meanings: Mapping[int, type[BarfsError]] = REFUSALS,
) -> BarfsError:
    """The error of barfs for a refused system call. An errno without a meaning is kept."""
    kind = meanings.get(error.errno or 0, BarfsError)
    return kind(what=what, during=during, system=error)


# A pipe that somebody has put in the place of a file is to hold nobody up. The files of sysfs and
# /proc don't know the flag, and /dev/mem neither.
NONBLOCK: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class _Reserve(threading.local):
    """Whether what a thread opens is for somebody who has to leave descriptors to root."""

    for_root = False


_RESERVE: Final = _Reserve()


@contextlib.contextmanager
def leaving_some() -> Iterator[None]:
    """What this thread opens meanwhile leaves a quarter of all descriptors to root."""
    _RESERVE.for_root = True
    try:
        yield
    finally:
        _RESERVE.for_root = False


def _room() -> int:
    """The number from which on descriptors are kept back."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 1 << 31
    return limit - RESERVED_FILES - (limit // 4 if _RESERVE.for_root else 0)


def _no_room(what: What, during: During | None = None) -> TooManyFiles:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return TooManyFiles(
        f"the limit of {limit} open files is near; close some, or start barfs after ulimit -n"
        " with more",
        what=what,
        during=during,
    )


def open_file(path: StrPath, what: What, *, writable: bool, flags: int = 0) -> int:
    """Open a file that stays open, and return its descriptor. Raises an error of barfs.

    TooManyFiles is raised when fewer than RESERVED_FILES descriptors are left, and a quarter of
    all inside `leaving_some`.
    """
    access = os.O_RDWR if writable else os.O_RDONLY
    room = _room()
    try:
        fd = os.open(path, NONBLOCK | access | flags)
    except OSError as error:
        raise refusal(what, Opening(os.fspath(path)), error) from error
    if fd >= room:
        os.close(fd)
        raise _no_room(what, Opening(os.fspath(path)))
    return fd


def take_file(file: StrPath | int, what: What, *, writable: bool, flags: int = 0) -> int:
    """As open_file; of a descriptor that is open, a copy."""
    if not isinstance(file, int):
        return open_file(file, what, writable=writable, flags=flags)
    room = _room()
    try:
        fd = os.dup(file)
    except OSError as error:
        raise refusal(what, None, error) from error
    if fd >= room:
        os.close(fd)
        raise _no_room(what)
    return fd


def read_file(path: StrPath, length: int, offset: int = 0) -> bytes:
    """Up to `length` bytes of a file from `offset`, in one read. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | NONBLOCK)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


class ReadFile(Protocol):
    """A file of `size` bytes that the kernel reads from a device."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes, in one read. Raises the domain's errors."""

    def close(self) -> None:
        """Give it up."""


class WriteFile(ReadFile, Protocol):
    """One that the kernel writes, too."""

    def write(self, offset: int, data: bytes) -> int:
        """Write `data`, and return how much of it was taken. Raises the domain's errors."""


class SysfsFile:
    """A sysfs file that does its own accesses, such as a function's `config`.

    The kernel splits each request into naturally aligned accesses (drivers/pci/pci-sysfs.c,
    pci_read_config). So requests are passed on whole.
    """

    def __init__(self, path: StrPath, *, what: What, writable: bool) -> None:
        self._what = what
        self._fd = open_file(path, what, writable=writable)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`. The kernel gives a page at a time."""
        pieces = []
        try:
            while length:
                pieces.append(os.pread(self._fd, length, offset))
                if not pieces[-1]:
                    break
                offset += len(pieces[-1])
                length -= len(pieces[-1])
            return b"".join(pieces)
        except OSError as error:
            raise refusal(self._what, Access("read", offset, length), error) from error

    def write(self, offset: int, data: bytes) -> int:
        """Write `data` at `offset`, and return how much of it the kernel took."""
        try:
            return os.pwrite(self._fd, data, offset)
        except OSError as error:
            raise refusal(self._what, Access("write", offset, len(data)), error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


# By the paths of `rom`: one for each function that has one and was read.
_ROM_LOCKS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


class RomFile(SysfsFile):
    """sysfs's `rom`, which gives data only while it is enabled (drivers/pci/pci-sysfs.c).

    The ROM is enabled and disabled around each read, so it never stays on, whatever becomes of the
    reader. One read is made at a time, or the first one to end would switch it off for the others.
    So a read may wait, and has to be made in a thread.
    """

    def __init__(self, path: StrPath, *, what: What, writable: bool) -> None:
        super().__init__(path, what=what, writable=writable)
        self._alone = _ROM_LOCKS[os.fspath(path)]

    def read(self, offset: int, length: int) -> bytes:
        """As SysfsFile.read."""
        with self._alone:
            self.write(0, b"1")
            try:
                return super().read(offset, length)
            finally:
                self.write(0, b"0\n")
