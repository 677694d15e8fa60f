"""Maps from CMSIS-SVD, as LiteX and makers of microcontrollers write it.

lxml reads the XML, since it tells the lines. Elements have the meaning of CMSIS-SVD 1.3.10.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from lxml import etree

from barfs.registers.checks import problem
from barfs.registers.compiled import CompileError, Item, Target, assemble, without_defaults

Element: TypeAlias = Any  # lxml has no types of its own

_ACCESS: Final = {
    "read-only": "r",
    "write-only": "w",
    "read-write": "rw",
    "writeOnce": "w1",
    "read-writeOnce": "rw1",
}
# "modify", the default, means that the field becomes what is written.
_ON_WRITE: Final = {
    "modify": None,
    "oneToClear": "woclr",
    "oneToSet": "woset",
    "oneToToggle": "wot",
    "zeroToClear": "wzc",
    "zeroToSet": "wzs",
    "zeroToToggle": "wzt",
    "clear": "wclr",
    "set": "wset",
}
_ON_READ: Final = {"clear": "rclr", "set": "rset", "modify": "ruser", "modifyExternal": "ruser"}

# Properties that an element takes from the element around it.
_INHERITED: Final = ("size", "access", "resetValue", "resetMask")

_DERIVED: Final = ("peripheral", "cluster", "register", "field", "enumeratedValues")


class _Wrong(Exception):
    """What is wrong with an element."""

    def __init__(self, element: Element, text: str) -> None:
        super().__init__(f"{element.sourceline}: {text}")


def _text(element: Element, tag: str, default: str | None = None) -> str | None:
    found = element.find(tag)
    return default if found is None or found.text is None else " ".join(found.text.split())


def _number(element: Element, tag: str) -> int | None:
    text = _text(element, tag)
    return None if text is None else _parse(element.find(tag), text)


def _needed(element: Element, tag: str) -> int:
    number = _number(element, tag)
    if number is None:
        raise _Wrong(element, f"{element.tag} has no {tag}")
    return number


def _parse(element: Element, text: str) -> int:
    """A scaledNonNegativeInteger: decimal, 0x, or # and binary, with K, M, G or T."""
    match = re.fullmatch(r"\+?(?:0[xX]([0-9a-fA-F]+)|(?:#|0b)([01]+)|([0-9]+))([kmgtKMGT]?)", text)
    if match is None:
        raise _Wrong(element, f"{text!a} is no number")
    base, digits = next((b, d) for b, d in zip((16, 2, 10), match.groups(), strict=False) if d)
    return int(digits, base) << 10 * " KMGT".index(match[4].upper() or " ")


def _word(element: Element, tag: str, words: Mapping[str, str | None]) -> str | None:
    text = _text(element, tag)
    if text is None:
        return None
    if text not in words:
        raise _Wrong(element.find(tag), f"{tag} is {text!a}, not one of {', '.join(words)}")
    return words[text]


