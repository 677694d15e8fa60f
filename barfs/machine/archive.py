"""The files of a recording, in a tar or in a directory, which may come from a stranger.

This is the one place that takes them apart. Nothing is unpacked. A tar is indexed where it lies,
and only what `barfs save` writes is known: plain members with short names. The tarfile module knows
much more, such as links, long names and sparse files, which is what a hostile tar is made of. In a
directory no link is followed.
"""

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from barfs.access.files import NONBLOCK
from barfs.errors import BadRecording

# The most files that a recording may have. Those of 10,000 functions are some 30,000.
MOST_FILES: Final = 200_000

_BLOCK: Final = 512
_CHUNK: Final = 32 * _BLOCK  # headers are read by so many bytes, which several may be in
_MOST_DEPTH: Final = 8
_ZEROS: Final = bytes(_BLOCK)

# POSIX.1-2017, pax: the types of members that hold data, directories, and headers with more facts.
_FILES: Final = b"0\0"
_DIRECTORY: Final = b"5"
_MORE: Final = b"xg"
_KNOWN: Final = _FILES + _DIRECTORY + _MORE
_KINDS: Final = {
    b"1": "a link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"L": "a name that is too long",
    b"K": "a link that is too long",
}

# What a header with more facts may not say: it would change what its member is. Others, such as
# times, mean nothing here.
_CHANGES: Final = re.compile(rb"(?:\A|\n)[0-9]{1,6} (?:path|linkpath|size|GNU\.sparse)")
_MOST_FACTS: Final = 1 << 16

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._+~-]*(?:/[A-Za-z0-9][A-Za-z0-9:._+~-]*){0,7}")


class Archive(Protocol):
    """Files by name. Names are relative, and have neither `..` nor links in them."""

    path: Path

    def names(self) -> Collection[str]:
        """The names of all files."""

    def size(self, name: str) -> int | None:
        """The size of a file in bytes. None if there is none."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes of a file. Raises OSError."""

    def close(self) -> None:
        """Give it up."""


class _Member(NamedTuple):
    """Where the data of a member are in a tar."""

    offset: int
    size: int


class TarArchive:
    """A tar in a file that is open, with an index of its members in memory.

    BadRecording if it has anything that no recording has, or is cut short.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        try:
            self._members = _members(fd)
        except (ValueError, OSError) as error:
            raise BadRecording(str(error), what=str(path)) from error

    def names(self) -> Collection[str]:
        """See Archive."""
        return self._members.keys()

    def size(self, name: str) -> int | None:
        """See Archive."""
        member = self._members.get(name)
        return None if member is None else member.size

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See Archive."""
        member = self._members.get(name)
        if member is None:
            raise FileNotFoundError(name)
        length = max(0, min(length, member.size - offset))
        return os.pread(self._fd, length, member.offset + offset) if length else b""

    def close(self) -> None:
        """See Archive."""
        os.close(self._fd)


