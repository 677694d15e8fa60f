"""Printing, and what happens if it is not possible."""

import errno
import os
import shutil
import sys
from typing import TextIO

from barfs.report.looks import PLAIN, Look


class OutputError(Exception):
    """Standard output takes no more. `number` is the errno that tells why."""

    def __init__(self, number: int) -> None:
        super().__init__(f"standard output: {os.strerror(number)}")
        self.number = number


def say(text: str) -> None:
    """Print all of a text, and a newline, at once: who reads only the beginning breaks nothing.

    Raises OutputError. What an encoding does not have becomes an escape; names of files are as
    they are.
    """
    out = sys.stdout
    if out is None:  # it was closed when Python began
        raise OutputError(errno.EBADF)
    try:
        out.flush()
        out.buffer.write(_encoded(f"{text}\n", out))
        out.flush()
    except OSError as error:
        _give_up(out)
        raise OutputError(error.errno or errno.EIO) from None


def complain(text: str) -> None:
    """Print a line on standard error, if that takes one. Nobody else could be told."""
    out = sys.stderr
    if out is None:
        return
    try:
        out.buffer.write(_encoded(f"{text}\n", out))
        out.flush()
    except OSError:
        _give_up(out)


def _give_up(out: TextIO) -> None:
    """Python writes what is left when it ends. It must not fail then."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, out.fileno())
    os.close(null)


def _encoded(text: str, out: TextIO) -> bytes:
    try:
        return text.encode(out.encoding, errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(out.encoding, errors="backslashreplace")


def look() -> Look:
    """How the reader of standard output wants it."""
    if not is_terminal():
        return PLAIN
    # https://no-color.org
    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    return Look(shutil.get_terminal_size().columns, colour)


def is_terminal() -> bool:
    """Whether a person looks at what is printed."""
    return sys.stdout is not None and sys.stdout.isatty()