def compile_file(file: Path, target: Target) -> Item:
    """The map that a file describes, with a directory for each peripheral. Raises CompileError."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True)
    try:
        root = etree.parse(str(file), parser).getroot()
    except etree.XMLSyntaxError as error:
        raise CompileError(f"{file}:{error.lineno}: {error.msg}") from error
    except OSError as error:
        raise CompileError(f"{file}: {error}") from error
    if target.place is None:
        raise CompileError(f"{file}: nothing says in which BAR the registers are: --bar 0")
    reader = _Reader(root)
    try:
        blocks = reader.blocks(target.offset)
    except _Wrong as error:
        raise CompileError(f"{file}:{error}") from error
    part = {"in": target.place, "registers": blocks}
    name, description = _text(root, "name"), _text(root, "description")
    return assemble(target, (), [part], [file], name=name, description=description)


class _Reader:
    """Makes blocks, registers and fields from the elements of a device."""

    def __init__(self, root: Element) -> None:
        self._root = root
        self._derived: set[Element] = set()

    def blocks(self, offset: int) -> list[Item]:
        """A block for each peripheral. `offset` is added to their addresses."""
        root = self._root
        if root.tag != "device":
            raise _Wrong(root, f"this is no description of a device but of a {root.tag}")
        if (_number(root, "addressUnitBits") or 8) != 8 or _text(root, "cpu/endian") == "big":
            raise _Wrong(
                root, "addresses of other units than bytes, or big-endian ones, are no BAR's"
            )
        for tag in _DERIVED:
            for element in root.iter(tag):
                self._derive(element, ())
        inherited = self._inherit(root, {})
        return [
            block
            for peripheral in root.iterfind("peripherals/peripheral")
            if peripheral.find("registers") is not None
            for block in self._block(peripheral, "baseAddress", offset, inherited)
        ]

    def _derive(self, element: Element, on_the_way: tuple[Element, ...]) -> None:
        """Give an element the properties that it lacks from the element that it is derived from."""
        name = element.get("derivedFrom")
        if name is None or element in self._derived:
            return
        source = self._source(element, name)
        if source is None or element in on_the_way:
            raise _Wrong(element, f"there is no {element.tag} {name!a} to be derived from")
        self._derive(source, (*on_the_way, element))
        self._derived.add(element)
        own = {"name", *(child.tag for child in element)}
        for child in source:
            if child.tag not in own:
                element.append(copy.deepcopy(child))

    def _source(self, element: Element, name: str) -> Element | None:
        """The element that `derivedFrom` names: beside this one, or by its path from a
        peripheral.
        """
        last = name.rpartition(".")[2]
        named = [e for e in self._root.iter(element.tag) if _text(e, "name") == last]
        others = [other for other in named if other is not element]
        if "." not in name:
            beside = [e for e in others if e.getparent() is element.getparent()]
            return next(iter(beside or others), None)
        return next((e for e in others if f".{self._path(e)}".endswith(f".{name}")), None)

    @staticmethod
    def _path(element: Element) -> str:
        """The names of an element and of those around it: `UART0.CTRL.EN`."""
        way = [element, *element.iterancestors("peripheral", "cluster", "register", "field")]
        return ".".join(_text(e, "name") or "" for e in reversed(way))

    @staticmethod
    def _inherit(element: Element, outer: Mapping[str, Element]) -> dict[str, Element]:
        """The properties that registers have by default, each with the element that gives it."""
        own = {tag: element for tag in _INHERITED if element.find(tag) is not None}
        return {**outer, **own}

    def _block(
        self, element: Element, where: str, offset: int, outer: Mapping[str, Element]
    ) -> Iterator[Item]:
        """The blocks of a peripheral or a cluster. A list has several."""
        inherited = self._inherit(element, outer)
        inside = element.find("registers") if element.tag == "peripheral" else element
        item = {"description": _text(element, "description")}
        start = _needed(element, where) + offset
        if start < 0:
            raise _Wrong(element, f"the offset {offset:#x} puts it before the beginning")
        for name, at, array in self._elements(element, start):
            items: list[Item] = []
            for child in inside:
                if child.tag == "register":
                    items += self._register(child, inherited)
                elif child.tag == "cluster":
                    items += self._block(child, "addressOffset", 0, inherited)
            made = {"name": name, "offset": at, **array, **item, "registers": items}
            yield _checked(element, without_defaults(made))

    @staticmethod
    def _elements(element: Element, start: int) -> Iterator[tuple[str, int, Item]]:
        """The names and offsets that one element stands for, and the keys that make it an array."""
        name = _text(element, "name")
        if name is None:
            raise _Wrong(element, f"this {element.tag} has no name")
        count = _number(element, "dim")
        if count is None:
            yield name, start, {}
            return
        step = _needed(element, "dimIncrement")
        if name.endswith("[%s]"):
            yield name.removesuffix("[%s]"), start, {"count": count, "stride": step}
            return
        if "%s" not in name:
            raise _Wrong(element, f"{name} has a dim, but no %s in its name")
        for index, word in enumerate(_indices(element, count)):
            yield name.replace("[%s]", "%s").replace("%s", word), start + index * step, {}

    def _register(self, element: Element, outer: Mapping[str, Element]) -> Iterator[Item]:
        inherited = self._inherit(element, outer)
        size = _needed(inherited.get("size", element), "size")
        bus = _number(self._root, "width") or size
        on_read = _word(element, "readAction", _ON_READ)
        on_write = _word(element, "modifiedWriteValues", _ON_WRITE)
        access = _word(inherited.get("access", element), "access", _ACCESS) or "rw"
        fields: list[Item] = []
        for field in element.iterfind("fields/field"):
            effects = {"access": access, "on_read": on_read, "on_write": on_write}
            fields += self._field(field, effects, self._reset(inherited))
        item = {
            "width": size,
            "access_width": bus if bus < size and bus in {8, 16, 32} else size,
            "access": access,
            "on_read": on_read,
            "description": _text(element, "description"),
            "fields": fields or None,
        }
        if on_write and not fields:
            item["fields"] = [{"name": "VALUE", "lsb": 0, "msb": size - 1, "on_write": on_write}]
        for name, at, array in self._elements(element, _needed(element, "addressOffset")):
            made = {"name": name, "offset": at, **array, **item}
            yield _checked(element, without_defaults(made, access="rw", access_width=size))

    @staticmethod
    def _reset(inherited: Mapping[str, Element]) -> tuple[int, int]:
        """A register's value after a reset, and the mask of the bits that are known."""
        if "resetValue" not in inherited:
            return 0, 0
        value = _needed(inherited["resetValue"], "resetValue")
        known = _number(inherited["resetMask"], "resetMask") if "resetMask" in inherited else -1
        return value, -1 if known is None else known

    def _field(
        self, element: Element, outer: Mapping[str, Any], reset: tuple[int, int]
    ) -> Iterator[Item]:
        lsb, msb = _bits(element)
        own = {
            "access": _word(element, "access", _ACCESS),
            "on_read": _word(element, "readAction", _ON_READ),
            "on_write": _word(element, "modifiedWriteValues", _ON_WRITE),
        }
        if element.find("modifiedWriteValues") is not None:
            outer = {**outer, "on_write": None}
        item = {key: own[key] or outer[key] for key in own}
        item |= {
            "enum": self._enum(element, msb - lsb),
            "description": _text(element, "description"),
        }
        value, known = reset
        for name, at, array in self._elements(element, lsb):
            # An array of fields has no directory. Its elements are fields of their own.
            for index in range(array.get("count", 1)):
                low = at + index * array.get("stride", 0)
                mask = (2 << msb - lsb) - 1
                is_known = known >> low & mask == mask
                made = {"name": f"{name}{index}" if array else name, "lsb": low}
                made |= {"msb": low + msb - lsb, **item}
                made |= {"reset": value >> low & mask if is_known else None}
                yield without_defaults(made, access="rw", msb=low)

    @staticmethod
    def _enum(element: Element, top: int) -> Item | None:
        """The names of values. Names for many values, and names that are numbers, are left out."""
        found: Item = {}
        for value in element.iterfind("enumeratedValues/enumeratedValue"):
            name, text = _text(value, "name"), _text(value, "value")
            if not name or not text or not re.fullmatch(r"[A-Za-z_][^\s./:]*", name):
                continue
            if re.fullmatch(r"(?:#|0b)[01]*[xX][01xX]*", text):
                continue
            number = _parse(value, {"true": "1", "false": "0"}.get(text, text))
            if number > (2 << top) - 1:
                raise _Wrong(value, f"the value {number} of {name} does not fit")
            meaning = _text(value, "description")
            found.setdefault(name, [number, meaning] if meaning else number)
        return found or None


