"""Who read and wrote what: the lines of `log`, kept in bounded memory, and written to a file.

A record costs little until somebody looks: it is made into a line of JSON only for a reader.
"""

import errno
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Literal, NamedTuple, TypeAlias

from barfs.errors import Access, ReadOnly

# What is kept for readers that come late: records that nobody has looked at, bytes of lines.
RECORDS: Final = 8192
STREAM_BYTES: Final = 1 << 20

# The most bytes of data that a record shows.
VALUE_BYTES: Final = 8
TEXT_BYTES: Final = 64  # the longest value:mask has 64 digits in binary, and is cut


class Caller(NamedTuple):
    """Who asks. `process` is its name, as in /proc/<pid>/comm; None if it is not known."""

    uid: int
    pid: int
    process: str | None

    def fields(self) -> Iterator[tuple[str, object]]:
        """What a line says of it."""
        yield from zip(self._fields, self, strict=True)


class Subject(NamedTuple):
    """What is asked for: a path in the mount, and the function and BAR if it is of one.

    `start` is where the file begins: its offset in the BAR, or its physical address. `unit` says
    which of the two a place in it is.
    """

    path: str
    device: str | None = None
    bar: int | None = None
    start: int = 0
    is_text: bool = False
    unit: Literal["address", "offset"] = "offset"

    def fields(self, offset: int | None = None) -> Iterator[tuple[str, object]]:
        """What a line says of it, and of an offset in it: the offset in the BAR, or the address."""
        yield "path", self.path
        if self.device is not None:
            yield "device", self.device
        if self.bar is not None:
            yield "bar", self.bar
        if offset is None:
            return
        # A text view is one register, wherever in its line a request begins.
        at = self.start if self.is_text else self.start + offset
        yield self.unit, hex(at)


class Opened(NamedTuple):
    """An open file: who opened it, what it is, and what its requests are made of.

    `width_at(offset, length)` is the width in bytes of all accesses of a request, None if they
    differ or have none. The data of text views are text.
    """

    caller: Caller
    subject: Subject
    width_at: Callable[[int, int], int | None]

    @property
    def data_limit(self) -> int:
        """How many bytes of data a record shows at the most."""
        return TEXT_BYTES if self.subject.is_text else VALUE_BYTES

    def fields(self, offset: int | None = None) -> Iterator[tuple[str, object]]:
        """What a line says of it."""
        yield from self.caller.fields()
        yield from self.subject.fields(offset)


class Open(NamedTuple):
    """A file was opened."""

    opened: Opened
    mode: str  # r, w, rw

    def fields(self) -> Iterator[tuple[str, object]]:
        """What the line says."""
        yield "event", "open"
        yield from self.opened.fields()
        yield "mode", self.mode


class Transfer(NamedTuple):
    """A read or write was done; `data` are None if they are more than a record shows."""

    event: str  # read, write
    opened: Opened
    offset: int
    length: int
    data: bytes | None

    def fields(self) -> Iterator[tuple[str, object]]:
        """What the line says: of one access its value, of others the bytes."""
        yield "event", self.event
        yield from self.opened.fields(self.offset)
        width = self.opened.width_at(self.offset, self.length)
        if width is not None:
            yield "width", width
        yield "length", self.length
        if self.data is None:
            return
        if self.opened.subject.is_text:
            yield "value", self.data.decode("latin-1").strip()
        elif width == self.length:
            yield "value", f"{int.from_bytes(self.data, sys.byteorder):#0{2 + 2 * width}x}"
        else:
            yield "bytes", self.data.hex(" ")


class Refusal(NamedTuple):
    """A request was refused; the message is what the daemon's own log says too."""

    operation: str
    caller: Caller | None
    subject: Subject | None
    offset: int | None
    length: int | None
    errno: int
    message: str

    def fields(self) -> Iterator[tuple[str, object]]:
        """What the line says."""
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


class Change(NamedTuple):
    """The kernel said that a function came, went or changed: add, remove, bind, unbind."""

    action: str
    device: str

    def fields(self) -> Iterator[tuple[str, object]]:
        """What the line says."""
        yield "event", self.action
        yield "device", self.device


class Lost(NamedTuple):
    """So many lines are missing here."""

    lines: int

    def fields(self) -> Iterator[tuple[str, object]]:
        """What the line says."""
        yield "event", "lost"
        yield "lines", self.lines


Record: TypeAlias = Open | Transfer | Refusal | Change | Lost


def line(when: int, record: Record) -> bytes:
    """A record as a line of JSON; `when` in ns since 1970, shown in UTC to the microsecond."""
    seconds, rest = divmod(when, 1_000_000_000)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fields = {"time": f"{clock}.{rest // 1000:06}Z", **dict(record.fields())}
    return json.dumps(fields).encode() + b"\n"


