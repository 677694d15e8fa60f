"""Spans that can be accessed, and their lifetime. Only this module maps memory."""

import errno
import os
import resource
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias, cast

from barfs.access import _mmio
from barfs.errors import (
    AccessFault,
    BarfsError,
    DeviceGone,
    KernelRefused,
    NotAllowed,
    ReadOnly,
    TooManyFiles,
)

Buffer: TypeAlias = bytes | bytearray | memoryview
StrPath: TypeAlias = str | os.PathLike[str]

PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")

# The most that is mapped at once. A mapping of device memory costs page tables for all of it when
# it is made, 2 MiB a GiB, so a span of terabytes is mapped where it is touched.
WINDOW: Final = 64 << 20

# What is mapped at first where nothing was before. Who looks here and there into a large BAR needs
# no more, and who stays gets a whole window with the second look.
GLANCE: Final = 1 << 20

# Descriptors that open files never get, so that with no more of those to be had the daemon still
# lists directories, looks up names and answers.
RESERVED_FILES: Final = 64

# BUS_ADRERR in uapi/asm-generic/siginfo.h. What touching a mapping gives once its pages are gone
# for good: a driver has claimed the range (kernel/resource.c, revoke_iomem), or the file was cut
# short. Not so BUS_MCEERR_AR, a memory error.
_PAGES_GONE: Final = (signal.SIGBUS, 2)

# What an errno of open(2) or mmap(2) means wherever it comes from; callers add their own.
REFUSALS: Final[Mapping[int, type[BarfsError]]] = {
    errno.EPERM: KernelRefused,
    errno.EACCES: NotAllowed,
    errno.EROFS: ReadOnly,
    errno.ENOENT: DeviceGone,
    errno.ENODEV: DeviceGone,
    errno.ENXIO: DeviceGone,
    errno.EMFILE: TooManyFiles,
}


def refusal(what: str, error: OSError, meanings: Mapping[int, type[BarfsError]]) -> BarfsError:
    """The domain's error for a refused system call; one without a meaning keeps its errno."""
    kind = meanings.get(error.errno or 0, BarfsError)
    result = kind(f"{what}: {error.strerror}")
    if kind is BarfsError and error.errno:
        result.errno = error.errno
    return result


def open_file(path: StrPath, what: str, *, writable: bool, flags: int = 0) -> int:
    """A descriptor of a file that stays open, or the domain's error.

    TooManyFiles already where RESERVED_FILES more would be too many.
    """
    access = os.O_RDWR if writable else os.O_RDONLY
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        fd = os.open(path, os.O_CLOEXEC | access | flags)
    except OSError as error:
        raise refusal(f"{what}: {path}", error, REFUSALS) from error
    if limit != resource.RLIM_INFINITY and fd >= limit - RESERVED_FILES:
        os.close(fd)
        raise TooManyFiles(
            f"{what}: {path}: the limit of {limit} open files is near; close some, or start barfs"
            " after ulimit -n with more"
        )
    return fd


