"""Who read and wrote what: the lines of `log`, kept in bounded memory, and written to a file.

A record costs little until somebody looks, since it becomes a line of JSON only for a reader. Lines
are numbered. By the numbers a reader sees where lines are missing.
"""

import errno
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, takewhile
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

# How many records that nobody has looked at are kept, and how many bytes of lines. Refusals are
# kept apart, so that they never take the place of opens and writes.
RECORDS: Final = 8192
STREAM_BYTES: Final = 1 << 20
REFUSALS: Final = 1024
REFUSAL_BYTES: Final = 1 << 18

# How many bytes of data a record shows.
VALUE_BYTES: Final = 8
TEXT_BYTES: Final = 64  # the longest value:mask has 64 binary digits, and is cut


class Caller(NamedTuple):
    """The process that asks. `process` is its name, as in /proc/<pid>/comm, None if unknown."""

    uid: int
    pid: int
    process: str | None

    def fields(self) -> Iterator[tuple[str, object]]:
        """The fields of a line for it."""
        yield from zip(self._fields, self, strict=True)


# What lines say about addresses that /proc/iomem does not have.
UNCLAIMED: Final = "on some machines such an access hangs the machine"


class Subject(NamedTuple):
    """The thing that is asked for: a path in the mount, and its function and BAR, if it has them.

    `start` is where the file begins: its offset in the BAR, or its physical address. `unit` says
    which of the two it is. `register` and `field` are names that a map gives.
    """

    path: str
    device: str | None = None
    bar: int | None = None
    start: int = 0
    is_text: bool = False
    unit: Literal["address", "offset"] = "offset"
    unclaimed: bool = False  # whether some of its addresses are in no line of /proc/iomem
    register: str | None = None
    field: str | None = None

    def fields(self, offset: int | None = None) -> Iterator[tuple[str, object]]:
        """The fields of a line for it, and for an offset in it: the offset in the BAR, or the
        address.
        """
        yield "path", self.path
        if self.device is not None:
            yield "device", self.device
        if self.bar is not None:
            yield "bar", self.bar
        if self.unclaimed:
            yield "unclaimed", UNCLAIMED
        if self.register is not None:
            yield "register", self.register
        if self.field is not None:
            yield "field", self.field
        if offset is None:
            return
        # A text view is one register, at whatever offset in its line a request begins.
        at = self.start if self.is_text else self.start + offset
        yield self.unit, hex(at)


class Opened(NamedTuple):
    """An open file: who opened it, and what it is. Text views have text as data."""

    caller: Caller
    subject: Subject

    @property
    def data_limit(self) -> int:
        """How many bytes of data a record may show."""
        return TEXT_BYTES if self.subject.is_text else VALUE_BYTES

    def fields(self, offset: int | None = None) -> Iterator[tuple[str, object]]:
        """The fields of a line for it."""
        yield from self.caller.fields()
        yield from self.subject.fields(offset)


class Open(NamedTuple):
    """A file was opened."""

    opened: Opened
    mode: str  # r, w, rw
    way: str = ""  # the way to its bytes, if there is more than one

    def fields(self) -> Iterator[tuple[str, object]]:
        """The fields of the line."""
        yield "event", "open"
        yield from self.opened.fields()
        yield "mode", self.mode
        if self.way:
            yield "via", self.way


class Transfer(NamedTuple):
    """A read or write was done. `data` is None if there is more than a record shows.

    `width` is the width of all its accesses, in bytes. None if they differ, or if it made none.
    `raw` is the value that a write by name wrote in one access.
    """

    event: str  # read, write
    opened: Opened
    offset: int
    length: int
    width: int | None
    data: bytes | None
    raw: int | None = None

    def fields(self) -> Iterator[tuple[str, object]]:
        """The fields of the line. A single access has its value, others have the bytes."""
        yield "event", self.event
        yield from self.opened.fields(self.offset)
        width = self.width
        if width is not None:
            yield "width", width
        yield "length", self.length
        if self.data is None:
            return
        if self.opened.subject.is_text:
            yield "value", self.data.decode("latin-1").strip()
            if self.raw is not None:
                yield "raw", f"{self.raw:#0{2 + 2 * (width or 0)}x}"
        elif width == self.length:
            yield "value", f"{int.from_bytes(self.data, sys.byteorder):#0{2 + 2 * width}x}"
        else:
            yield "bytes", self.data.hex(" ")


