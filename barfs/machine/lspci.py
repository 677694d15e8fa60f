"""The text of lspci, as people send it: what it says of functions. What it does not say is unknown.

It may be of any of its options: -n, -nn, -v to -vvv, -x to -xxxx, -D, -k. Outputs of several runs
may follow each other. The forms are those of pciutils (lspci.c, ls-kernel.c).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from barfs.errors import BadRecording
from barfs.machine.configspace import CAPABILITY_EXPRESS, COMMAND_ABSENT, Header, find_capability
from barfs.machine.recording import Part, Range, RecordedFunction, Recording
from barfs.machine.resources import (
    IORESOURCE_IO,
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    IORESOURCE_UNSET,
    N_BARS,
    ROM_RESOURCE,
)
from barfs.names import PciAddress

_ABOUT: Final = "from text of lspci, which does not say whose machine it is, or when it was"

_MOST_FUNCTIONS: Final = 1 << 17

# `0000:00:03.0 Ethernet controller [0200]: Intel Corporation 82540EM [8086:100e] (rev 03)`
_SLOT: Final = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f]\.[0-7]) (\S.*)")
_NUMBERS: Final = re.compile(r"([0-9a-f]{4}): ([0-9a-f]{4}):([0-9a-f]{4})(?= |$)")
_CLASS: Final = re.compile(r"\[([0-9a-f]{4})\]: ")
_ID: Final = re.compile(r"\[([0-9a-f]{4}):([0-9a-f]{4})\](?= \((?:rev|prog-if) |$)")
_REVISION: Final = re.compile(r" \(rev ([0-9a-f]{2})\)")
_INTERFACE: Final = re.compile(r" \(prog-if ([0-9a-f]{2})[ )]")

_HEX: Final = re.compile(r"([0-9a-f]{2,3}):((?: [0-9a-f]{2}){1,16})")
_SUBSYSTEM: Final = re.compile(r"Subsystem: (?:.*\[)?([0-9a-f]{4}):([0-9a-f]{4})\]?")
_DRIVER: Final = re.compile(r"Kernel driver in use: ([\w.+-]{1,64})")
_NODE: Final = re.compile(r"NUMA node: ([0-9]{1,4})")
_GROUP: Final = re.compile(r"IOMMU group: ([0-9]{1,6})")
_BAR: Final = re.compile(
    r"(?:Region (?P<index>[0-5]): )?(?:\[virtual\] )?"
    r"(?:(?P<space>Memory|I/O ports)|(?P<rom>Expansion ROM)) at"
    r" (?P<address>[0-9a-f]{1,16}|<[a-z]+>)(?P<rest>.*)"
)
_SIZE: Final = re.compile(r"\[size=([0-9]{1,5})([KMGT]?)\]")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

# Lines that only -v prints, or only what prints more than -v does. All BARs are there then.
_VERBOSE: Final = ("Flags: ", "Control: ")


class _Bar:
    """A line about a BAR or the ROM. `index` is its line in `resource`, None if it is not said."""

    def __init__(self, match: re.Match[str]) -> None:
        is_rom = match["rom"] is not None
        self.index: int | None = ROM_RESOURCE if is_rom else None
        if match["index"] is not None:
            self.index = int(match["index"])
        self.assigned = not match["address"].startswith("<")
        self.start = int(match["address"], 16) if self.assigned else 0
        self.is_memory = is_rom or match["space"] == "Memory"
        size = _SIZE.search(match["rest"])
        self.size = int(size[1]) * _UNITS[size[2]] if size else None
        self.is_64bit = "(64-bit," in match["rest"]
        self._prefetchable = is_rom or re.search(r"[ (]prefetchable\)", match["rest"]) is not None

    @property
    def line(self) -> str:
        """A line of `resource`, as the kernel would print it."""
        flags = IORESOURCE_MEM if self.is_memory else IORESOURCE_IO
        flags |= IORESOURCE_MEM_64 if self.is_64bit else 0
        flags |= IORESOURCE_PREFETCH if self._prefetchable else 0
        flags |= 0 if self.assigned else IORESOURCE_UNSET
        return f"{self.start:#018x} {self.start + (self.size or 0) - 1:#018x} {flags:#018x}"


class _Text:
    """What a text says of a function."""

    def __init__(self) -> None:
        self.attributes: dict[str, str] = {}
        self.driver: str | None = None
        self.group: str | None = None
        self.bars: list[_Bar] = []
        self.config = bytearray()
        self._verbose = False
        self._anew = True  # whether the next BAR begins a list that takes the place of another
        self._class: str | None = None
        self.notes: list[str] = []

    def slot(self, rest: str) -> None:
        """Take in the rest of the first line of a function."""
        self._anew = True
        numbers = _NUMBERS.match(rest)
        named = None if numbers else _ID.search(rest)
        kind = None if numbers else _CLASS.search(rest)
        found: dict[str, str] = {}
        if numbers:
            self._class = numbers[1]
            found = {"vendor": numbers[2], "device": numbers[3]}
        else:
            self._class = kind[1] if kind else self._class
            found = {"vendor": named[1], "device": named[2]} if named else {}
        revision, interface = _REVISION.search(rest), _INTERFACE.search(rest)
        # One that is 0 is not printed.
        found["revision"] = revision[1] if revision else "00"
        if interface and self._class:
            found["class"] = self._class + interface[1]
        self.attributes |= {name: f"0x{text}\n" for name, text in found.items()}

    def line(self, line: str) -> None:
        """Take in one of the further lines."""
        if match := _HEX.fullmatch(line):
            if int(match[1], 16) == 0:
                self.config.clear()
            if int(match[1], 16) == len(self.config) < 4096:
                self.config += bytes.fromhex(match[2])
        elif match := _BAR.fullmatch(line):
            if self._anew:
                self.bars.clear()
                self._anew = False
            self.bars.append(_Bar(match))
        elif match := _SUBSYSTEM.match(line):
            self.attributes["subsystem_vendor"] = f"0x{match[1]}\n"
            self.attributes["subsystem_device"] = f"0x{match[2]}\n"
        elif line.startswith(_VERBOSE):
            self._verbose = True
            # A programming interface that is 0 and has no name is not printed.
            if self._class:
                self.attributes.setdefault("class", f"0x{self._class}00\n")
        else:
            self._single(line)

    def _single(self, line: str) -> None:
        """Take in a line that says one thing."""
        if match := _DRIVER.match(line):
            self.driver = match[1]
        elif match := _NODE.match(line):
            self.attributes["numa_node"] = f"{match[1]}\n"
        elif match := _GROUP.match(line):
            self.group = match[1]

    def _from_config(self) -> None:
        """What the bytes of config space say that the text does not."""
        header = Header(bytes(self.config))
        if not header.is_whole:
            return
        raw = header.raw

        def number(offset: int, width: int) -> str:
            return f"0x{raw[offset : offset + width][::-1].hex()}\n"

        said = {"vendor": number(0, 2), "device": number(2, 2), "class": number(9, 3)}
        said["revision"] = number(8, 1)
        if header.layout == 0:
            said |= {"subsystem_vendor": number(0x2C, 2), "subsystem_device": number(0x2E, 2)}
        self.attributes = {**said, **self.attributes}

    def _number_bars(self) -> None:
        """Number BARs of which the text says only where they are, by config space."""
        header = Header(bytes(self.config))
        taken = {bar.index for bar in self.bars}
        for bar in self.bars:
            if bar.index is not None or not bar.assigned or not header.is_whole:
                continue
            for index in range(N_BARS):
                at = header.bar(index, is_memory=bar.is_memory, is_64bit=bar.is_64bit)
                if index not in taken and at == bar.start:
                    bar.index = index
                    taken.add(index)
                    break

    def _resource(self) -> str | None:
        """The text of `resource`. None if the text says nothing of BARs."""
        if not self._verbose and not self.bars:
            return None
        self._number_bars()
        if any(bar.index is None for bar in self.bars):
            self.notes.append("its BARs have no numbers in this text; lspci -vv has them")
            return None
        lines = [f"{0:#018x} {0:#018x} {0:#018x}"] * (N_BARS + 1)
        for bar in self.bars:
            name = "rom" if bar.index == ROM_RESOURCE else f"bar{bar.index}"
            if bar.size is None or bar.index is None:
                self.notes.append(f"{name}: its size is not in this text")
            else:
                lines[bar.index] = bar.line
        return "".join(f"{line}\n" for line in lines)

    def function(self, group: Sequence[str]) -> RecordedFunction:
        """What is known, in the form of a recording."""
        self._from_config()
        attributes = dict(self.attributes)
        resource = self._resource()
        if resource is not None:
            attributes["resource"] = resource
        function = RecordedFunction(attributes, group=group)
        function.links = {"driver": f"drivers/{self.driver}"} if self.driver else {}
        roms = [bar.size for bar in self.bars if bar.index == ROM_RESOURCE and bar.size]
        function.sizes = {"config": self._config_size(), **({"rom": roms[0]} if roms else {})}
        if self.config:
            data = bytes(self.config)
            ranges = [Range(0, len(data), None, 0)]
            function.parts["config"] = Part(ranges, lambda at, length: data[at : at + length])
        return function

    def _config_size(self) -> int:
        """The size of config space. PCI Express devices have 4096 bytes (PCI Express 5.0, 7.2)."""
        header = Header(bytes(self.config))
        if len(self.config) > 256:
            return 4096
        if not header.is_whole or header.command == COMMAND_ABSENT:
            return 256

        def read(offset: int, length: int) -> bytes:
            return bytes(self.config[offset : offset + length])

        found = find_capability(read, header.first_capability, CAPABILITY_EXPRESS)
        return 256 if found is None else 4096


def parse_lspci(path: Path, text: str) -> Recording | None:
    """The functions in a text. None if it has none. `path` is its file, for messages.

    What is quoted in a mail has `> ` in front of each line. BadRecording for too many functions.
    """
    said: dict[PciAddress, _Text] = {}
    current: _Text | None = None
    for raw in re.sub(r"^(?:> ?)+", "", text, flags=re.MULTILINE).splitlines():
        line = raw.strip()
        match = None if raw[:1].isspace() else _SLOT.fullmatch(line)
        if match is not None:
            address = PciAddress.parse(f"{match[1] or '0000'}:{match[2]}")
            if address is None:
                return None
            if len(said) >= _MOST_FUNCTIONS:
                what = f"it has more than {_MOST_FUNCTIONS} functions"
                raise BadRecording(what, what=str(path))
            current = said.setdefault(address, _Text())
            current.slot(match[3])
        elif current is not None:
            current.line(line)
    if not said:
        return None
    groups: dict[str, list[str]] = {}
    for address, one in said.items():
        if one.group is not None:
            groups.setdefault(one.group, []).append(str(address))
    functions = {
        address: one.function(groups.get(one.group or "", ())) for address, one in said.items()
    }
    says_drivers = re.search(r"^\s+Kernel (?:driver in use|modules): ", text, re.MULTILINE)
    for function in functions.values():
        function.driver_known = says_drivers is not None
    notes = {address: one.notes for address, one in said.items()}
    return Recording(path, _ABOUT, functions, notes=notes)