def _checked(element: Element, item: Item) -> Item:
    found = problem(item)
    if found is not None:
        raise _Wrong(element, found)
    return item


def _indices(element: Element, count: int) -> Sequence[str]:
    """The texts for %s in the names of a list."""
    text = _text(element, "dimIndex")
    if text is None:
        return [str(index) for index in range(count)]
    ends = re.fullmatch(r"([0-9]+)-([0-9]+)|([A-Z])-([A-Z])", text)
    if ends is None:
        found = [word.strip() for word in text.split(",")]
    elif ends[1]:
        found = [str(index) for index in range(int(ends[1]), int(ends[2]) + 1)]
    else:
        found = [chr(index) for index in range(ord(ends[3]), ord(ends[4]) + 1)]
    if len(found) != count:
        raise _Wrong(element, f"dimIndex {text!a} has {len(found)} names for {count} elements")
    return found


def _bits(element: Element) -> tuple[int, int]:
    """The lowest and the highest bit of a field. There are three ways to write them."""
    span = _text(element, "bitRange")
    if span is not None:
        match = re.fullmatch(r"\[([0-9]+):([0-9]+)\]", span)
        if match is None:
            raise _Wrong(element, f"bitRange is {span!a}, not of the form [7:0]")
        return int(match[2]), int(match[1])
    if element.find("lsb") is not None:
        return _needed(element, "lsb"), _needed(element, "msb")
    lsb = _needed(element, "bitOffset")
    width = _number(element, "bitWidth")
    return lsb, lsb + (1 if width is None else width) - 1
