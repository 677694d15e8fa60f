"""Long requests in short pieces, so that they can be broken off in between.

A device that does not answer takes 50 ms an access, and a request may have 262,144 of them. The
accesses are the same in pieces, and in the same order.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Final, TypeAlias

from barfs.access.apertures import Aperture
from barfs.access.files import Buffer

# Called with the offset and the length of what is not done yet. What it raises ends the request.
Check: TypeAlias = Callable[[int, int], None]

# How long a piece is to take, in seconds. It is short because a device may cease to answer in the
# middle of one, and then each of its accesses takes a thousand times as long or more.
PIECE: Final = 0.0001

# How long a request goes on before it is looked again whether it may, in seconds.
LOOK: Final = 0.004

# What is never cut, in bytes, and the first piece where nothing is measured yet: one access. And
# the largest piece, which is more than any request.
ONE_ACCESS: Final = 8
_LARGEST: Final = 2 << 20

# What is copied is cut at multiples of so many bytes, because it is copied in accesses as wide.
_COPIED: Final = 64


def interruptible(apertures: Sequence[Aperture], check: Check) -> Sequence[Aperture]:
    """Apertures that lie one after the other, with `check` between the pieces of their requests.

    The offsets that `check` gets are those in all of them together.
    """
    cut: list[Aperture] = []
    first = 0
    for aperture in apertures:
        is_single = aperture.size <= ONE_ACCESS
        cut.append(aperture if is_single else Interruptible(aperture, partial(_at, check, first)))
        first += aperture.size
    return cut


def whole(aperture: Aperture) -> Aperture:
    """The aperture for requests of one access, which are never cut."""
    return aperture.inner if isinstance(aperture, Interruptible) else aperture


def _at(check: Check, first: int, offset: int, length: int) -> None:
    check(first + offset, length)


class Interruptible:
    """An aperture. `check` is called before a piece of a request if the last call is a LOOK ago."""

    def __init__(self, aperture: Aperture, check: Check) -> None:
        self.size, self.base = aperture.size, aperture.base
        self.max_width, self.memory_like = aperture.max_width, aperture.memory_like
        self.way = aperture.way
        self.close = aperture.close
        self.inner = aperture
        self._check = check
        self._extent = ONE_ACCESS  # the length of the next piece, in bytes

    def _pieces(self, offset: int, length: int, unit: int) -> Iterator[tuple[int, int]]:
        """Where the pieces of a request begin and end. They end at multiples of `unit`."""
        at = 0
        looked = perf_counter()
        while at < length:
            started = perf_counter()
            if started - looked > LOOK:
                self._check(offset + at, length - at)
                looked = started
            extent = self._extent
            end = at + max(extent, unit)
            end = min(length, end - (self.base + offset + end) % unit)
            yield at, end
            took = perf_counter() - started
            if took > PIECE:
                self._shorten(extent, took)
            elif end - at >= extent and took < PIECE / 4:
                self._extent = min(_LARGEST, 4 * extent)
            at = end

    def _shorten(self, length: int, took: float) -> None:
        """Have the next piece be as long as a PIECE allows, if `length` bytes took so long."""
        self._extent = max(1, int(length * PIECE / took))

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """See Aperture."""
        length = len(into)
        if length <= ONE_ACCESS or length <= self._extent:  # nearly always, and in one piece
            started = perf_counter()
            self.inner.load_run(offset, width, into)
            if (took := perf_counter() - started) > PIECE and length > ONE_ACCESS:
                self._shorten(length, took)
            return
        with memoryview(into) as whole:
            for at, end in self._pieces(offset, len(whole), width):
                self.inner.load_run(offset + at, width, whole[at:end])

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        """See Aperture."""
        length = len(data)
        if length <= ONE_ACCESS or length <= self._extent:  # nearly always, and in one piece
            started = perf_counter()
            self.inner.store_run(offset, width, data)
            if (took := perf_counter() - started) > PIECE and length > ONE_ACCESS:
                self._shorten(length, took)
            return
        with memoryview(data) as whole:
            for at, end in self._pieces(offset, len(whole), width):
                self.inner.store_run(offset + at, width, whole[at:end])

    def copy_out(self, offset: int, into: Buffer) -> None:
        """See Aperture."""
        length = len(into)
        if length <= ONE_ACCESS or length <= self._extent:  # nearly always, and in one piece
            started = perf_counter()
            self.inner.copy_out(offset, into)
            if (took := perf_counter() - started) > PIECE and length > ONE_ACCESS:
                self._shorten(length, took)
            return
        with memoryview(into) as whole:
            for at, end in self._pieces(offset, len(whole), _COPIED):
                self.inner.copy_out(offset + at, whole[at:end])

    def copy_in(self, offset: int, data: Buffer) -> None:
        """See Aperture."""
        length = len(data)
        if length <= ONE_ACCESS or length <= self._extent:  # nearly always, and in one piece
            started = perf_counter()
            self.inner.copy_in(offset, data)
            if (took := perf_counter() - started) > PIECE and length > ONE_ACCESS:
                self._shorten(length, took)
            return
        with memoryview(data) as whole:
            for at, end in self._pieces(offset, len(whole), _COPIED):
                self.inner.copy_in(offset + at, whole[at:end])
