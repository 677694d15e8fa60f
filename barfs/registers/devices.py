"""The map of registers of a function or a physical range, and the places of its parts.

Config space is read for parts that its capabilities tell. Nothing else of a device is read.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from barfs.devmem import PhysicalMemory
from barfs.errors import DeviceGone, NoSuchAddress
from barfs.machine.functions import Functions
from barfs.machine.power import sleeping
from barfs.machine.resources import Resource, parse_hex
from barfs.names import PciAddress
from barfs.registers.capabilities import Read, place_in_config, place_of_virtio, walk
from barfs.registers.files import Found, MapFiles
from barfs.registers.maps import Block, Map, Part, Place, Register, Space, registers

# virtio 1.2, 4.1.2.1: the ids of virtio's devices.
_VIRTIO_VENDOR: Final = 0x1AF4
_VIRTIO_DEVICES: Final = range(0x1000, 0x1080)

# PCI Code and ID Assignment Specification: PCI-to-PCI and CardBus bridges, by their type of header.
_HEADERS: Final = {0x0604: 1, 0x0607: 2}
_HEADER_TYPE: Final = 0x0E

# The addresses that /proc/iomem can name.
_EVERYWHERE: Final = (0, 1 << 63)

# The directory of config space in that of a function's registers.
CONFIG: Final = "config"

_NOTHING: Final = Block("", [])


class PhysicalMap(NamedTuple):
    """The map of a physical range: its directory and its place."""

    name: str
    found: Found
    start: int
    size: int


def _is_structure(part: Part) -> bool:
    """Whether config space says where in a BAR a part is."""
    return part.bar is None and part.space is Space.BAR


def _in_bar(part: Part, bars: Mapping[int, Resource]) -> Place | None:
    """The place of a part whose map says in which BAR it is."""
    if part.bar is None or part.bar not in bars:
        return None
    return Place(Space.BAR, part.bar, 0, bars[part.bar].size)


def _fitted(place: Place | None, part: Part, bars: Mapping[int, Resource]) -> Place | None:
    """The place of a structure, if the BAR has room for it and it has room for the part."""
    if place is None or place.end is None or place.bar is None or place.bar not in bars:
        return None
    inside = place.end <= bars[place.bar].size and place.start + part.reach <= place.end
    return place if inside else None


class DeviceMaps:
    """The maps of a machine's functions. If `memory` is not None, also those of physical ranges."""

    def __init__(self, pci: Functions, memory: PhysicalMemory | None, files: MapFiles) -> None:
        self._pci = pci
        self._memory = memory
        self.files = files
        self._subjects: dict[PciAddress, tuple[object, list[str], int | None]] = {}
        self._tops: dict[object, tuple[object, Block]] = {}
        self._walked: dict[PciAddress, tuple[object, Block]] = {}
        self._told: dict[PciAddress, tuple[object, Sequence[Place | None]]] = {}

    def _number(self, address: PciAddress, name: str, bits: int) -> int | None:
        try:
            return parse_hex(self._pci.attribute(address, name) or "", bits=bits)
        except ValueError:
            return None

    def _asked(self, address: PciAddress) -> tuple[list[str], int | None]:
        """The subjects of a function's maps, the most particular first, and its revision."""
        stamp = self._pci.source.stamp()
        kept = self._subjects.get(address)
        if kept is not None and stamp is not None and kept[0] == stamp:
            return kept[1:]
        device = self._pci.known(address, self._pci.id)
        subsystem = self._pci.known(address, self._pci.subsystem)
        code = self._number(address, "class", 24)
        subjects = []
        if device is not None:
            subjects += [f"{device}:{subsystem}"] if subsystem else []
            subjects.append(str(device))
            if device.vendor == _VIRTIO_VENDOR and device.device in _VIRTIO_DEVICES:
                subjects.append("virtio")
        subjects += [] if code is None else [f"class-{code:06x}"]
        revision = self._number(address, "revision", 8)
        self._subjects[address] = (stamp, subjects, revision)
        return subjects, revision

    def found(self, address: PciAddress) -> Found | None:
        """The map of a function, or why its file is no map. None if there is no file.

        Reads no config space.
        """
        return self._fitting(address)[0]

    def _fitting(self, address: PciAddress) -> tuple[Found | None, dict[int, Resource]]:
        """The map of a function, if its BARs have room for it, and these BARs."""
        found = self.files.find(*self._asked(address))
        if found is None or found.map is None:
            return found, {}
        bars = self._pci.known(address, self._pci.bars)
        refusal = None if bars is None else _past_the_end(found.map, bars)
        return (found if refusal is None else Found(found.file, None, refusal)), bars or {}

    def top(self, address: PciAddress) -> Block:
        """The registers in a function's BARs. There are none without a map. Raises DeviceGone.

        Config space is read only for virtio devices, and not while they sleep.
        """
        found, bars = self._fitting(address)
        if found is None or found.map is None:
            return _NOTHING
        parts = found.map.parts
        structures: Sequence[Place | None] = [None] * len(parts)
        if any(_is_structure(part) for part in parts):
            structures = self._structures(address, found.map)
        places = [
            _fitted(place, part, bars) if _is_structure(part) else _in_bar(part, bars)
            for part, place in zip(parts, structures, strict=True)
        ]
        return self._kept(address, found.map, places)

    def _kept(
        self, key: object, found: Map, places: Sequence[Place | None], path: str = ""
    ) -> Block:
        """The directory of a map in its places. It is made anew if a place has changed."""
        stamp = (id(found), *places)
        kept = self._tops.get(key)
        if kept is None or kept[0] != stamp:
            kept = self._tops[key] = (stamp, found.top(places, path))
        return kept[1]

    def _structures(self, address: PciAddress, found: Map) -> Sequence[Place | None]:
        """Where config space says that the structures of a virtio device are, for each part.

        That stays as long as the function is there. Nothing is read of a function that sleeps.
        """
        stamp = (self._pci.source.stamp(), id(found))
        kept = self._told.get(address)
        if kept is not None and stamp[0] is not None and kept[0] == stamp:
            return kept[1]
        if sleeping(self._pci, address) is not None:
            return [None] * len(found.parts)
        read, size = self._reader(address)
        known = list(walk(read, size))
        places = [place_of_virtio(part, read, known) for part in found.parts]
        if any(places):
            self._told[address] = (stamp, places)
        return places

    def config(self, address: PciAddress, *, capabilities: bool) -> Block:
        """The registers in config space. Raises DeviceGone.

        Config space is read only if `capabilities` are wanted.
        """
        found = self.files.find(["config"])
        if found is None or found.map is None:
            return _NOTHING
        # Where capabilities are is fixed as long as the function is there.
        stamp = (self._pci.source.stamp(), id(found.map))
        kept = self._walked.get(address)
        if kept is not None and stamp[0] is not None and kept[0] == stamp and capabilities:
            return kept[1]
        read, size = self._reader(address)
        known = list(walk(read, size)) if capabilities else []
        kind = self._header(address)

        def asked(offset: int, width: int) -> int | None:
            # The class tells the type of header, too, and needs no read.
            return kind if (offset, width) == (_HEADER_TYPE, 1) else read(offset, width)

        places = [
            place if place and place.start + part.reach <= size else None
            for part in found.map.parts
            for place in [place_in_config(part, asked, size, known)]
        ]
        top = found.map.top(places, CONFIG)
        if known:
            self._walked[address] = (stamp, top)
        return top

    def _header(self, address: PciAddress) -> int:
        code = self._number(address, "class", 24)
        return 0 if code is None else _HEADERS.get(code >> 8, 0)

    def _reader(self, address: PciAddress) -> tuple[Read, int]:
        """A function that reads config space, and the size of config space."""

        def read(offset: int, width: int) -> int | None:
            data = self._pci.known(address, lambda one: self._pci.read_config(one, offset, width))
            return int.from_bytes(data, "little") if data and len(data) == width else None

        return read, self._pci.known(address, self._pci.config_size) or 0

    def in_physical_ranges(self) -> Iterator[PhysicalMap]:
        """The maps of the ranges in /proc/iomem. Touches no memory."""
        try:
            ranges = self._memory.within(*_EVERYWHERE) if self._memory else []
        except NoSuchAddress:
            return
        seen = set()
        for entry in ranges:
            family, _, number = entry.name.partition(" ")
            name = f"{family}{number}"
            if name in seen or not re.fullmatch(r"[^\s/]+", name):
                continue
            found = self.files.find([f"phys-{name}", f"phys-{family}", f"phys-{entry.start:08x}"])
            if found is not None:
                seen.add(name)
                yield PhysicalMap(name, found, entry.start, entry.end + 1 - entry.start)

    def physical_top(self, wanted: PhysicalMap) -> Block:
        """The registers of a physical range."""
        found = wanted.found.map
        if found is None:
            return _NOTHING
        end = wanted.start + wanted.size
        places = [
            Place(Space.PHYS, None, wanted.start, end)
            if part.space is Space.PHYS and part.reach <= wanted.size
            else None
            for part in found.parts
        ]
        return self._kept(wanted.name, found, places, wanted.name)

    def refused(self) -> Iterator[tuple[PciAddress | str, Found]]:
        """The refusals of bad maps, and what each map is for. Reads no config space."""
        for address in self._pci.addresses():
            try:
                found = self.found(address)
            except DeviceGone:
                continue
            if found is not None and found.refusal is not None:
                yield address, found
        for physical in self.in_physical_ranges():
            if physical.found.refusal is not None:
                yield f"phys/{physical.name}", physical.found


def _past_the_end(found: Map, bars: dict[int, Resource]) -> str | None:
    """The part of a map that does not fit into its BAR. None if everything fits."""
    for part in found.parts:
        if part.bar is None:
            continue
        if part.bar not in bars:
            return f"there is no bar{part.bar}"
        size = bars[part.bar].size
        if part.reach > size:
            places = [Place(Space.BAR, one.bar, 0, None) for one in found.parts]
            past = (r for r in registers(found.top(places)) if _is_past(r, part.bar, size))
            name = next((f"{r.path} at {r.offset:#x} is" for r in past), "it is")
            return f"{name} past the end of bar{part.bar}, which has {size:#x} bytes"
    return None


def _is_past(register: Register, bar: int, size: int) -> bool:
    return register.place.bar == bar and register.offset + register.size > size