def _number(field: bytes) -> int:
    """A number in a header, in octal or, with its highest bit set, in binary. ValueError."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    # int() would also take a sign and underscores.
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise ValueError("it is damaged, or no tar")
    return int(digits, 8)


def _checked(name: str) -> str:
    """A name without `./` in front. ValueError if no file of a recording has such a name."""
    name = name.removeprefix("./").rstrip("/")
    if not _NAME.fullmatch(name):
        raise ValueError(f"it has a file of the name {name[:80]!a}")
    return name


def _sum(header: bytes) -> int:
    """The checksum of a header. Its own field counts as blanks."""
    # Most of a header is zeros, and leaving them out is faster than adding them.
    return sum((header[:148] + header[156:]).translate(None, b"\0")) + 8 * 0x20


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int


def _parse(block: bytes) -> _Header:
    """A header. ValueError if it is none, or that of something that no recording has."""
    if len(block) < _BLOCK or block[257:262] != b"ustar" or _number(block[148:156]) != _sum(block):
        raise ValueError("it is damaged, or no tar")
    kind, size = block[156:157], _number(block[124:136])
    if kind in _KINDS:
        raise ValueError(f"it has {_KINDS[kind]} in it, and no recording has")
    if kind not in _KNOWN:
        raise ValueError(f"it has a member of type {kind!a} in it, and no recording has")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return _Header(name.decode("ascii", errors="replace"), kind, size)


def _headers(fd: int, end: int) -> Iterator[tuple[int, _Header]]:
    """Where the data of each member begin, and its header. ValueError."""
    at = begin = 0
    chunk = b""
    while True:
        if not begin <= at <= begin + len(chunk) - _BLOCK:
            begin, chunk = at, os.pread(fd, _CHUNK, at)
            if not chunk:
                raise ValueError("it is cut short")
        block = chunk[at - begin : at - begin + _BLOCK]
        if block == _ZEROS:
            return
        header = _parse(block)
        at += _BLOCK
        if header.size > end - at:
            raise ValueError("it is cut short")
        yield at, header
        at += -(-header.size // _BLOCK) * _BLOCK


def _members(fd: int) -> dict[str, _Member]:
    """The members of a tar by their names. ValueError, OSError."""
    members: dict[str, _Member] = {}
    for count, (at, header) in enumerate(_headers(fd, os.fstat(fd).st_size)):
        _check_count(count)
        if header.kind in _MORE:
            facts = os.pread(fd, min(header.size, _MOST_FACTS), at)
            if header.size > _MOST_FACTS or _CHANGES.search(facts):
                raise ValueError(
                    "it has headers that no recording has; unpack it, and name the directory"
                )
        elif header.kind in _FILES:
            name = _checked(header.name)
            if name in members:
                raise ValueError(f"it has {name} twice")
            members[name] = _Member(at, header.size)
    return members


def _check_count(count: int) -> None:
    """ValueError for one more file than a recording may have."""
    if count >= MOST_FILES:
        raise ValueError(f"it has more than {MOST_FILES} files")


class DirectoryArchive:
    """The files below a directory. Links, devices and pipes are refused, and never opened."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._sizes: dict[str, int] = {}
        try:
            for name, size in self._walk(fd, "", 1):
                _check_count(len(self._sizes))
                self._sizes[name] = size
        except (ValueError, OSError) as error:
            raise BadRecording(str(error), what=str(path)) from error

    def _walk(self, directory: int, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
        if depth > _MOST_DEPTH:
            raise ValueError("it has directories in directories that no recording has")
        with os.scandir(directory) as entries:
            for entry in entries:
                name = _checked(f"{prefix}{entry.name}")
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    inner = os.open(entry.name, _INSIDE | os.O_DIRECTORY, dir_fd=directory)
                    try:
                        yield from self._walk(inner, f"{name}/", depth + 1)
                    finally:
                        os.close(inner)
                elif stat.S_ISREG(found.st_mode):
                    yield name, found.st_size
                else:
                    raise ValueError(f"{name} is neither a file nor a directory")

    def names(self) -> Collection[str]:
        """See Archive."""
        return self._sizes.keys()

    def size(self, name: str) -> int | None:
        """See Archive."""
        return self._sizes.get(name)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See Archive. Whatever has become of the directory meanwhile, no link is followed."""
        if name not in self._sizes:
            raise FileNotFoundError(name)
        *directories, last = name.split("/")
        held = []
        try:
            fd = self._fd
            for part in directories:
                fd = os.open(part, _INSIDE | os.O_DIRECTORY, dir_fd=fd)
                held.append(fd)
            fd = os.open(last, _INSIDE, dir_fd=fd)
            held.append(fd)
            length = max(0, min(length, self._sizes[name] - offset))
            return os.pread(fd, length, offset) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            for one in held:
                os.close(one)

    def close(self) -> None:
        """See Archive."""
        os.close(self._fd)


_INSIDE: Final = os.O_RDONLY | os.O_NOFOLLOW | NONBLOCK
