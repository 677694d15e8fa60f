"""The writes of one open file as parts of a whole: of a line of text, of a file that is all new.

How much a program writes at a time is its stdio's business: 4 bytes in a shell that has written to
a register first, for glibc takes the size of a buffer from the st_blksize of the first file. And a
shell whose write was refused goes on with the rest (bash 5.2, printf).
"""

import enum
from typing import Final, NamedTuple

from barfs.errors import BadRequest
from barfs.nodes import Lines

# The longest line that is kept: a valid one may have any number of zeros in front.
LONGEST: Final = 4096

_MEND: Final = "open the file again"


class Line(NamedTuple):
    """What was written to a text file, and the offset that it begins at."""

    offset: int
    text: bytes


class _State(enum.Enum):
    OPEN = enum.auto()  # at the beginning of a line, or in it
    DONE = enum.auto()  # the line was carried out without its newline, which may still come
    SPOILED = enum.auto()  # a piece of the line was refused, and what goes on there is its rest


class Typed:
    """Pieces of lines, which `lines` knows the form of.

    Pieces that follow each other, by their offsets, are one line. It is to be carried out at its
    newline, or by `end` where it has none. No part of a line is ever given out as a line.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._start = 0
        self._text = b""
        self._next = 0  # where a piece that goes on begins
        self._state = _State.OPEN

    @property
    def pending(self) -> bool:
        """Whether there is a line that `end` would give out."""
        return bool(self._text)

    def goes_on(self, offset: int) -> bool:
        """Whether a piece follows the one before it; else what is pending is a line by itself."""
        return offset == self._next

    def take(self, offset: int, data: bytes) -> Line | None:
        """Add a piece; the line that is to be carried out now, if the piece ends one.

        BadRequest for what can be no beginning of a line. All of the line is dropped then, and the
        rest of it refused. Where the piece does not go on, `end` goes first.
        """
        state, begun = self._state, self._text
        if not self.goes_on(offset):
            state, begun = _State.OPEN, b""
        if not begun:
            self._start = offset
        line = begun + data
        ends = data.endswith(b"\n")
        # So it stays if the piece is refused: then the caller's position is still where it was.
        self._text, self._next = b"", offset
        self._state = _State.OPEN if ends else _State.SPOILED
        if state is _State.SPOILED:
            raise BadRequest(f"the beginning of this line was refused; {_MEND}")
        if state is _State.DONE:
            self._check_end(data)
        elif ends:
            self._lines.check(line, ends=True)
        else:
            self._check_beginning(line)
            self._text = line
        self._next = offset + len(data)
        if ends:
            return None if state is _State.DONE else Line(self._start, line)
        self._state = state
        return None

    @staticmethod
    def _check_end(data: bytes) -> None:
        if data.strip(b" \t") not in {b"", b"\n"}:
            raise BadRequest(
                "the line before had no newline when a descriptor was closed, and was carried out;"
                f" {_MEND}"
            )

    def _check_beginning(self, line: bytes) -> None:
        if len(line) > LONGEST:
            raise BadRequest(f"a line has {LONGEST} bytes at the most")
        self._lines.check(line, ends=False)

    def end(self) -> Line | None:
        """The line that has no newline yet, if there is one, to be carried out as it is."""
        if not self._text:
            return None
        line = Line(self._start, self._text)
        self._text = b""
        self._state = _State.DONE
        return line


class Fresh:
    """What a program believes of a file that it has truncated to `size` bytes.

    That it has what is written to it from there on, without a gap, and zeros where it is made
    longer. But the bytes of a BAR stay what they are.
    """

    def __init__(self, size: int) -> None:
        self.end = size  # how long it is believed to be, in bytes
        self._failed = False

    def check_write(self, offset: int) -> None:
        """BadRequest for a write that would leave a gap, or is the rest of one that failed."""
        if self._failed:
            raise BadRequest(f"a write before this one failed, and this may be its rest; {_MEND}")
        self._check_reach(offset)

    def wrote(self, end: int) -> None:
        """A write was done, up to an offset."""
        self.end = max(self.end, end)

    def failed(self) -> None:
        """A write was refused: what the program writes next is most likely its rest."""
        self._failed = True

    def truncate(self, size: int) -> None:
        """BadRequest where that would make the file longer than it is believed to be."""
        self._check_reach(size)
        self.end = size

    def _check_reach(self, end: int) -> None:
        if end > self.end:
            raise BadRequest(
                f"the file was truncated, so {end - self.end:#x} bytes at {self.end:#x} would"
                " have to be zeros, and they stay what they are; write them (cp --sparse=never), or"
                " do not truncate (dd conv=notrunc)"
            )