class Refusal(NamedTuple):
    """A request was refused. The daemon's own log has the same message."""

    operation: str
    caller: Caller | None
    subject: Subject | None
    offset: int | None
    length: int | None
    errno: int
    message: str

    def fields(self) -> Iterator[tuple[str, object]]:
        """The fields of the line."""
        yield "event", "refused"
        yield "operation", self.operation
        if self.caller is not None:
            yield from self.caller.fields()
        if self.subject is not None:
            yield from self.subject.fields(self.offset)
        if self.length is not None:
            yield "length", self.length
        yield "errno", errno.errorcode.get(self.errno, str(self.errno))
        yield "message", self.message


class MoreRefusals(NamedTuple):
    """So many more requests of one or several users were refused. Each would have been a line."""

    uid: int | None
    times: int
    message: str

    def fields(self) -> Iterator[tuple[str, object]]:
        """The fields of the line."""
        yield "event", "refused"
        if self.uid is not None:
            yield "uid", self.uid
        yield "times", self.times
        yield "message", self.message


class Change(NamedTuple):
    """The kernel's message that a function came, went or changed: add, remove, bind, unbind."""

    action: str
    device: str

    def fields(self) -> Iterator[tuple[str, object]]:
        """The fields of the line."""
        yield "event", self.action
        yield "device", self.device


Record: TypeAlias = Open | Transfer | Refusal | MoreRefusals | Change


class Entry(NamedTuple):
    """A record, its number from 1 on, and its time in ns since 1970."""

    number: int
    when: int
    record: Record

    def line(self) -> bytes:
        """A line of JSON, with the time in UTC to the microsecond."""
        seconds, rest = divmod(self.when, 1_000_000_000)
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        fields = {"n": self.number, "time": f"{clock}.{rest // 1000:06}Z"}
        return json.dumps({**fields, **dict(self.record.fields())}).encode() + b"\n"


_REFUSED: Final = (Refusal, MoreRefusals)  # a union would be made anew for each record


def _is_refusal(record: Record) -> bool:
    return isinstance(record, _REFUSED)


class Journal:
    """The last RECORDS records and REFUSALS refusals, and the number of all so far.

    `reads` tells whether reads are recorded. `listener` is called after each record, if it is set.
    """

    def __init__(self, *, reads: bool = False) -> None:
        self.reads = reads
        self.listener: Callable[[], None] | None = None
        self.count = 0
        self._entries: deque[Entry] = deque(maxlen=RECORDS)
        self._refusals: deque[Entry] = deque(maxlen=REFUSALS)

    def add(self, record: Record) -> None:
        """Keep a record, and forget the oldest one if there are too many."""
        self.count += 1
        kept = self._refusals if _is_refusal(record) else self._entries
        kept.append(Entry(self.count, time.time_ns(), record))
        if self.listener is not None:
            self.listener()

    def after(self, number: int) -> list[Entry]:
        """The records that are kept after number `number`, in their order."""
        return _after(number, self._entries, self._refusals)


N = TypeVar("N", bound="Entry | Line")


def _after(number: int, *kept: deque[N]) -> list[N]:
    """The entries with a higher number. They are in the order of their numbers."""
    found = [takewhile(lambda one: one.number > number, reversed(each)) for each in kept]
    return sorted(chain(*found), key=lambda one: one.number)


class Line(NamedTuple):
    """A line of `log`, and its number."""

    number: int
    text: bytes


