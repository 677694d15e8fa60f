"""Spans that can be accessed, and their lifetime. Only this module maps memory."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias, cast

from barfs.access import _mmio
from barfs.access.files import PAGE_SIZE, Buffer, StrPath, open_file, refusal, take_file
from barfs.errors import (
    Access,
    AccessFault,
    BarfsError,
    CachingConflict,
    DeviceGone,
    Mmap,
    Verb,
    What,
)

# The most that is mapped at once, in bytes. A mapping of device memory costs page tables for all of
# it when it is made: 2 MiB for each GiB. So a span of terabytes is mapped only where it is touched.
WINDOW: Final = 64 << 20

# What is mapped at the first access to a window, in bytes. A program that looks here and there into
# a large BAR needs no more. A program that stays gets a whole window with its second access.
GLANCE: Final = 1 << 20

# How many windows may be mapped before new ones are no longer than a GLANCE, how many may be mapped
# at all, and how many bytes in all of them. Each open file could have one, and their page tables
# are memory that the kernel can't take back: 128 KiB for each WINDOW, 4 KiB for each GLANCE.
LONG_WINDOWS: Final = 64
MOST_WINDOWS: Final = 1024
MOST_MAPPED: Final = 8 << 30

# The signal and its code (BUS_ADRERR in uapi/asm-generic/siginfo.h) when a mapping is touched whose
# pages are gone for good. Then a driver has claimed the range (kernel/resource.c, revoke_iomem), or
# the file was cut short. A memory error has another code, BUS_MCEERR_AR.
_PAGES_GONE: Final = (signal.SIGBUS, 2)

_Page: TypeAlias = Callable[[int, memoryview], None]  # an access in one page, and its offset

# Makes an error of barfs when mmap(2) refused a mapping. It gets the thing that was to be mapped,
# the part of it, the error of mmap(2), and the offset in the file where the mapping was to begin.
Refuse: TypeAlias = Callable[[What, Mmap, OSError, int], BarfsError]


def refuse_mapping(what: What, during: Mmap, error: OSError, _start: int) -> BarfsError:
    """What a refused mapping of any file means."""
    return refusal(what, during, error)


class Aperture(Protocol):
    """A span that a view accesses. Offsets are bytes from the start of the span.

    The caller keeps requests inside `size`, and keeps runs naturally aligned at `base + offset`.
    Any access may raise AccessFault or DeviceGone.
    """

    size: int
    base: int  # bus address of byte 0: what alignment is measured against
    max_width: int  # the widest access that the span allows, in bytes
    memory_like: bool
    way: str  # the way by which it was opened; barfs/spans/ways.py sets it

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """Fill `into` by loads of `width` bytes, lowest address first."""

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        """Write `data` by stores of `width` bytes, lowest address first."""

    def copy_out(self, offset: int, into: Buffer) -> None:
        """Fill `into` by loads of any width. Only for memory-like spans."""

    def copy_in(self, offset: int, data: Buffer) -> None:
        """Write `data` by stores of any width. Only for memory-like spans."""

    def close(self) -> None:
        """Give the span up. It must not be used afterwards."""


# The part of a span that is mapped: the mapping, its first byte, and the byte after its last. A
# plain tuple is taken apart faster than a named one.
_Window: TypeAlias = tuple[_mmio.Span, int, int]

# A window that holds no request. Its span is never used.
_NOTHING: Final[_Window] = (cast("_mmio.Span", None), 1, 0)


class _Windows:
    """The windows of all apertures. The oldest are given up when there are too many.

    An aperture whose window was given up maps one anew at its next access.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while an aperture's window changes
        self._lengths: dict[MappedAperture, int] = {}  # in bytes; the oldest window first
        self._total = 0

    @property
    def are_few(self) -> bool:
        """Whether a new window may be a long one."""
        return len(self._lengths) < LONG_WINDOWS

    def set(self, aperture: "MappedAperture", window: _Window) -> None:
        """Give an aperture a window, in the place of the one it has."""
        with self._lock:
            self._forget(aperture)
            aperture.window = window
            length = self._lengths[aperture] = window[2] - window[1]
            self._total += length
            while len(self._lengths) > MOST_WINDOWS or self._total > MOST_MAPPED:
                oldest = next(iter(self._lengths))
                if oldest is aperture:
                    break
                self._forget(oldest)

    def clear(self, aperture: "MappedAperture") -> None:
        """Take an aperture's window away, if it has one."""
        with self._lock:
            self._forget(aperture)

    def _forget(self, aperture: "MappedAperture") -> None:
        # The span is not closed: another thread may be about to use it.
        aperture.window = _NOTHING
        self._total -= self._lengths.pop(aperture, 0)


