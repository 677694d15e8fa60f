"""Check that a map is as docs/registers.md says. It is checked and refused as a whole.

A check of 16,000 fields takes well under 0.1 s. So it looks at plain dictionaries and keeps
nothing. The message that tells what is wrong, and where, is made only if something is wrong.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from barfs.errors import MapRefused

FORMAT: Final = "barfs registers 1"

# The things that a map can be for: the names of its file without `.json`.
SUBJECT: Final = re.compile(
    r"[0-9a-f]{4}:[0-9a-f]{4}(?::[0-9a-f]{4}:[0-9a-f]{4})?|class-[0-9a-f]{6}|virtio|config"
    r"|phys-[^/\s]+"
)
# The places from which the offsets of a part count.
PLACE: Final = re.compile(
    r"bar(?P<bar>[0-5])|phys|virtio (?P<virtio>[1-9])"
    r"|config(?: header (?P<header>[012])| cap (?P<cap>[0-9a-f]{2})| ecap (?P<ecap>[0-9a-f]{4}))?"
)

ACCESSES: Final = frozenset(("rw", "r", "w", "rw1", "w1", "na"))
# The words of SystemRDL 2.0, 9.6.
ON_READ: Final = frozenset(("rclr", "rset", "ruser"))
ON_WRITE: Final = frozenset(("woset", "woclr", "wot", "wzs", "wzc", "wzt", "wclr", "wset", "wuser"))
WIDTHS: Final = frozenset((8, 16, 32, 64))
# Names at the top of the tree that are taken already.
TAKEN: Final = frozenset(("README", "all", "config"))

# How many files and directories a map may have. All elements of arrays count.
MOST_NAMES: Final = 1 << 20
# The longest name that Linux has for a file (NAME_MAX), in bytes.
_LONGEST: Final = 255

_TOP: Final = frozenset(("format", "for", "revision", "name", "description", "source", "parts"))
_PART: Final = frozenset(("in", "offset", "directory", "description", "when", "registers"))
_WHEN: Final = frozenset(("offset", "width", "mask", "values"))
_ARRAY: Final = frozenset(("count", "stride", "limit", "fit"))
_BLOCK: Final = _ARRAY | {"name", "offset", "description", "base", "registers"}
_REGISTER: Final = _ARRAY | {
    *("name", "offset", "width", "access_width", "access", "on_read", "description"),
    *("reserved", "fields"),
}
_FIELD: Final = frozenset(
    (
        *("name", "lsb", "msb", "access", "on_read", "on_write", "self_clearing", "reset"),
        *("enum", "description"),
    )
)
_NEEDED: Final = frozenset(("name", "lsb"))

# Names are printable, without blanks. They have no `/`, as in paths, and no `.`, as before a field.
_is_name: Final = re.compile(r"[^\s./\x00-\x1f\x7f-\x9f\u2028\u2029]+").fullmatch


class _At(Exception):
    """What is wrong. The names of the places around it are put in front."""


# A list or an object in the place of a word is no member of any set.
_WRONG: Final = (_At, TypeError)


def _shown(value: Any) -> str:
    """A value as the map has it, or the beginning of it."""
    return json.dumps(value, default=str)[:80]


def _keys(what: Mapping[str, Any], allowed: frozenset[str], *needed: str) -> None:
    if type(what) is not dict:
        raise _At(f"{_shown(what)} is not an object")
    for key in what.keys() - allowed:
        raise _At(f"there is no {key!a} here")
    for key in needed:
        if key not in what:
            raise _At(f"it has no {key!a}")


def _number(what: Mapping[str, Any], key: str, default: int | None = None, least: int = 0) -> int:
    """A whole number of at most 64 bits."""
    value = what.get(key, default)
    if value is None and key not in what:
        raise _At(f"it has no {key!a}")
    if type(value) is not int or not least <= value < 1 << 64:
        raise _At(f"{key!a} is {_shown(value)}, not a whole number from {least} on")
    return value


def _text(what: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if type(what.get(key, "")) is not str:
            raise _At(f"{key!a} is not a text")


def _name(what: Mapping[str, Any], taken: set[str]) -> str:
    name = what.get("name")
    if type(name) is not str or not _is_name(name):
        raise _At(f"{name!a:.80} is no name: it may have neither / nor . nor blanks in it")
    if len(name) > _LONGEST // 2 // (1 if name.isascii() else 4) or not name.isprintable():
        raise _At(f"{name!a:.80} is too long for a name, or can't be printed")
    if name in taken:
        raise _At(f"there are two of the name {name}")
    taken.add(name)
    return name


def counts_of(item: Mapping[str, Any]) -> list[int]:
    """The lengths of an array in each dimension. None if it is no array."""
    count = item.get("count", [])
    return [count] if type(count) is int else count


def _array(item: Mapping[str, Any], extent: int) -> tuple[int, int]:
    """The number of elements, and the end of the last one, or of the first with `fit`."""
    counts = counts_of(item)
    if type(counts) is not list or any(type(n) is not int or n < 1 for n in counts):
        raise _At(f"'count' is {_shown(counts)}, not a whole number from 1 on, nor a list of such")
    if type(item.get("fit", False)) is not bool:
        raise _At("'fit' is neither true nor false")
    if not counts:
        if "stride" in item or "limit" in item:
            raise _At("'stride' and 'limit' are for what has a 'count'")
        return 1, 0 if item.get("fit") else extent
    total = 1
    for n in counts:
        total *= n
    if total > MOST_NAMES:
        raise _At(f"an array of {total} elements is too big")
    stride = _number(item, "stride", least=1)
    if stride < extent:
        raise _At(f"elements of {extent:#x} bytes every {stride:#x} bytes overlap")
    return total, extent if item.get("fit") else (total - 1) * stride + extent


def _field(field: dict[str, Any], width: int, names: set[str], taken: int) -> int:
    """The bits of a field. Raises _At if it is wrong."""
    if type(field) is not dict or not _NEEDED <= field.keys() <= _FIELD:
        _keys(field, _FIELD, "name", "lsb")
    _name(field, names)
    get = field.get
    lsb = field["lsb"]
    msb = get("msb", lsb)
    if type(lsb) is not int or type(msb) is not int or not 0 <= lsb <= msb < width:
        raise _At(f"bits {msb!a:.20} to {lsb!a:.20} are none of a register {width} bits wide")
    bits = (2 << msb) - (1 << lsb)
    if bits & taken:
        raise _At("its bits overlap those of another field")
    if get("access", "rw") not in ACCESSES:
        raise _At(f"'access' is not one of {', '.join(sorted(ACCESSES))}")
    _more(field, bits >> lsb)
    return bits


def _more(field: Mapping[str, Any], most: int) -> None:
    """Check the other properties of a field."""
    get = field.get
    if get("on_read", "rclr") not in ON_READ:
        raise _At(f"'on_read' is not one of {', '.join(sorted(ON_READ))}")
    if get("on_write", "woset") not in ON_WRITE:
        raise _At(f"'on_write' is not one of {', '.join(sorted(ON_WRITE))}")
    if type(get("self_clearing", False)) is not bool:
        raise _At("'self_clearing' is neither true nor false")
    if type(get("description", "")) is not str:
        raise _At("'description' is not a text")
    reset = get("reset", 0)
    if type(reset) is not int or not 0 <= reset <= most:
        raise _At(f"'reset' is {_shown(reset)}, which does not fit")
    if "enum" in field:
        _enum(field["enum"], most)


def _enum(enum: Any, most: int) -> None:
    """`{"NAME": value}` or `{"NAME": [value, "description"]}`."""
    if type(enum) is not dict:
        raise _At("'enum' is not an object")
    for name, value in enum.items():
        if type(value) is list and len(value) == 2 and type(value[1]) is str:
            value = value[0]  # noqa: PLW2901
        if not _is_name(name) or not name.isprintable():
            raise _At(f"{name!a:.80} is no name of a value")
        if re.match(r"[-+0-9]", name) or ":" in name:
            raise _At(f"{name!a:.80} could be taken for a number")
        if type(value) is not int or not 0 <= value <= most:
            raise _At(f"the value {_shown(value)} of {name} does not fit")


def _register(item: dict[str, Any]) -> tuple[int, int]:
    """The size of a register and the size of one access, in bytes."""
    _keys(item, _REGISTER, "name", "offset", "width")
    width, access_width = item["width"], item.get("access_width", item["width"])
    if width not in WIDTHS or type(width) is not int:
        raise _At(f"a register can't be {width!a:.20} bits wide, but 8, 16, 32 or 64")
    if access_width not in WIDTHS or type(access_width) is not int or access_width > width:
        raise _At(f"a register of {width} bits can't be accessed {access_width!a:.20} at a time")
    if item.get("access", "rw") not in ACCESSES:
        raise _At(f"'access' is {item['access']!a:.80}, not one of {', '.join(sorted(ACCESSES))}")
    if item.get("on_read", "rclr") not in ON_READ:
        raise _At(f"'on_read' is not one of {', '.join(sorted(ON_READ))}")
    if item.get("reserved", "keep") not in {"keep", "zero"}:
        raise _At("'reserved' is neither 'keep' nor 'zero'")
    _text(item, "description")
    fields = item.get("fields", [])
    if type(fields) is not list:
        raise _At("'fields' is not a list")
    taken, names = 0, set[str]()
    for index, field in enumerate(fields):
        try:
            taken |= _field(field, width, names, taken)
        except _WRONG as error:
            name = field.get("name") if type(field) is dict else None
            label = f"field {name}" if type(name) is str and _is_name(name) else f"fields[{index}]"
            raise _At(f"{label}: {error}") from None
    return int(width) // 8, int(access_width) // 8


def problem(item: dict[str, Any]) -> str | None:
    """What is wrong with a register or a block, wherever it is. None if nothing is wrong."""
    try:
        _items([item], set())
    except _At as error:
        return str(error)
    return None


def _aligned(item: Mapping[str, Any], step: int) -> int:
    """The offset of an item, if everything in it is at a multiple of its accesses."""
    for key in ("offset", "stride"):
        if _number(item, key, 0) % step:
            raise _At(f"{key} {item[key]:#x} is no multiple of {step} bytes, the width of accesses")
    return int(item.get("offset", 0))


class _Extent:
    """The extent of the items of a directory.

    It has the number of names, the end of the last byte, and the size of the widest access. The
    directory has to be aligned to that size.
    """

    def __init__(self) -> None:
        self.names = 0
        self.end = 0
        self.step = 1

    def add(self, names: int, end: int, step: int) -> None:
        self.names += names
        self.end = max(self.end, end)
        self.step = max(self.step, step)
        if self.names > MOST_NAMES:
            raise _At(f"it has more than {MOST_NAMES} names")


def _items(items: Any, names: set[str], depth: int = 0) -> _Extent:
    """The registers and blocks of a directory."""
    if type(items) is not list:
        raise _At("'registers' is not a list")
    if depth > 16:
        raise _At("blocks are in each other too deep")
    extent = _Extent()
    for index, item in enumerate(items):
        try:
            if type(item) is dict and "registers" in item:
                _keys(item, _BLOCK, "name", "offset", "registers")
                _text(item, "description", "base", "limit")
                _name(item, names)
                inner = _items(item["registers"], set(), depth + 1)
                size, inside, step = inner.end, inner.names, inner.step
            else:
                (size, step), inside = _register(item), 1 + len(item.get("fields", ()))
                _name(item, names)
            total, end = _array(item, size)
            start = _aligned(item, step)
            end = start + end if end else 0
            # A block that is found through a register has a known place only when it is opened.
            extent.add(total * inside, 0 if "base" in item else end, step)
        except _WRONG as error:
            name = item.get("name") if type(item) is dict else None
            label = name if type(name) is str and _is_name(name) else f"registers[{index}]"
            raise _At(f"{label}: {error}") from None
    return extent


def _references(items: Sequence[Any], top: Mapping[str, Any], depth: int = 0) -> None:
    """Check the registers that tell where a block is and how many elements an array has."""
    for item in items:
        base, limit = item.get("base"), item.get("limit")
        if base is not None and (depth or "count" in item or base not in top):
            raise _At(f"{item['name']}: 'base' is for blocks, and names a register beside it")
        if limit is not None:
            register, _, name = limit.partition(".")
            fields = top.get(register, {}).get("fields", ())
            if type(item["count"]) is not int or name not in {field["name"] for field in fields}:
                raise _At(f"{item['name']}: 'limit' names no field of a register of the part")
        if "registers" in item:
            _references(item["registers"], top, depth + 1)


def _part(part: dict[str, Any], names: dict[str, set[str]]) -> int:
    """The end of a part's last byte, counted as its offsets are.

    `names` has the names that each directory has so far, from parts that are always there.
    """
    _keys(part, _PART, "in", "registers")
    _text(part, "description", "directory")
    place, directory = part["in"], part.get("directory", "")
    match = PLACE.fullmatch(place) if type(place) is str else None
    if match is None:
        raise _At(f"'in' is {place!a:.80}, not of the form bar0, phys, config, virtio 1")
    if directory:
        _name({"name": directory}, set())
    if "when" in part:
        _when(part["when"])
    taken = names.setdefault(directory, set())
    if "when" in part or match["header"]:
        taken = set(taken)
    extent = _items(part["registers"], taken)
    items = part["registers"]
    _references(items, {r["name"]: r for r in items if "width" in r and "count" not in r})
    return _aligned(part, extent.step) + extent.end


def _when(when: Any) -> None:
    _keys(when, _WHEN, *_WHEN)
    for key in ("offset", "mask"):
        _number(when, key)
    if when["width"] not in {8, 16, 32} or type(when["values"]) is not list:
        raise _At("'when' has no width of 8, 16 or 32, or no list of values")


def check(content: Any) -> list[int]:
    """How far each part of a map reaches, in bytes, with its offset. Raises MapRefused."""
    try:
        _top(content)
        names = {"": set[str]() if "config" in content["for"] else set(TAKEN)}
        return [_named_part(part, index, names) for index, part in enumerate(content["parts"])]
    except _At as error:
        raise MapRefused(str(error)) from None


def _top(content: Any) -> None:
    """Check what a map is, and what it is for."""
    _keys(content, _TOP, "format", "for", "parts")
    if content["format"] != FORMAT:
        raise _At(f"'format' is {_shown(content['format'])}, not {FORMAT!a}")
    _text(content, "name", "description")
    for key in ("for", "revision", "source", "parts"):
        if type(content.get(key, [])) is not list:
            raise _At(f"{key!a} is not a list")
    if not content["for"] or not content["parts"]:
        raise _At("it is for nothing, or has no parts")
    for subject in content["for"]:
        if type(subject) is not str or not SUBJECT.fullmatch(subject):
            raise _At(
                f"'for' has {subject!a:.80}, not 8086:100e, 8086:100e:8086:001e, class-010802 or"
                " phys-HPET"
            )
    for revision in content.get("revision", ()):
        if type(revision) is not int or not 0 <= revision <= 0xFF:
            raise _At(f"'revision' has {_shown(revision)}, not a number from 0 to 255")
    for file in content.get("source", ()):
        _keys(file, frozenset(("file", "sha256")), "file", "sha256")
        _text(file, "file", "sha256")


def _named_part(part: Any, index: int, names: dict[str, set[str]]) -> int:
    """The end of a part's last byte. `names` has the names that each directory has so far."""
    try:
        end = _part(part, names)
        twice = names[""] & {*names, part.get("directory", "")}
    except _WRONG as error:
        raise _At(f"parts[{index}]: {error}") from None
    if twice:
        raise _At(f"parts[{index}]: there are two of the name {', '.join(sorted(twice))}")
    return end
