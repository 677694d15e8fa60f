"""What is to be read of BARs: the values of --read, and registers of maps. Nothing is read here."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, Self

from barfs.errors import BadRequest, BarfsError, FunctionPart, NoSuchNode
from barfs.machine.functions import Functions
from barfs.machine.patterns import DevicePattern
from barfs.machine.resources import check_window
from barfs.names import VIEWS, AddressRange, BarName, LinkName, PciAddress, ViewKind
from barfs.registers.maps import Block, Register, registers
from barfs.registers.plans import effects_of_reading

_FORM: Final = re.compile(
    r"(?P<device>[^/]+)/(?:(?P<rom>rom)|(?P<bar>bar[^:]+)(?::(?P<view>u\d+))?)"
)


class Wish(NamedTuple):
    """`1af4:1110/bar0@0-ff:u32`: a BAR of some functions, or part of it; or their ROM (None)."""

    text: str
    device: str
    bar: BarName | None
    view: ViewKind

    @classmethod
    def parse(cls, text: str) -> Self:
        """The value of --read. ValueError that says what is wrong with it."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!a} is not of the form DEVICE/bar0, DEVICE/bar0@0-ff:u32 or DEVICE/rom"
            )
        device, link = match["device"], LinkName.parse(match["device"].lower().replace("-", ":"))
        if DevicePattern.parse(device) is None and link is None:
            raise ValueError(f"{device!a} is no device: it takes a PCI address or vendor:device")
        bar = None if match["rom"] else BarName.parse(match["bar"])
        view = VIEWS.get(match["view"] or "", ViewKind.RAW)
        if (bar is None and not match["rom"]) or (match["view"] and not view):
            raise ValueError(f"{text!a}: no BAR is {text.partition('/')[2]!a}")
        return cls(text, device, bar, view)


class Reading(NamedTuple):
    """What is read of one part of a function: `size` bytes from `start`, by accesses of a view.

    With `registers` these alone are read, each in its own width. `bar` is None for the ROM.
    """

    address: PciAddress
    bar: int | None
    start: int
    size: int
    view: ViewKind = ViewKind.RAW
    registers: Sequence[Register] = ()
    is_memory: bool = False

    @property
    def part(self) -> str:
        """The name of what is read."""
        return "rom" if self.bar is None else f"bar{self.bar}"

    @property
    def span(self) -> range:
        """The offsets that are read, if it is not of registers."""
        return range(self.start, self.start + self.size)

    def __str__(self) -> str:
        if self.registers:
            count = len(self.registers)
            return f"{self.address} {self.part}: {count} registers of its map, each in its width"
        if self.bar is None:
            return f"{self.address} rom: {self.size:#x} bytes; it is enabled for that"
        widths = f"in accesses of {self.view.width} bytes" if self.view else "4 bytes at a time"
        if self.is_memory and not self.view:
            widths = "copied as memory"
        extent = AddressRange.of(self.start, self.size)
        end = self.start + self.size - 1
        return f"{self.address} {self.part}@{extent.start:x}-{end:x}: {self.size:#x} bytes {widths}"


def reading_of(pci: Functions, wish: Wish, address: PciAddress) -> Reading:
    """What a wish means for a function. NoSuchNode, NoSuchAddress, DeviceGone."""
    if wish.bar is None:
        size = pci.rom_size(address)
        if not size:
            raise NoSuchNode("it has no expansion ROM", what=FunctionPart(address))
        return Reading(address, None, 0, size)
    index, window = wish.bar
    resources = pci.resources(address)
    resource = pci.bar(address, index)
    start, end = window or AddressRange(0, None)
    size = (resource.size if end is None else end + 1) - start
    check_window(FunctionPart(address, wish.bar), start, max(size, 1), resource.size)
    is_memory = pci.reading(address, resources, index).is_memory
    return Reading(address, index, start, size, wish.view, is_memory=is_memory)


def readings_of(pci: Functions, wish: Wish, addresses: Iterable[PciAddress]) -> list[Reading]:
    """What a wish means for functions that its pattern matches, or those of them that have it.

    If none has it, the error of the first: see reading_of.
    """
    found: list[Reading] = []
    refused: BarfsError | None = None
    for address in addresses:
        try:
            found.append(reading_of(pci, wish, address))
        except BarfsError as error:
            refused = refused or error
    if refused is not None and not found:
        raise refused
    return found


def check_apart(readings: Iterable[Reading]) -> None:
    """BadRequest if something would be read twice."""
    by_part: dict[tuple[PciAddress, str], list[Reading]] = {}
    for one in readings:
        by_part.setdefault((one.address, one.part), []).append(one)
    for several in by_part.values():
        ordered = sorted(several, key=lambda one: one.start)
        for before, after in pairwise(ordered):
            if after.start < before.start + before.size:
                both = f"{before}" if str(before) == str(after) else f"{before} and {after}"
                raise BadRequest(f"--read names bytes twice: {both}")


def of_map(
    address: PciAddress, top: Block, taken: Mapping[str, Sequence[range]]
) -> Iterator[Reading]:
    """The registers of a map that can be read without an effect, a reading for each BAR.

    What lies in `taken`, by the name of the BAR, is read already.
    """
    found: dict[int, list[Register]] = {}
    for register in registers(top):
        bar = register.place.bar
        if bar is None or not _is_harmless(register):
            continue
        span = range(register.offset, register.offset + register.size)
        if register.where.base is None and any(
            span.start < other.stop and other.start < span.stop
            for other in taken.get(f"bar{bar}", ())
        ):
            continue
        found.setdefault(bar, []).append(register)
    for bar, wanted in sorted(found.items()):
        yield Reading(address, bar, 0, 0, registers=wanted)


def _is_harmless(register: Register) -> bool:
    """Whether neither its reading has an effect, nor that of the registers that tell its place."""
    where = register.where
    asked = [register, *([] if where.base is None else [where.base])]
    asked += [owner for owner, _, _ in where.limits]
    return all(one.readable and not effects_of_reading(one) for one in asked)
