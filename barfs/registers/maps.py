"""A map: the registers and fields of a device, by name.

The parts of a map are made when they are asked for. Until somebody looks at a directory, its
registers are plain dictionaries, and so are a register's fields.
"""

import enum
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeAlias

from barfs.errors import MapRefused
from barfs.registers.checks import PLACE, check, counts_of


class Field(NamedTuple):
    """Bits `lsb` to `msb` of a register, and what software's reads and writes do to them.

    `access` is rw, r, w, na, or rw1 and w1, which can be written only once. `on_read` and
    `on_write` are words of SystemRDL 2.0 (9.6). They are None if there is no effect. `values` gives
    names to some values.
    """

    name: str
    lsb: int
    msb: int
    access: str = "rw"
    on_read: str | None = None
    on_write: str | None = None
    self_clearing: bool = False
    reset: int | None = None
    values: Mapping[str, int] = {}
    meanings: Mapping[str, str] = {}
    description: str = ""

    @property
    def width(self) -> int:
        """The width in bits."""
        return self.msb + 1 - self.lsb

    @property
    def mask(self) -> int:
        """The mask of its bits in the register."""
        return (2 << self.msb) - (1 << self.lsb)

    @property
    def readable(self) -> bool:
        """Whether a read gives its value."""
        return self.access in {"rw", "r", "rw1"}

    @property
    def writable(self) -> bool:
        """Whether a write may change it."""
        return self.access in {"rw", "w", "rw1", "w1"}

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Field":
        """What a map says of it."""
        enum = raw.get("enum", {})
        values = {n: value[0] if type(value) is list else value for n, value in enum.items()}
        return cls(
            raw["name"],
            raw["lsb"],
            raw.get("msb", raw["lsb"]),
            raw.get("access", "rw"),
            raw.get("on_read"),
            raw.get("on_write"),
            raw.get("self_clearing", False),
            raw.get("reset"),
            values,
            {n: value[1] for n, value in enum.items() if type(value) is list},
            raw.get("description", ""),
        )


class Space(enum.Enum):
    """The thing from which offsets count."""

    BAR = "bar"
    CONFIG = "config"
    PHYS = "phys"


class Place(NamedTuple):
    """Where a part of a map is on one machine: from `start` in a space to `end`, in bytes.

    `end` is None if it is not known.
    """

    space: Space
    bar: int | None
    start: int
    end: int | None

    def __str__(self) -> str:
        return self.space.value if self.bar is None else f"bar{self.bar}"


class Condition(NamedTuple):
    """When a part is there: the bytes at an offset, under a mask, have one of these values."""

    offset: int
    width: int  # in bytes
    mask: int
    values: Sequence[int]


@dataclass(frozen=True)
class Part:
    """Registers that are in one place.

    `place` tells from where the offsets count, in the words of docs/registers.md. `reach` is the
    end of the last byte, in bytes, with `offset`.
    """

    place: str
    offset: int
    reach: int
    directory: str
    when: Condition | None
    registers: Sequence[Mapping[str, Any]]

    @property
    def bar(self) -> int | None:
        """The index of the BAR, if it is in one."""
        match = PLACE.fullmatch(self.place)
        return int(match["bar"]) if match and match["bar"] else None

    @property
    def space(self) -> Space:
        """The space of the place."""
        word = self.place.partition(" ")[0].rstrip("012345")
        return Space.BAR if word == "virtio" else Space(word)

    @classmethod
    def of(cls, raw: Mapping[str, Any], reach: int) -> "Part":
        """What a map says of it."""
        when = raw.get("when")
        condition = when and Condition(
            when["offset"], when["width"] // 8, when["mask"], when["values"]
        )
        return cls(
            raw["in"],
            raw.get("offset", 0),
            reach,
            raw.get("directory", ""),
            condition,
            raw["registers"],
        )


class Where(NamedTuple):
    """Where a register is: in a place, and perhaps where other registers of the device tell.

    The value of `base` is added to the offset. The register is there only if the field of each
    limit is greater than the limit's number.
    """

    place: Place
    base: "Register | None" = None
    limits: "tuple[tuple[Register, Field, int], ...]" = ()


