"""Open files of devices: watched over, so that what is gone or does not answer gives no data."""

from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import Final, NamedTuple, Protocol

from barfs.access.files import Buffer
from barfs.errors import DeviceGone
from barfs.nodes import Allocate, View

# How long it is believed that a device answers, in seconds. One who polls a register that is 0
# reads it more often than that, and is not to read config space each time.
BELIEVED: Final = 0.01

# What data without an answer is made of: all ones on hardware, zeros in some virtual machines. It
# is told from its beginning, and may be true: it only makes config space worth a look.
EMPTY: Final = b"\0\xff"
EMPTY_TEXT: Final = b"0xf\n"
_BEGINNING: Final = 16


class Watch(Protocol):
    """Tells whether what was opened is still there."""

    def check(self) -> None:
        """DeviceGone if it is not."""

    def lose(self, error: DeviceGone) -> None:
        """Take it for gone, for good: somebody else has found that out."""


class Newcomers:
    """Watches a physical range for functions that come to lie in it.

    A rule may protect them, and nobody watches over them. `found` has the functions that are in the
    range now. It is asked when functions have come or gone, by the `stamp` of the machine's source.
    Where that can't be told it is asked again after BELIEVED.
    """

    def __init__(
        self, found: Callable[[], Hashable], stamp: Callable[[], Hashable | None], what: str
    ) -> None:
        self._found, self._stamp, self._what = found, stamp, what
        self._known = stamp()
        self._asked = monotonic()
        self._then = found()
        self._lost: DeviceGone | None = None

    def check(self) -> None:
        """See Watch."""
        if self._lost is not None:
            raise self._lost.restated(DeviceGone)
        stamp = self._stamp()
        if stamp == self._known and (stamp is not None or monotonic() - self._asked < BELIEVED):
            return
        self._known, self._asked = stamp, monotonic()
        if self._found() != self._then:
            self.lose(DeviceGone("other devices lie there since it was opened", what=self._what))
            self.check()

    def lose(self, error: DeviceGone) -> None:
        """See Watch."""
        self._lost = error.restated(DeviceGone)


class Guard(NamedTuple):
    """Bytes of a file, the end not included, and what watches over them, mostly a function."""

    start: int
    end: int
    presence: Watch

    def check(self, offset: int, length: int) -> None:
        """DeviceGone if the function is gone, and a request is for some of these bytes."""
        if offset < self.end and self.start < offset + length:
            self.presence.check()


class Held(list[Callable[[], object]]):
    """What is to be called at the end, the last first. An ExitStack takes ten times as long."""

    def close(self) -> None:
        """Call each once, whatever becomes of the others."""
        if self:
            try:
                self.pop()()
            finally:
                self.close()


class Closes(Protocol):
    """What is to be closed with a view."""

    def close(self) -> None:
        """Close it."""


class HeldView:
    """A view, and `held`: what is to be closed with it."""

    def __init__(self, view: View, held: Closes) -> None:
        self.reach = view.reach
        self.width_at = view.width_at
        self.way = view.way
        self.lines = view.lines
        self.text_size = view.text_size
        self._view = view
        self._held = held

    @property
    def raw(self) -> int | None:
        return self._view.raw

    def read(self, offset: int, length: int, allocate: Allocate = bytearray, /) -> Buffer:
        return self._view.read(offset, length, allocate)

    def write(self, offset: int, data: bytes) -> int:
        return self._view.write(offset, data)

    def close(self) -> None:
        try:
            self._view.close()
        finally:
            self._held.close()


class GuardedView(HeldView):
    """A view of what belongs to devices, given up for good once one is gone or its BARs move."""

    def __init__(self, view: View, guards: Sequence[Guard], held: Closes) -> None:
        super().__init__(view, held)
        self._guards = guards

    def _check(self, offset: int, length: int) -> None:
        for start, end, presence in self._guards:  # as Guard.check, without a call for each
            if offset < end and start < offset + length:
                presence.check()

    def read(self, offset: int, length: int, allocate: Allocate = bytearray, /) -> Buffer:
        """DeviceGone, before any access."""
        self._check(offset, length)
        return self._view.read(offset, length, allocate)

    def write(self, offset: int, data: bytes) -> int:
        """DeviceGone, before any access."""
        self._check(offset, len(data))
        return self._view.write(offset, data)


class BarView(GuardedView):
    """A view of a BAR that has answered when it was opened, and may cease to.

    `check` raises NotDecoded if it does not answer. It is asked before a write, and after a read
    that gave nothing but `empty`, bytes of which data without an answer are made; if that is None,
    after every read.
    """

    def __init__(
        self,
        view: View,
        guards: Sequence[Guard],
        held: Closes,
        check: Callable[[], None],
        *,
        empty: bytes | None,
        asked: float,
    ) -> None:
        super().__init__(view, guards, held)
        self._check_answers = check
        self._empty = empty
        self._asked = asked  # when it was known to answer
        # All of a BAR belongs to one function, so nearly each request asks just this. Small
        # requests spend most of their time in calls from one layer to the next.
        ((_, _, presence),) = guards
        self._check_presence = presence.check
        self._read, self._write = view.read, view.write

    def _ask(self) -> None:
        now = monotonic()
        if now - self._asked > BELIEVED:
            self._check_presence()  # what is gone does not answer, and that says more
            try:
                self._check_answers()
            except DeviceGone as error:
                for _, _, presence in self._guards:
                    presence.lose(error)
                raise
            self._asked = now

    def read(self, offset: int, length: int, allocate: Allocate = bytearray, /) -> Buffer:
        """DeviceGone, before any access; NotDecoded, after one that got no answer."""
        self._check_presence()
        data = self._read(offset, length, allocate)
        empty = self._empty
        if len(data) and (
            empty is None or (data[0] in empty and not bytes(data[:_BEGINNING]).strip(empty))
        ):
            self._ask()
        return data

    def write(self, offset: int, data: bytes) -> int:
        """DeviceGone and NotDecoded, before any access."""
        self._ask()
        self._check_presence()
        return self._write(offset, data)
