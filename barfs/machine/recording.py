"""A machine that was recorded: what is known of it, and what of its devices was read.

The layout is that of docs/recordings.md. `load_recording` reads it from an archive and believes
none of it: what is not of the form that `barfs save` writes is refused.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from sys import intern
from typing import Any, Final, NamedTuple

from barfs.errors import BadRecording
from barfs.machine.archive import Archive
from barfs.names import PciAddress

FORMAT: Final = 1

ABOUT: Final = "recording.json"
FINDINGS: Final = "doctor.txt"
FACTS: Final = "facts.json"

# The attributes of a function that barfs reads, and no others are recorded.
ATTRIBUTES: Final = (
    "vendor",
    "device",
    "subsystem_vendor",
    "subsystem_device",
    "class",
    "revision",
    "resource",
    "numa_node",
    "power_state",
    "power/runtime_status",
    "power/control",
    "enable",
)
# The kernel reads config space for this one, so only of a bridge that is awake.
LINK_WIDTH: Final = "current_link_width"

# Links of a function of which barfs reads the target, and those that it asks for. An empty name is
# the function's own entry, which leads through the bridges above it.
LINKS: Final = ("", "driver")
EXISTING: Final = ("physfn",)
GROUP: Final = "iommu_group/devices"

# Files of a whole machine that barfs reads.
MACHINE_FILES: Final = (
    "proc/iomem",
    "proc/cmdline",
    "proc/config.gz",
    "proc/sys/kernel/osrelease",
    "proc/sys/kernel/arch",
    "sys/kernel/security/lockdown",
    "sys/kernel/security/lsm",
    "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
)
_FUNCTION: Final = re.compile(r"pci/([^/]+)/facts\.json")
_BOOT_CONFIG: Final = re.compile(r"boot/config-[\w.+~-]+")

# What of a function is data: its config space, its ROM and its BARs.
PARTS: Final = ("config", "rom", *(f"bar{index}" for index in range(6)))

# What is said to be refused where a function slept whose registers were wanted.
REGISTERS: Final = "registers"

_ATTRIBUTES: Final = (*ATTRIBUTES, LINK_WIDTH)
_PARTS: Final = frozenset(PARTS)
_REFUSED: Final = (*PARTS, REGISTERS)

# How large what is kept in memory may be, in bytes.
_MOST_FACTS: Final = 1 << 18  # of a function
_MOST_TEXT: Final = 16 << 20  # of a file of the machine
_MOST_IN_MEMORY: Final = 96 << 20  # of all of them
_MOST_RANGES: Final = 1 << 18  # of all BARs
_MOST_MEMBERS: Final = 1 << 10  # of an IOMMU group
_MOST_WORDS: Final = 1 << 12  # characters of a sentence or an attribute
_END: Final = 1 << 63

_WIDTHS: Final = frozenset((1, 2, 4, 8))
# JSON can have halves of a UTF-16 pair that UTF-8 can't.
_NO_CHARACTER: Final = re.compile("[\ud800-\udfff]")


class Range(NamedTuple):
    """Bytes that were read: `length` from `start`. They begin at `at` in the part's data.

    `width` is that of the accesses in bytes; None if it was not always the same or is not known.
    """

    start: int
    length: int
    width: int | None
    at: int


_START: Final = attrgetter("start")


class Part:
    """What was read of config space, of a ROM or of a BAR. `ranges` ascend and share no byte.

    `read` gives bytes of its data, by offset and length.
    """

    def __init__(self, ranges: Sequence[Range], read: Callable[[int, int], bytes]) -> None:
        self.ranges = ranges
        self._read = read

    def extents(self, most: int = 4) -> list[str]:
        """Its ranges, the end included, in hex. "..." stands for what is beyond the first few."""
        shown = [f"{one.start:x}-{one.start + one.length - 1:x}" for one in self.ranges[:most]]
        return [*shown, *(["..."] if len(self.ranges) > most else [])]

    def at(self, offset: int, length: int) -> bytes:
        """The bytes from an offset up to the first that was not read, at most `length`.

        Raises OSError.
        """
        found = bytearray()
        index = bisect_right(self.ranges, offset, key=_START) - 1
        while 0 <= index < len(self.ranges) and len(found) < length:
            one = self.ranges[index]
            inside = offset + len(found) - one.start
            if not 0 <= inside < one.length:
                break
            wanted = min(length - len(found), one.length - inside)
            data = self._read(one.at + inside, wanted)
            found += data
            if len(data) < wanted:
                break
            index += 1
        return bytes(found)


@dataclass(slots=True)
class RecordedFunction:
    """What is known of a function. `sizes` are those of `config` and `rom`.

    `refused` says of parts why they were not read.
    """

    attributes: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    group: Sequence[str] = ()
    exists: Sequence[str] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    driver_known: bool = True  # whether no link to a driver means that there is none


@dataclass
class Recording:
    """A recorded machine. `about` is a sentence that says whose it is, and when it was."""

    path: Path
    about: str
    functions: Mapping[PciAddress, RecordedFunction]
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: Mapping[PciAddress, Sequence[str]] = field(
        default_factory=dict
    )  # what it lacks, and why


class _Wrong(ValueError):
    """Something is not of the form of a recording; the message says what."""


def load_recording(archive: Archive) -> Recording:
    """The recording in an archive, which stays open. Raises BadRecording."""
    try:
        return _Loader(archive).load()
    except (_Wrong, OSError) as error:
        raise BadRecording(str(error), what=str(archive.path)) from error


class _Loader:
    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._room = _MOST_IN_MEMORY
        self._ranges = _MOST_RANGES

    def _content(self, name: str, most: int) -> bytes:
        """All of a small file."""
        size = self._archive.size(name)
        if size is None:
            raise _Wrong(f"it has no {name}")
        self._room -= size
        if size > most or self._room < 0:
            raise _Wrong(f"{name} is larger than any recording has it")
        data = self._archive.read(name, 0, size)
        if len(data) != size:
            raise _Wrong(f"{name} is cut short")
        return data

    def _object(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._content(name, _MOST_FACTS))
        except (ValueError, RecursionError) as error:
            if isinstance(error, _Wrong):
                raise
            raise _Wrong(f"{name} is no JSON") from error
        if type(found) is not dict:
            raise _Wrong(f"{name} is no object")
        return found

    def load(self) -> Recording:
        about = self._object(ABOUT)
        if about.get("format") != FORMAT:
            raise _Wrong(f"{ABOUT} has another format than {FORMAT}, of a later barfs perhaps")
        functions = {}
        for name in self._archive.names():
            match = _FUNCTION.fullmatch(name)
            if match is None:
                continue
            address = PciAddress.parse(match[1])
            if address is None:
                raise _Wrong(f"{match[1]!a} is no PCI address")
            functions[address] = self._function(f"pci/{match[1]}")
        files = {
            name: self._content(name, _MOST_TEXT)
            for name in self._archive.names()
            if name in MACHINE_FILES or _BOOT_CONFIG.fullmatch(name)
        }
        notes = {
            address: [f"{part}: {why}" for part, why in function.refused.items()]
            for address, function in functions.items()
            if function.refused
        }
        return Recording(self._archive.path, _sentence(about), functions, files, notes)

    def _function(self, directory: str) -> RecordedFunction:
        where = f"{directory}/{FACTS}"
        facts = self._object(where)
        function = RecordedFunction(
            attributes=_texts(where, facts, "attributes", _ATTRIBUTES),
            links=_texts(where, facts, "links", LINKS),
            group=_words(where, facts, "group")[:_MOST_MEMBERS],
            exists=[one for one in _words(where, facts, "exists") if one in EXISTING],
            sizes=_numbers(where, facts, "sizes"),
            refused=_texts(where, facts, "refused", _REFUSED),
        )
        read = facts.get("read", {})
        if type(read) is not dict or not read.keys() <= _PARTS:
            raise _Wrong(f"{where} says of what was read: {str(read)[:80]!a}")
        for part, ranges in read.items():
            function.parts[part] = self._part(f"{directory}/{part}", ranges)
        return function

    def _part(self, name: str, ranges: Any) -> Part:
        """A part, whose ranges must be those of its data. Reads none of the data."""
        if type(ranges) is not list:
            raise _Wrong(f"the ranges of {name} are no list")
        self._ranges -= len(ranges)
        if self._ranges < 0:
            raise _Wrong("it has more ranges than any recording")
        found, end, at = [], 0, 0
        for one in ranges:
            if type(one) is not list or len(one) != 3:
                raise _Wrong(f"{name} has a range that is none")
            start, length, width = one
            is_range = type(start) is type(length) is int and end <= start < start + length <= _END
            if not is_range or not (width is None or (type(width) is int and width in _WIDTHS)):
                raise _Wrong(f"{name} has a range that is none")
            found.append(Range(start, length, width, at))
            end, at = start + length, at + length
        if self._archive.size(name) != at:
            raise _Wrong(f"{name} has another size than its ranges have")
        return Part(found, partial(self._archive.read, name))


def _texts(where: str, facts: Mapping[str, Any], key: str, known: Sequence[str]) -> dict[str, str]:
    """The texts of known names. Others mean nothing here."""
    found = facts.get(key, {})
    if type(found) is not dict or not all(map(_is_text, found.values())):
        raise _Wrong(f"{key} of {where} are no texts")
    # Most functions have the same texts as others.
    return {name: intern(found[name]) for name in known if name in found}


def _words(where: str, facts: Mapping[str, Any], key: str) -> list[str]:
    found = facts.get(key, [])
    if type(found) is not list or not all(map(_is_text, found)):
        raise _Wrong(f"{key} of {where} are no texts")
    return found


def _numbers(where: str, facts: Mapping[str, Any], key: str) -> dict[str, int]:
    found = facts.get(key, {})
    if type(found) is not dict or not all(map(_is_size, found.values())):
        raise _Wrong(f"{key} of {where} are no sizes")
    return {name: found[name] for name in ("config", "rom") if name in found}


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _END


def _is_text(value: object) -> bool:
    if type(value) is not str or len(value) > _MOST_WORDS or "\0" in value:
        return False
    return value.isascii() or _NO_CHARACTER.search(value) is None


def _sentence(about: Mapping[str, Any]) -> str:
    """Whose machine it is, and when it was."""
    said = {key: about.get(key) for key in ("host", "kernel", "time", "barfs")}
    if not all(map(_is_text, said.values())):
        raise _Wrong(f"{ABOUT} does not say whose machine it is, and when it was")
    who = "root" if about.get("root") is True else "a user who is not root"
    redacted = ", redacted" if about.get("redacted") is True else ""
    return (
        f"recorded on {said['host']} at {said['time']} by {who} (kernel {said['kernel']},"
        f" barfs {said['barfs']}{redacted})"
    )