@dataclass(frozen=True)
class Register:
    """A register, or an element of an array of them. Sizes are in bytes.

    `offset` is the offset in its space, without the value that `where` adds.
    """

    where: Where
    path: str
    offset: int
    raw: Mapping[str, Any]

    @property
    def place(self) -> Place:
        """The place of the part that it belongs to."""
        return self.where.place

    @property
    def size(self) -> int:
        """The size of the register."""
        return int(self.raw["width"]) // 8

    @property
    def step(self) -> int:
        """The size of each access."""
        return int(self.raw.get("access_width", self.raw["width"])) // 8

    @property
    def description(self) -> str:
        """The map's description of it."""
        return str(self.raw.get("description", ""))

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The fields, lowest bits first."""
        fields = map(Field.of, self.raw.get("fields", ()))
        return tuple(sorted(fields, key=lambda field: field.lsb))

    def field(self, name: str) -> Field | None:
        """The field of a name."""
        return next((field for field in self.fields if field.name == name), None)

    @property
    def access(self) -> str:
        """The access of a register without fields."""
        return str(self.raw.get("access", "rw"))

    @property
    def zero_reserved(self) -> bool:
        """Whether bits that are in no field are written as 0."""
        return self.raw.get("reserved") == "zero"

    @cached_property
    def readable(self) -> bool:
        """Whether there is anything to be read."""
        raw = self.raw.get("fields")
        return any(field.readable for field in self.fields) if raw else "r" in self.access

    @cached_property
    def writable(self) -> bool:
        """Whether there is anything to be written."""
        raw = self.raw.get("fields")
        return any(field.writable for field in self.fields) if raw else "w" in self.access

    @property
    def on_read(self) -> str | None:
        """The effect of reading on the whole register, in the words of a field's `on_read`."""
        return self.raw.get("on_read")


@dataclass(frozen=True)
class Array:
    """Elements by number: an array, or the other dimensions of it in one of its elements."""

    where: Where
    path: str
    offset: int
    raw: Mapping[str, Any]
    limit: tuple[Register, Field] | None = None
    dimension: int = 0

    @cached_property
    def _step(self) -> int:
        """The distance of its elements, in bytes. Elements of the last dimension are the
        closest.
        """
        return int(self.raw["stride"]) * math.prod(counts_of(self.raw)[self.dimension + 1 :])

    def _fits(self, index: int) -> bool:
        return _fits(self.where, self.offset + index * self._step, self.raw)

    def children(self) -> Iterator[tuple[str, "Entry"]]:
        """The elements by their numbers."""
        for index in range(counts_of(self.raw)[self.dimension]):
            if not self._fits(index):
                return
            yield str(index), self._element(index)

    def child(self, name: str) -> "Entry | None":
        """The element of a number."""
        if re.fullmatch("0|[1-9][0-9]{0,8}", name) is None:
            return None
        index = int(name)
        inside = index < counts_of(self.raw)[self.dimension] and self._fits(index)
        return self._element(index) if inside else None

    def _element(self, index: int) -> "Entry":
        path, offset, where = f"{self.path}/{index}", self.offset + index * self._step, self.where
        if self.limit is not None:
            where = where._replace(limits=(*where.limits, (*self.limit, index)))
        if self.dimension + 1 < len(counts_of(self.raw)):
            return Array(where, path, offset, self.raw, dimension=self.dimension + 1)
        return _single(where, path, offset, self.raw)


class _Source(NamedTuple):
    """Items of a directory, and the place from which their offsets count. `top` has the part's
    items.
    """

    where: Where
    offset: int
    items: Sequence[Mapping[str, Any]]
    top: "Block | None" = None


