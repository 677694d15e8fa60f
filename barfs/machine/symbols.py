"""The kernel's symbols, from /proc/kallsyms: names to virtual addresses.

The kernel shows addresses only if the process that opened the file had the right to see them
(kernel/ksyms_common.c, kallsyms_show_value). So the file is opened once, while barfs has that
right, and kept open.
"""

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

from barfs.errors import NoSuchNode

_PIECE: Final = 1 << 20

# A name has at most 512 bytes (include/linux/kallsyms.h, KSYM_NAME_LEN), and none of these.
_NOT_IN_NAMES: Final = frozenset("\n\t /\0")

_LINE: Final = re.compile(rb"([0-9a-f]{8,16}) (.) (\S+)(?:\t\[(\S+)\])?")


class Symbol(NamedTuple):
    """A name of the kernel. `address` is virtual. `kind` is a letter as in nm(1).

    `size`, in bytes, extends to the address of the next symbol. It is 0 if no symbol comes after
    it.
    """

    name: str
    address: int
    size: int
    kind: str
    module: str | None = None


class Symbols:
    """The symbols of the running kernel, from `proc`/kallsyms."""

    def __init__(self, proc: Path) -> None:
        self.path = proc / "kallsyms"
        self.refusal: OSError | None = None
        self._fd = -1
        self._known: dict[str, Symbol] = {}  # of the kernel's image, which does not move
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self.refusal = error

    def _text(self) -> bytes:
        """The whole text. Reading it takes about 40 ms. NoSuchNode if it can't be read or is
        withheld.
        """
        if self.refusal is not None:
            raise NoSuchNode(
                f"{self.path}: {self.refusal.strerror}; it is there in kernels built with "
                "CONFIG_KALLSYMS"
            ) from self.refusal
        pieces, at = [], 0
        try:
            while piece := os.pread(self._fd, _PIECE, at):
                pieces.append(piece)
                at += len(piece)
        except OSError as error:
            raise NoSuchNode(f"{self.path}: {error.strerror}") from error
        text = b"".join(pieces)
        if not re.search(rb"^0*[1-9a-f]", text, re.MULTILINE):
            raise NoSuchNode(
                f"{self.path} shows no addresses; it needs CAP_SYSLOG, and sysctl "
                "kernel.kptr_restrict below 2"
            )
        return text

    def check(self) -> None:
        """NoSuchNode, with the reason, if the kernel shows no addresses or no names of data."""
        missing = _without_data(self._text())
        if missing:
            raise NoSuchNode(missing.removeprefix("; "))

    def find(self, name: str) -> Symbol:
        """The symbol of a name. NoSuchNode if there is none, or more than one."""
        known = self._known.get(name)
        if known is None:
            known = self._find(name)
            if known.module is None:
                self._known[name] = known
        return known

    def _find(self, name: str) -> Symbol:
        if not name or _NOT_IN_NAMES.intersection(name):
            raise NoSuchNode(f"no symbol can be named {name!a}")
        text = self._text()
        word = re.escape(os.fsencode(name))
        lines = re.findall(rb"^[0-9a-f]+ . %b(?:\t\S+)?$" % word, text, re.MULTILINE)
        if not lines:
            raise NoSuchNode(f"the kernel has no symbol {name!a}{_without_data(text)}")
        found = [_parse(line) for line in lines]
        if len({symbol.address for symbol in found}) > 1:
            places = ", ".join(f"{symbol.address:#x}" for symbol in found)
            raise NoSuchNode(f"the kernel has {len(found)} symbols {name}: at {places}")
        return found[0]._replace(size=_size(text, found[0].address))

    def matching(self, pattern: str) -> Iterator[Symbol]:
        """All symbols whose names match a shell pattern, by address. Raises NoSuchNode."""
        everything = sorted(
            (_parse(line) for line in self._text().splitlines()), key=lambda one: one.address
        )
        ends = [one.address for one in everything]
        place = 0
        for index, one in enumerate(everything):
            place = max(place, index + 1)
            while place < len(ends) and ends[place] == one.address:
                place += 1
            if fnmatchcase(one.name, pattern):
                size = ends[place] - one.address if place < len(ends) else 0
                yield one._replace(size=size)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _parse(line: bytes) -> Symbol:
    match = _LINE.fullmatch(line)
    if match is None:
        raise NoSuchNode(
            f"kallsyms has a line that is no symbol: {line[:80].decode(errors='replace')!a}"
        )
    address, kind, name, module = match.groups()
    owner = None if module is None else module.decode(errors="replace")
    return Symbol(os.fsdecode(name), int(address, 16), 0, kind.decode("latin-1"), owner)


def _size(text: bytes, address: int) -> int:
    """The bytes from an address to that of the next symbol. 0 if there is none."""
    words = re.findall(rb"^([0-9a-f]+) ", text, re.MULTILINE)
    # All addresses have the same number of digits, so their texts compare as numbers do.
    own = b"%0*x" % (len(words[0]), address)
    later = min((word for word in words if word > own), default=own)
    return int(later, 16) - address


def _without_data(text: bytes) -> str:
    """A hint for a kernel without names of data, in which there is little to find."""
    if re.search(rb"^[0-9a-f]+ [dDbB] init_task$", text, re.MULTILINE):
        return ""
    return "; its names of data are missing, which kernels built with CONFIG_KALLSYMS_ALL have"