class _Kept:
    """The last lines of one kind, up to so many bytes."""

    def __init__(self, most: int) -> None:
        self.lines: deque[Line] = deque()
        self._most = most
        self.size = 0  # in bytes

    def add(self, line: Line) -> None:
        """Add a line, and drop the oldest ones if there are too many."""
        self.lines.append(line)
        self.size += len(line.text)
        while self.size > self._most:
            self.size -= len(self.lines.popleft().text)


class Stream:
    """The journal as lines of a file, of `size` bytes.

    The last STREAM_BYTES of their text are kept, in whole lines, and REFUSAL_BYTES of refusals.
    While nobody has the file open, it begins with the oldest line that is kept. While somebody
    has, it begins where it did when it was opened: whoever follows it finds it growing.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._taken = 0  # number of the last record
        self._others = _Kept(STREAM_BYTES)
        self._refusals = _Kept(REFUSAL_BYTES)
        self.size = 0
        self.modified = time.time_ns()
        self._readers = 0

    @property
    def kept(self) -> int:
        """How many bytes of lines are kept."""
        return self._others.size + self._refusals.size

    def enter(self) -> None:
        """Somebody opens the file."""
        self.refresh()
        self._readers += 1

    def leave(self) -> None:
        """Somebody closes the file."""
        self._readers -= 1

    def refresh(self) -> None:
        """Take new records from the journal, and drop the oldest lines if there are too many."""
        if self._taken != self._journal.count:
            self._take()
        if not self._readers:
            self.size = self.kept

    def _take(self) -> None:
        for entry in self._journal.after(self._taken):
            line = Line(entry.number, entry.line())
            (self._refusals if _is_refusal(entry.record) else self._others).add(line)
            self.size += len(line.text)
        self._taken = self._journal.count
        self.modified = time.time_ns()

    def after(self, number: int) -> list[Line]:
        """The lines that are kept after number `number`, in their order."""
        return _after(number, self._others.lines, self._refusals.lines)


class LogView:
    """An open `log`: the lines that are kept when it is first read, and later new ones.

    A reader gets whole lines in their order. If it is so slow that lines are dropped before it
    reads them, the numbers of the next lines show it. An offset whose text is not kept any more
    reads from the oldest whole line on. Each open file keeps up to STREAM_BYTES of the text that it
    was given, so that the reader can go back.
    """

    way = ""
    raw: int | None = None

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._begun = False
        self._text = b""
        self._start = 0  # offset of that text in the file, as its reader sees it
        self._last = 0  # number of the last line in it

    def read(self, offset: int, length: int, _: object = None, /) -> bytes:
        """Up to `length` bytes at `offset`. There are none at the present end."""
        self._begin()
        self._stream.refresh()
        if not self._start <= offset <= self._start + len(self._text):
            self._text, self._last = b"", 0
            self._start = min(offset, self._stream.size - self._stream.kept)
        if offset + length > self._start + len(self._text):
            self._follow(offset)
        begin = offset - self._start
        return self._text[begin : begin + length]

    def _begin(self) -> None:
        """Take what is kept now, when the file is read for the first time, or its size asked for.

        Not when it is opened: that is done in a thread, and the stream is the loop's.
        """
        if not self._begun:
            self._begun = True
            self._stream.enter()
            self._start = self._stream.size - self._stream.kept
            self._follow(0)

    @property
    def text_size(self) -> int:
        """See View. It grows."""
        self._begin()
        return self._stream.size

    def close(self) -> None:
        """See View."""
        if self._begun:
            self._begun = False
            self._stream.leave()

    def _follow(self, offset: int) -> None:
        """Add new lines to the text, and drop the excess before an offset."""
        lines = self._stream.after(self._last)
        if not lines:
            return
        self._text += b"".join(line.text for line in lines)
        self._last = lines[-1].number
        # The kernel reads ahead for sendfile, and its requests may change places on their way.
        excess = offset - STREAM_BYTES // 2 - self._start
        if excess > 0:
            drop = self._text.rfind(b"\n", 0, excess) + 1
            self._text = self._text[drop:]
            self._start += drop
