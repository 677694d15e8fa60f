"""The forms of names: PCI addresses, vendor:device links, ranges, BARs, windows, views, symbols.

Parsing returns None for a name that is not of the form; what that means is for the caller. A PCI
address or a link has one spelling only, the one that is listed, but for `with_colons`. Numbers in
ranges are hex, with or without 0x, in either case.
"""

import enum
import os
import re
import shlex
from functools import lru_cache
from typing import Final, Literal, NamedTuple, Self, TypeAlias

# The values of --bars-via. They name the way to BARs.
BarsVia: TypeAlias = Literal["resource", "devmem", "vfio"]

# One past the highest address that a 64-bit bus has.
ADDRESS_END = 1 << 64


# How many names and their meanings are kept. Every look-up asks for the same ones several times.
_SPELLINGS: Final = 1 << 15


@lru_cache(maxsize=_SPELLINGS)
def _spell(address: "PciAddress") -> str:
    domain, bus, device, function = address
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function}"


class PciAddress(NamedTuple):
    """domain:bus:device.function, as sysfs spells it: `0000:00:04.0`."""

    domain: int
    bus: int
    device: int
    function: int

    def __str__(self) -> str:
        return _spell(self)

    @classmethod
    @lru_cache(maxsize=_SPELLINGS)
    def parse(cls, name: str) -> Self | None:
        """`0000:00:04.0`; domains beyond 16 bits exist (`10000:01:00.0` behind Intel's VMD)."""
        match = re.fullmatch(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", name)
        if match is None:
            return None
        address = cls(*(int(group, 16) for group in match.groups()))
        return address if str(address) == name else None


def with_colons(name: str) -> str:
    """The name of a function with `:` for `-`. To rsync and tar `:` means something else."""
    return name.replace("-", ":")


class DeviceId(NamedTuple):
    """vendor:device, or a subsystem's vendor:device: `1af4:1110`."""

    vendor: int
    device: int

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


class LinkName(NamedTuple):
    """A link in the root: vendor:device, perhaps those of the subsystem, and the instance."""

    id: DeviceId
    subsystem: DeviceId | None
    instance: int

    def __str__(self) -> str:
        subsystem = f":{self.subsystem}" if self.subsystem else ""
        instance = f".{self.instance}" if self.instance else ""
        return f"{self.id}{subsystem}{instance}"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """`1af4:1110`, `1af4:1110.1`, `1af4:1110:1af4:1100`, `1af4:1110:1af4:1100.1`."""
        number = "([0-9a-f]{4})"
        match = re.fullmatch(
            rf"{number}:{number}(?::{number}:{number})?(?:\.([1-9][0-9]{{0,8}}))?", name
        )
        if match is None:
            return None
        vendor, device, subvendor, subdevice, instance = match.groups()
        subsystem = DeviceId(int(subvendor, 16), int(subdevice, 16)) if subvendor else None
        return cls(DeviceId(int(vendor, 16), int(device, 16)), subsystem, int(instance or 0))


class AddressRange(NamedTuple):
    """From `start` up to and including `end`. An `end` of None: as far as the whole goes.

    They are physical addresses in `phys`, and offsets in a window.
    """

    start: int
    end: int | None

    def __str__(self) -> str:
        length = "" if self.end is None else f"+{self.end + 1 - self.start:x}"
        return f"{self.start:x}{length}"

    @classmethod
    def of(cls, start: int, size: int) -> Self:
        """The range of `size` bytes from `start`."""
        return cls(start, start + size - 1)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """`<addr>`, `<addr>+<length>` or `<start>-<end>`, the end included. None if empty."""
        number = "(?:0[xX])?([0-9a-fA-F]+)"
        match = re.fullmatch(rf"{number}(?:(?P<form>[-+]){number})?", name)
        if match is None:
            return None
        start = int(match[1], 16)
        if match["form"] is None:
            end = None
        elif match["form"] == "-":
            end = int(match[3], 16)
        else:
            end = start + int(match[3], 16) - 1
        if start >= ADDRESS_END or (end is not None and not start <= end < ADDRESS_END):
            return None
        return cls(start, end)


class BarName(NamedTuple):
    """`bar0` to `bar5`, and the window into it if the name gives one."""

    bar: int
    window: AddressRange | None = None

    def __str__(self) -> str:
        return f"bar{self.bar}" if self.window is None else f"bar{self.bar}@{self.window}"

    @classmethod
    @lru_cache(maxsize=_SPELLINGS)
    def parse(cls, name: str) -> Self | None:
        """`bar0`, `bar0@40`, `bar0@40+4`, `bar0@40-5f`. None if the window is empty."""
        match = re.fullmatch(r"bar([0-5])(?:@(.*))?", name)
        if match is None:
            return None
        if match[2] is None:
            return cls(int(match[1]), None)
        window = AddressRange.parse(match[2])
        return None if window is None else cls(int(match[1]), window)


def quoted(word: str | os.PathLike[str]) -> str:
    """A word, quoted for a shell. It stays in one line and commands no terminal."""
    text = os.fspath(word)
    if text.isprintable():
        return shlex.quote(text)
    escapes = [
        letter if letter.isprintable() and letter not in "\\'" else _escape(letter)
        for letter in text
    ]
    return f"$'{''.join(escapes)}'"


def _escape(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in letter.encode(errors="surrogateescape"))


class ViewKind(enum.IntEnum):
    """How a BAR or a physical range is shown. All but RAW have a directory of their name."""

    RAW = 0
    U8 = 1
    U16 = 2
    U32 = 3
    U64 = 4
    X8 = 5
    X16 = 6
    X32 = 7
    X64 = 8
    MEM = 9

    @property
    def label(self) -> str:
        """The name of its directory."""
        return self.name.lower()

    @property
    def is_text(self) -> bool:
        """Whether it shows one register as a line of text."""
        return ViewKind.X8 <= self <= ViewKind.X64

    @property
    def is_fixed(self) -> bool:
        """Whether all accesses have one width."""
        return ViewKind.U8 <= self <= ViewKind.X64

    @property
    def width(self) -> int:
        """The width of each access in bytes. RAW and MEM have none."""
        return 1 << (self - 1) % 4


# The views by the names of their directories.
VIEWS: Final = {kind.label: kind for kind in ViewKind if kind}


class SymbolName(NamedTuple):
    """A symbol of the kernel's; further the type that it is of with a path of fields; a window."""

    symbol: str
    field: str | None = None
    window: AddressRange | None = None

    def __str__(self) -> str:
        field = "" if self.field is None else f":{self.field}"
        if self.window is None:
            return f"{self.symbol}{field}"
        start, end = self.window
        return f"{self.symbol}{field}@{start:x}" + ("" if end is None else f"+{end + 1 - start:x}")

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """`init_uts_ns`, `init_uts_ns:uts_namespace.name`, each with `@41`, `@41+41` or `@41-81`.

        None if a part or the window is empty.
        """
        match = re.fullmatch(r"([^:@]+)(?::([^:@]+))?(?:@(.*))?", name)
        if match is None:
            return None
        if match[3] is None:
            return cls(match[1], match[2])
        window = AddressRange.parse(match[3])
        return None if window is None else cls(match[1], match[2], window)