class Journal:
    """The last RECORDS records, and how many there have been. `reads`: whether reads are recorded.

    `listener` is called after each record, if there is one.
    """

    def __init__(self, *, reads: bool = False) -> None:
        self.reads = reads
        self.listener: Callable[[], None] | None = None
        self.end = 0
        self._records: deque[tuple[int, Record]] = deque(maxlen=RECORDS)

    def add(self, record: Record) -> None:
        """Keep a record, and forget the oldest one if there are too many."""
        self._records.append((time.time_ns(), record))
        self.end += 1
        if self.listener is not None:
            self.listener()

    def since(self, start: int) -> list[tuple[int, Record]]:
        """The records from number `start` on, with their times; before them a Lost if some are."""
        oldest = self.end - len(self._records)
        found = list(islice(self._records, max(0, start - oldest), None))
        if start < oldest:
            found.insert(0, (found[0][0], Lost(oldest - start)))
        return found


class Stream:
    """The journal as the contents of a file that grows at its end and vanishes at its start.

    Offsets count all bytes since the mount, so that they stay what they are.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._taken = 0  # records
        self._text = bytearray()
        self._gaps: deque[tuple[int, int]] = deque()  # ends of Lost lines, and what they stand for
        self.first = 0  # where the oldest line begins that is kept
        self._first_record = 0  # how many records there were before it
        self.modified = time.time_ns()

    @property
    def end(self) -> int:
        """Offset of the end, in bytes."""
        return self.first + len(self._text)

    def refresh(self) -> None:
        """Take what is new in the journal; drop the oldest lines beyond STREAM_BYTES."""
        if self._taken == self._journal.end:
            return
        for when, record in self._journal.since(self._taken):
            self._text += line(when, record)
            if isinstance(record, Lost):
                self._gaps.append((self.end, record.lines))
        self._taken = self._journal.end
        self.modified = time.time_ns()
        excess = len(self._text) - STREAM_BYTES
        if excess > 0:
            drop = self._text.index(b"\n", excess) + 1
            self._first_record = self.records_before(self.first + drop)
            self.first += drop
            del self._text[:drop]
            while self._gaps and self._gaps[0][0] <= self.first:
                self._gaps.popleft()

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from a kept offset."""
        begin = start - self.first
        return bytes(self._text[begin : begin + length])

    def rest_of_line(self, start: int) -> bytes:
        """What is left of the line that holds a kept offset; nothing at its beginning."""
        begin = start - self.first
        if begin == 0 or self._text[begin - 1 : begin] == b"\n":
            return b""
        return bytes(self._text[begin : self._text.index(b"\n", begin) + 1])

    def records_before(self, offset: int) -> int:
        """How many records since the mount are told of, or said to be lost, before an offset.

        Only lines that end there count; of what is not kept, all before it.
        """
        lines = self._text.count(b"\n", 0, max(0, offset - self.first))
        lost = sum(lines - 1 for end, lines in self._gaps if end <= offset)
        return self._first_record + lines + lost


class LogView:
    """An open `log`. A reader that is too slow gets a line that says how many it has lost.

    That comes when the line that it has begun is at its end, so each line is a whole one. After
    such a line its offsets are no longer those of the stream: they go on from where it is. One that
    seeks to what is not kept any more is told of all that is lost since the mount.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._shift = 0  # from the reader's offsets to the stream's
        self._notice = b""
        self._notice_at = 0
        # Where it goes on if it does not seek, the rest of the line that it is in, and the number
        # of records up to the end of that.
        self._next = 0
        self._rest = b""
        self._records = 0

    def read(self, offset: int, length: int, _: object = None, /) -> bytes:
        """Up to `length` bytes at `offset`, none at the end as it is now."""
        self._stream.refresh()
        if self._notice_at <= offset < self._notice_at + len(self._notice):
            return self._notice[offset - self._notice_at :][:length]
        at = offset + self._shift
        if at >= self._stream.end:
            return b""
        if at < self._stream.first:
            return self._tell_loss(offset)[:length]
        data = self._stream.read(at, length)
        at += len(data)
        self._next = offset + len(data)
        self._rest = self._stream.rest_of_line(at)
        self._records = self._stream.records_before(at + len(self._rest))
        return data

    def _tell_loss(self, offset: int) -> bytes:
        stream = self._stream
        kept = stream.records_before(stream.first)
        rest, told = (self._rest, self._records) if offset == self._next else (b"", 0)
        self._notice = rest + (line(time.time_ns(), Lost(kept - told)) if told < kept else b"")
        self._notice_at = offset
        self._shift = stream.first - offset - len(self._notice)
        self._next = offset + len(self._notice)
        self._rest = b""
        self._records = kept
        return self._notice

    def write(self, offset: int, data: bytes) -> int:
        """Refused."""
        during = Access("write", offset, len(data))
        raise ReadOnly(" of a read-only file", what="log", during=during)

    @staticmethod
    def reach(offset: int, length: int, *, writing: bool) -> range:
        """Nothing on the bus."""
        del offset, length, writing
        return range(0)

    @staticmethod
    def width_at(offset: int, length: int) -> None:
        """It is made of no accesses."""

    def close(self) -> None:
        """There is nothing behind it."""