_WINDOWS: Final = _Windows()


class MappedAperture:
    """`size` bytes of a mappable file from `start`, mapped in windows as they are touched.

    `what` names the span in messages. With `uncached` the file is opened with O_SYNC. Then the
    kernel maps /dev/mem uncached (drivers/char/mem.c, phys_mem_access_prot). The first window is
    mapped at once, so that a refusal shows when the file is opened. In the place of a path may be
    an open descriptor, of which a copy is used.

    With `lead` the file can only be mapped whole, from `start` on, and the span begins that many
    bytes after it.

    Several threads may use it at once. An access holds the window that it goes through. So a window
    that is replaced or given up meanwhile is unmapped when the last access through it ends. When an
    access finds the mapping revoked, the aperture is given up: from then on a request raises
    DeviceGone and makes no access.

    A request over pages that others have mapped in different caching types is made page by page. If
    one of them can't be mapped, the accesses before it have been made.
    """

    max_width = _mmio.MAX_WIDTH
    way = ""

    def __init__(
        self,
        path: StrPath | int,
        start: int,
        size: int,
        *,
        what: What,
        base: int,
        memory_like: bool,
        writable: bool,
        uncached: bool = False,
        refuse: Refuse = refuse_mapping,
        lead: int | None = None,
    ) -> None:
        self.size = size
        self.base = base
        self.memory_like = memory_like
        self._what = what
        self._start = start
        self._writable = writable
        self._refuse = refuse
        self._lead = lead
        self._lock = threading.Lock()  # held while any of the attributes below changes
        self._place = -1  # where the last window lies, counted in WINDOWs
        flags = os.O_SYNC if uncached else 0
        self._fd = take_file(path, what, writable=writable, flags=flags)
        self._revoked = False
        self.window = _NOTHING  # only _WINDOWS sets it
        try:
            _WINDOWS.set(self, self._map(0, 1))
        except BaseException:
            self.close()
            raise

    def _map(self, offset: int, length: int) -> _Window:
        """Map the window around a request, or only its pages if the kernel refuses the window.

        /dev/mem maps all or nothing: one page that it refuses makes it refuse the whole window.
        """
        place = offset // WINDOW
        extent = WINDOW if place == self._place and _WINDOWS.are_few else GLANCE
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
            during = Mmap(first, last - first)
            raise self._refuse(self._what, during, error, self._start + first) from error

    def _map_exactly(self, first: int, last: int) -> _Window:
        if self._lead is not None:
            whole = self._lead + self.size
            return _mmio.Span(self._fd, self._start, whole, self._writable), -self._lead, self.size
        span = _mmio.Span(self._fd, self._start + first, last - first, self._writable)
        return span, first, last

    def _reach(self, offset: int, length: int) -> _Window:
        """The window that holds a request. It is mapped if need be."""
        span, first, last = window = self.window
        if first <= offset and offset + length <= last:
            return window
        del span, window  # otherwise the traceback of a refusal would keep it mapped
        with self._lock:
            if self._fd < 0:
                raise ValueError(f"{self._what}: used after it was closed")
            if self._revoked:
                raise DeviceGone(
                    "its mapping was revoked since it was opened; open it again", what=self._what
                )
            span, first, last = window = self.window
            # Another thread may have mapped it meanwhile.
            if first <= offset and offset + length <= last:
                return window
            del span, window
            window = self._map(offset, length)
            _WINDOWS.set(self, window)
            return window

    def _by_pages(
        self, conflict: CachingConflict, access: _Page, offset: int, data: Buffer
    ) -> None:
        """Make a request page by page. `conflict` is raised if it lies in a single page."""
        with memoryview(data) as rest:
            end = PAGE_SIZE - (self._start + offset) % PAGE_SIZE
            if len(rest) <= end:
                raise conflict
            access(offset, rest[:end])
            for at in range(end, len(rest), PAGE_SIZE):
                access(offset + at, rest[at : at + PAGE_SIZE])

    def _fault(
        self, fault: _mmio.Fault, first: int, verb: Verb, width: int | None = None
    ) -> BarfsError:
        offset, signum, code = fault.args
        during = Access(verb, first + offset, width=width)
        if (signum, code) != _PAGES_GONE:
            name = signal.Signals(signum).name
            return AccessFault(f" faulted ({name}, code {code})", what=self._what, during=during)
        with self._lock:
            self._revoked = True
            _WINDOWS.clear(self)
        return DeviceGone(
            "its mapping was revoked, as when a driver claims the range; open it again",
            what=self._what,
            during=during,
        )

    # `del span` in each of these: the exception's traceback would keep the mapping alive.

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        try:
            span, first, _ = self._reach(offset, len(into))
        except CachingConflict as conflict:
            self._by_pages(conflict, lambda at, part: self.load_run(at, width, part), offset, into)
            return
        try:
            span.load_run(offset - first, width, into)
        except _mmio.Fault as fault:
            del span
            raise self._fault(fault, first, "read", width) from fault

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        try:
            span, first, _ = self._reach(offset, len(data))
        except CachingConflict as conflict:
            self._by_pages(conflict, lambda at, part: self.store_run(at, width, part), offset, data)
            return
        try:
            span.store_run(offset - first, width, data)
        except _mmio.Fault as fault:
            del span
            raise self._fault(fault, first, "write", width) from fault

    def copy_out(self, offset: int, into: Buffer) -> None:
        try:
            span, first, _ = self._reach(offset, len(into))
        except CachingConflict as conflict:
            self._by_pages(conflict, self.copy_out, offset, into)
            return
        try:
            span.copy_out(offset - first, _mmio.COPY_WIDTH, into)
        except _mmio.Fault as fault:
            del span
            raise self._fault(fault, first, "read") from fault

    def copy_in(self, offset: int, data: Buffer) -> None:
        try:
            span, first, _ = self._reach(offset, len(data))
        except CachingConflict as conflict:
            self._by_pages(conflict, self.copy_in, offset, data)
            return
        try:
            span.copy_in(offset - first, _mmio.COPY_WIDTH, data)
        except _mmio.Fault as fault:
            del span
            raise self._fault(fault, first, "write") from fault

    def close(self) -> None:
        """Close the file, and unmap when the accesses in other threads have ended."""
        with self._lock:
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                try:
                    _WINDOWS.clear(self)
                finally:
                    os.close(fd)