def read_file(path: StrPath, length: int, offset: int = 0) -> bytes:
    """Up to `length` bytes of a file, in one read. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


# Makes the domain's error of a mapping that was refused, from what it was to be in words, the
# error of mmap(2), and the offset in the file and length of what was asked for.
Refuse: TypeAlias = Callable[[str, OSError, int, int], BarfsError]


def refuse_mapping(what: str, error: OSError, start: int, length: int) -> BarfsError:
    """What a refusal means of any file."""
    del start, length
    return refusal(what, error, REFUSALS)


class Aperture(Protocol):
    """What a view needs. Offsets are bytes from the start of the span.

    The caller keeps requests inside `size` and runs naturally aligned at `base + offset`. Any
    access may raise AccessFault or DeviceGone.
    """

    size: int
    base: int  # bus address of byte 0: what alignment is measured against
    max_width: int  # bytes; the widest access that the span takes in one go
    memory_like: bool

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """Fill `into` by ascending loads of `width` bytes."""

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        """Write `data` by ascending stores of `width` bytes."""

    def copy_out(self, offset: int, into: Buffer) -> None:
        """Fill `into` in any widths; for memory-like spans."""

    def copy_in(self, offset: int, data: Buffer) -> None:
        """Write `data` in any widths; for memory-like spans."""

    def close(self) -> None:
        """Give the span up. Not to be used afterwards."""


# What is mapped of a span: its bytes from the first number up to the last. A plain tuple, which
# is taken apart faster than a named one.
_Window: TypeAlias = tuple[_mmio.Span, int, int]

# Holds no request, so its span is never used.
_NOTHING: Final[_Window] = (cast("_mmio.Span", None), 1, 0)


class MappedAperture:
    """`size` bytes of a mappable file from `start`, mapped in windows as they are touched.

    `what` names the span in messages. With `uncached` the file is opened with O_SYNC, which makes
    the kernel map /dev/mem uncached (drivers/char/mem.c, phys_mem_access_prot). The first window
    is mapped at once, so that a refusal shows when the file is opened.

    Several threads may use it at once. An access holds the window that it goes through, so one
    that is replaced or closed meanwhile is unmapped when its last access ends. Once an access
    finds the mapping revoked, the aperture is given up: DeviceGone from then on, and no access.
    """

    max_width = _mmio.MAX_WIDTH

    def __init__(
        self,
        path: StrPath,
        start: int,
        size: int,
        *,
        what: str,
        base: int,
        memory_like: bool,
        writable: bool,
        uncached: bool = False,
        refuse: Refuse = refuse_mapping,
    ) -> None:
        self.size = size
        self.base = base
        self.memory_like = memory_like
        self._what = what
        self._start = start
        self._writable = writable
        self._refuse = refuse
        self._lock = threading.Lock()  # of what changes all below
        self._place = -1  # of the last window, in WINDOWs
        self._fd = open_file(path, what, writable=writable, flags=os.O_SYNC if uncached else 0)
        self._revoked = False
        try:
            self._window = self._map(0, 1)
        except BaseException:
            os.close(self._fd)
            raise

    def _map(self, offset: int, length: int) -> _Window:
        """Map the window around a request, or only its pages if the kernel refuses the window.

        /dev/mem's mmap is all or nothing: one page that is refused refuses them all.
        """
        place = offset // WINDOW
        extent = WINDOW if place == self._place else GLANCE
        self._place = place
        first = offset - offset % extent
        last = min(self.size, max(offset + length, first + extent))
        try:
            return self._map_exactly(first, last)
        except OSError:
            first = max(0, offset - (self._start + offset) % PAGE_SIZE)
            page_end = -(self._start + offset + length) % PAGE_SIZE
            last = min(self.size, offset + length + page_end)
        try:
            return self._map_exactly(first, last)
        except OSError as error:
            what = f"{self._what}: mapping {last - first:#x} bytes at {first:#x}"
            raise self._refuse(what, error, self._start + first, last - first) from error

    def _map_exactly(self, first: int, last: int) -> _Window:
        span = _mmio.Span(self._fd, self._start + first, last - first, self._writable)
        return span, first, last

    def _reach(self, offset: int, length: int) -> _Window:
        """The window that holds a request."""
        span, first, last = window = self._window
        if first <= offset and offset + length <= last:
            return window
        del span, window  # or the traceback of a refusal would keep it mapped
        with self._lock:
            if self._fd < 0:
                raise ValueError(f"{self._what}: used after it was closed")
            if self._revoked:
                raise DeviceGone(
                    f"{self._what}: its mapping was revoked since it was opened; open it again"
                )
            first, last = self._window[1:]
            # Another thread may have been faster.
            if not (first <= offset and offset + length <= last):
                # The old one is not closed: another thread may be about to use it.
                self._window = self._map(offset, length)
            return self._window

    def _fault(self, fault: _mmio.Fault, first: int, verb: str) -> BarfsError:
        offset, signum, code = fault.args
        where = f"{self._what}: {verb} at {first + offset:#x}"
        if (signum, code) != _PAGES_GONE:
            return AccessFault(f"{where} faulted ({signal.Signals(signum).name}, code {code})")
        with self._lock:
            self._revoked = True
            self._window = _NOTHING
        return DeviceGone(
            f"{where}: its mapping was revoked, as when a driver claims the range; open it again"
        )

    # In each of these the exception's traceback would keep `span`, and so the mapping, alive.

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """See Aperture."""
        span, first, _ = self._reach(offset, len(into))
        try:
            span.load_run(offset - first, width, into)
        except _mmio.Fault as fault:
            del span
            raise self._fault(fault, first, f"read of {width} bytes") from fault

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        """See Aperture."""
        span, first, _ = self._reach(offset, len(data))
        try:
            span.store_run(offset - first, width, data)
        except _mmio.Fault as fault:
            del span
            raise self._fault(fault, first, f"write of {width} bytes") from fault

    def copy_out(self, offset: int, into: Buffer) -> None:
        """See Aperture."""
        span, first, _ = self._reach(offset, len(into))
        try:
            span.copy_out(offset - first, _mmio.COPY_WIDTH, into)
        except _mmio.Fault as fault:
            del span
            raise self._fault(fault, first, "read") from fault

    def copy_in(self, offset: int, data: Buffer) -> None:
        """See Aperture."""
        span, first, _ = self._reach(offset, len(data))
        try:
            span.copy_in(offset - first, _mmio.COPY_WIDTH, data)
        except _mmio.Fault as fault:
            del span
            raise self._fault(fault, first, "write") from fault

    def close(self) -> None:
        """Unmap, once accesses in other threads have ended, and close the file."""
        with self._lock:
            if self._fd >= 0:
                self._window = _NOTHING
                os.close(self._fd)
                self._fd = -1


class CopiedAperture:
    """Memory that the kernel copies to and fro: /dev/mem read and written rather than mapped.

    For System RAM only: the kernel chooses the widths (drivers/char/mem.c, read_mem).
    """

    max_width = _mmio.MAX_WIDTH
    memory_like = True

    def __init__(self, path: StrPath, start: int, size: int, *, what: str, writable: bool) -> None:
        self.size = size
        self.base = start
        self._what = what
        self._start = start
        self._fd = open_file(path, what, writable=writable)

    def copy_out(self, offset: int, into: Buffer) -> None:
        """See Aperture."""
        with memoryview(into) as rest:
            done = 0
            while done < len(rest):
                try:
                    got = os.preadv(self._fd, [rest[done:]], self._start + offset + done)
                except OSError as error:
                    raise refusal(
                        f"{self._what}: read at {offset + done:#x}", error, REFUSALS
                    ) from error
                if got == 0:
                    raise AccessFault(f"{self._what}: read at {offset + done:#x}: nothing there")
                done += got

    def copy_in(self, offset: int, data: Buffer) -> None:
        """See Aperture."""
        with memoryview(data) as rest:
            done = 0
            while done < len(rest):
                try:
                    put = os.pwrite(self._fd, rest[done:], self._start + offset + done)
                except OSError as error:
                    raise refusal(
                        f"{self._what}: write at {offset + done:#x}", error, REFUSALS
                    ) from error
                if put == 0:
                    raise AccessFault(f"{self._what}: write at {offset + done:#x}: nothing there")
                done += put

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """As a copy, for memory has no widths."""
        del width
        self.copy_out(offset, into)

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        """As a copy, for memory has no widths."""
        del width
        self.copy_in(offset, data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class PortAperture:
    """`size` port addresses from `base` through sysfs's `resourceN`, from `start` in that file.

    One read or write of 1, 2 or 4 bytes is one access (drivers/pci/pci-sysfs.c, pci_resource_io).
    """

    max_width = 4
    memory_like = False

    def __init__(
        self, path: StrPath, start: int, size: int, *, what: str, base: int, writable: bool
    ) -> None:
        self.size = size
        self.base = base
        self._what = what
        self._start = start
        self._fd = open_file(path, what, writable=writable)

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """See Aperture."""
        with memoryview(into) as rest:
            for at in range(0, len(rest), width):
                where = self._start + offset + at
                self._complete(os.preadv, [rest[at : at + width]], where, width, "read")

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        """See Aperture."""
        with memoryview(data) as rest:
            for at in range(0, len(rest), width):
                where = self._start + offset + at
                self._complete(os.pwritev, [rest[at : at + width]], where, width, "write")

    def _complete(
        self,
        call: Callable[[int, list[memoryview], int], int],
        piece: list[memoryview],
        where: int,
        width: int,
        verb: str,
    ) -> None:
        what = f"{self._what}: {verb} of {width} bytes at {where - self._start:#x}"
        try:
            done = call(self._fd, piece, where)
        except OSError as error:
            raise refusal(what, error, REFUSALS) from error
        if done != width:
            raise AccessFault(f"{what}: the kernel took {done}")

    def copy_out(self, offset: int, into: Buffer) -> None:
        """Ports are not memory-like: byte by byte."""
        self.load_run(offset, 1, into)

    def copy_in(self, offset: int, data: Buffer) -> None:
        """Ports are not memory-like: byte by byte."""
        self.store_run(offset, 1, data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class SysfsFile:
    """A sysfs file that does its own accesses, such as a function's `config`.

    The kernel cuts each request into naturally aligned accesses (drivers/pci/pci-sysfs.c,
    pci_read_config), so requests are passed on whole.
    """

    def __init__(self, path: StrPath, *, what: str, writable: bool) -> None:
        self._what = what
        self._fd = open_file(path, what, writable=writable)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """As much of `length` bytes at `offset` as the kernel gives, a page at a time."""
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
            raise refusal(
                f"{self._what}: read of {length:#x} bytes at {offset:#x}", error, REFUSALS
            ) from error

    def write(self, offset: int, data: bytes) -> int:
        """How much of `data` the kernel took at `offset`."""
        try:
            return os.pwrite(self._fd, data, offset)
        except OSError as error:
            raise refusal(
                f"{self._what}: write of {len(data):#x} bytes at {offset:#x}", error, REFUSALS
            ) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class RomFile(SysfsFile):
    """sysfs's `rom`, which gives data only while it is enabled (drivers/pci/pci-sysfs.c).

    Enabled and disabled around each read, so that it never stays on, whatever becomes of the
    reader, and two readers don't switch it off for each other.
    """

    def read(self, offset: int, length: int) -> bytes:
        """As SysfsFile.read."""
        self.write(0, b"1")
        try:
            return super().read(offset, length)
        finally:
            self.write(0, b"0\n")