class Block:
    """A directory: a block of registers, or the top of a map with all parts that are there."""

    def __init__(self, path: str, sources: Sequence[_Source]) -> None:
        self.path = path
        self.blocks: dict[str, Block] = {}
        self._sources = sources
        self._made: dict[str, Entry] = {}

    @cached_property
    def _items(self) -> dict[str, tuple[_Source, Mapping[str, Any]]]:
        return {
            item["name"]: (source, item)
            for source in self._sources
            for item in source.items
            if "count" in item or _fits(source.where, source.offset + item["offset"], item)
        }

    def children(self) -> Iterator[tuple[str, "Entry"]]:
        """Its blocks, arrays and registers, in the order of the map."""
        for name in self._items:
            yield name, self._entry(name)
        yield from self.blocks.items()

    def child(self, name: str) -> "Entry | None":
        """The block, array or register of a name."""
        return self._entry(name) if name in self._items else self.blocks.get(name)

    def _register(self, name: str) -> Register:
        """A register that the map refers to. It has been checked to be there."""
        found = self.child(name)
        if not isinstance(found, Register):
            raise MapRefused(f"{name}: there is no such register here")
        return found

    def _entry(self, name: str) -> "Entry":
        found = self._made.get(name)
        if found is None:
            found = self._made[name] = self._make(name)
        return found

    def _make(self, name: str) -> "Entry":
        (where, start, _, top), item = self._items[name]
        top = top or self
        path = f"{self.path}/{name}" if self.path else name
        offset = start + item["offset"]
        if "base" in item:
            base = top._register(item["base"])  # noqa: SLF001 - its own class
            where = Where(where.place._replace(end=None), base)
        if not counts_of(item):
            return _single(where, path, offset, item, top)
        limit = None
        if "limit" in item:
            owner, _, field = item["limit"].partition(".")
            register = top._register(owner)  # noqa: SLF001 - its own class
            limit = next((register, found) for found in register.fields if found.name == field)
        return Array(where, path, offset, item, limit)


Entry: TypeAlias = Block | Array | Register


def _fits(where: Where, start: int, item: Mapping[str, Any]) -> bool:
    """Whether an item with `fit` ends inside the place."""
    end = where.place.end
    return end is None or not item.get("fit") or start + extent_of(item) <= end


def extent_of(item: Mapping[str, Any]) -> int:
    """The size of a register or a block in bytes. For an array it is that of one element."""
    if "registers" not in item:
        return int(item["width"]) // 8
    return max((_end_of(inner) for inner in item["registers"]), default=0)


def _end_of(item: Mapping[str, Any]) -> int:
    """The end of an item in its block."""
    steps = math.prod(counts_of(item)) - 1
    return int(item["offset"]) + steps * int(item.get("stride", 0)) + extent_of(item)


def _single(
    where: Where, path: str, offset: int, item: Mapping[str, Any], top: Block | None = None
) -> Block | Register:
    if "registers" in item:
        return Block(path, [_Source(where, offset, item["registers"], top)])
    return Register(where, path, offset, item)


class Map:
    """The map of a device, as in its file."""

    def __init__(self, content: Any) -> None:
        """MapRefused if it is not as docs/registers.md says."""
        reaches = check(content)
        self.subjects: Final[Sequence[str]] = content["for"]
        self.name: Final[str] = content.get("name", "")
        self.description: Final[str] = content.get("description", "")
        self.revisions: Final[Sequence[int]] = content.get("revision", [])
        self.source: Final[Sequence[Mapping[str, str]]] = content.get("source", [])
        self.parts: Final = tuple(map(Part.of, content["parts"], reaches))

    @classmethod
    def parse(cls, data: bytes) -> "Map":
        """Make a map from the contents of its file. Raises MapRefused."""
        try:
            content = json.loads(data, parse_float=_no_number, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise MapRefused(f"it is no JSON: {error}") from error
        return cls(content)

    def outline(self) -> Block:
        """Its directory, for a machine of which nothing is known."""
        return self.top([Place(part.space, part.bar, 0, None) for part in self.parts])

    def top(self, places: Sequence[Place | None], path: str = "") -> Block:
        """The directory of its parts, each in its place. Parts without a place are left out.

        It is at `path` in a larger directory, if that is not empty.
        """
        sources: dict[str, list[_Source]] = {}
        for part, place in zip(self.parts, places, strict=True):
            if place is not None:
                source = _Source(Where(place), place.start + part.offset, part.registers)
                sources.setdefault(part.directory, []).append(source)
        top = Block(path, sources.pop("", []))
        for name, found in sources.items():
            top.blocks[name] = Block(f"{path}/{name}" if path else name, found)
        return top


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no whole number")


def find(top: Block, path: str) -> Entry | None:
    """The item that a path in a map leads to: `CTRL`, `RDBAL/1`, `UART0/CTRL`."""
    found: Entry | None = top
    for name in path.split("/"):
        if found is None or isinstance(found, Register):
            return None
        found = found.child(name)
    return found


def registers(entry: Entry) -> Iterator[Register]:
    """All registers in a directory, in the order of the map."""
    if isinstance(entry, Register):
        yield entry
        return
    for _, child in entry.children():
        yield from registers(child)