class CopiedAperture:
    """System RAM that the kernel copies: /dev/mem is read and written, and not mapped.

    The kernel chooses the widths (drivers/char/mem.c, read_mem).
    """

    max_width = _mmio.MAX_WIDTH
    way = ""
    memory_like = True

    def __init__(self, path: StrPath, start: int, size: int, *, what: What, writable: bool) -> None:
        self.size = size
        self.base = start
        self._what = what
        self._start = start
        self._fd = open_file(path, what, writable=writable)

    def copy_out(self, offset: int, into: Buffer) -> None:
        with memoryview(into) as rest:
            done = 0
            while done < len(rest):
                try:
                    got = os.preadv(self._fd, [rest[done:]], self._start + offset + done)
                except OSError as error:
                    during = Access("read", offset + done)
                    raise refusal(self._what, during, error) from error
                if got == 0:
                    during = Access("read", offset + done)
                    raise AccessFault("nothing there", what=self._what, during=during)
                done += got

    def copy_in(self, offset: int, data: Buffer) -> None:
        with memoryview(data) as rest:
            done = 0
            while done < len(rest):
                try:
                    put = os.pwrite(self._fd, rest[done:], self._start + offset + done)
                except OSError as error:
                    during = Access("write", offset + done)
                    raise refusal(self._what, during, error) from error
                if put == 0:
                    during = Access("write", offset + done)
                    raise AccessFault("nothing there", what=self._what, during=during)
                done += put

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """Copy: memory has no widths."""
        del width
        self.copy_out(offset, into)

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        """Copy: memory has no widths."""
        del width
        self.copy_in(offset, data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class PortAperture:
    """`size` I/O ports from `base`. They begin at `start` in sysfs's `resourceN`.

    A read or write of 1, 2 or 4 bytes of that file is one access (drivers/pci/pci-sysfs.c,
    pci_resource_io).
    """

    max_width = 4
    way = ""
    memory_like = False

    def __init__(
        self, path: StrPath | int, start: int, size: int, *, what: What, base: int, writable: bool
    ) -> None:
        self.size = size
        self.base = base
        self._what = what
        self._start = start
        self._fd = take_file(path, what, writable=writable)

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        with memoryview(into) as rest:
            for at in range(0, len(rest), width):
                where = self._start + offset + at
                self._complete(os.preadv, [rest[at : at + width]], where, width, "read")

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
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
        verb: Verb,
    ) -> None:
        during = Access(verb, where - self._start, width=width)
        try:
            done = call(self._fd, piece, where)
        except OSError as error:
            raise refusal(self._what, during, error) from error
        if done != width:
            raise AccessFault(f"the kernel took {done}", what=self._what, during=during)

    def copy_out(self, offset: int, into: Buffer) -> None:
        """Copy byte by byte, since ports are not memory-like."""
        self.load_run(offset, 1, into)

    def copy_in(self, offset: int, data: Buffer) -> None:
        """Copy byte by byte, since ports are not memory-like."""
        self.store_run(offset, 1, data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
