"""The types of the kernel's data: where a field of a structure lies. /sys/kernel/btf/vmlinux tells.

The format is BTF (Documentation/bpf/btf.rst, include/uapi/linux/btf.h). It has the types of a
kernel. It does not tell the types of variables, except per-CPU ones. So the user names the type.
"""

import functools
import os
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from barfs.errors import NoSuchNode

# Below sysfs.
BTF_FILE: Final = "kernel/btf/vmlinux"

_MAGIC: Final = 0xEB9F
_HEADER: Final = "HBBIIIII"  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len

# The BTF_KIND_* of include/uapi/linux/btf.h that are used below.
_INT: Final = 1
_PTR: Final = 2
_ARRAY: Final = 3
_STRUCT: Final = 4
_UNION: Final = 5
_ENUM: Final = 6
_TYPEDEF: Final = 8
_VOLATILE: Final = 9
_CONST: Final = 10
_RESTRICT: Final = 11
_FLOAT: Final = 16
_TYPE_TAG: Final = 18
_ENUM64: Final = 19

# How many bytes follow a type's first twelve, by its kind: always, and for each of `vlen` parts.
_TRAILERS: Final = {
    _INT: (4, 0),
    _PTR: (0, 0),
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    7: (0, 0),  # FWD
    _TYPEDEF: (0, 0),
    _VOLATILE: (0, 0),
    _CONST: (0, 0),
    _RESTRICT: (0, 0),
    12: (0, 0),  # FUNC
    13: (0, 8),  # FUNC_PROTO
    14: (4, 0),  # VAR
    15: (0, 12),  # DATASEC
    _FLOAT: (0, 0),
    17: (4, 0),  # DECL_TAG
    _TYPE_TAG: (0, 0),
    _ENUM64: (0, 12),
}

# Kinds that are other names of a type, and have its size.
_ALIASES: Final = frozenset((_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG))
_WITH_FIELDS: Final = frozenset((_STRUCT, _UNION, _TYPEDEF, _INT))
_SIZED: Final = frozenset((_INT, _STRUCT, _UNION, _ENUM, _FLOAT, _ENUM64))
_POINTER_SIZE: Final = struct.calcsize("P")

# More than any chain of names in a kernel. Garbage could have a circle.
_LONGEST_CHAIN: Final = 64


class BadTypes(ValueError):
    """The bytes are no BTF, or one that this reader does not know."""


class _Type(NamedTuple):
    """A type's first twelve bytes. `at` is where the rest begins in the type section."""

    kind: int
    vlen: int
    has_bitfields: bool  # kind_flag: of a structure's members, the sizes of bit fields are given
    value: int  # the size in bytes, or the number of another type
    at: int


class Field(NamedTuple):
    """A part of a structure. `offset` and `size` are bytes, from the start of the whole.

    An array has `elements`, each of `element_size` bytes. `elements` is 0 if it is no array.
    """

    offset: int
    size: int
    elements: int = 0
    element_size: int = 0


class Types:
    """The types of a kernel, from the bytes of its BTF. BadTypes.

    It is made once, which takes about 1 us for each type. It holds the bytes, and four more for
    each type.
    """

    def __init__(self, data: bytes) -> None:
        for order in ("<", ">"):
            self._order = order
            header = struct.Struct(order + _HEADER)
            if len(data) < header.size:
                raise BadTypes("it ends before its header does")
            magic, version, _, length, type_at, types, text_at, text = header.unpack_from(data)
            if magic == _MAGIC:
                break
        else:
            raise BadTypes("it does not begin with the magic number of BTF")
        if version != 1:
            raise BadTypes(f"its version is {version}, and only version 1 is known")
        if max(length + type_at + types, length + text_at + text) > len(data):
            raise BadTypes("it ends before its sections do")
        self._types = data[length + type_at : length + type_at + types]
        self._text = data[length + text_at : length + text_at + text]
        self._places = array("I", self._walk())

    def _walk(self) -> Iterator[int]:
        """Where each type begins, in the order of their numbers. Number 0 is void."""
        yield 0
        data, trailers = self._types, _TRAILERS
        info_at = struct.Struct(self._order + "4xI").unpack_from
        at, end = 0, len(data)
        while at < end:
            yield at
            try:
                (info,) = info_at(data, at)
                fixed, each = trailers[info >> 24 & 0x1F]
            except (struct.error, KeyError):
                raise BadTypes(f"what lies at {at:#x} of its types is none that is known") from None
            at += 12 + fixed + each * (info & 0xFFFF)
        if at != end:
            raise BadTypes("its last type is cut")

    def _unpack(self, form: str, at: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self._order + form, self._types, at)
        except struct.error:
            raise BadTypes("a type is cut") from None

    def _type(self, number: int) -> _Type:
        if not 0 < number < len(self._places):
            raise BadTypes(f"there is no type number {number}")
        at = self._places[number]
        _, info, value = self._unpack("III", at)
        return _Type(info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), value, at + 12)

    def _resolve(self, number: int) -> _Type:
        """A type behind all of its other names."""
        for _ in range(_LONGEST_CHAIN):
            found = self._type(number)
            if found.kind not in _ALIASES:
                return found
            number = found.value
        raise BadTypes(f"type number {number} stands for itself")

    def _name(self, at: int) -> str:
        end = self._text.find(b"\0", at)
        return self._text[at:end].decode(errors="replace")

    def _size(self, number: int) -> int:
        """The size of a type in bytes. 0 if it has none."""
        found = self._resolve(number)
        if found.kind in _SIZED:
            return found.value
        if found.kind == _PTR:
            return _POINTER_SIZE
        if found.kind == _ARRAY:
            element, _, count = self._unpack("III", found.at)
            return count * self._size(element)
        return 0

    def _named(self, name: str) -> list[int]:
        """The structures, unions, integers and typedefs of a name. NoSuchNode if there is none.

        A kernel may have several of one name, from different source files.
        """
        # The text has a name only once. All types of that name begin with its place in the text.
        place = self._text.find(b"\0" + name.encode(errors="surrogateescape") + b"\0") + 1
        head = struct.pack(self._order + "I", place)
        found = [
            number
            for number, at in enumerate(self._places)
            if number
            and self._types.startswith(head, at)
            and self._type(number).kind in _WITH_FIELDS
        ]
        if not name or not place or not found:
            raise NoSuchNode(f"this kernel has no type {name!a}")
        return found

    def _members(self, found: _Type) -> Iterator[tuple[str, int, int, int]]:
        """The name, the number of the type, the offset and the width of each member, both in bits.

        A width of 0 means that it is no bit field.
        """
        for part in range(found.vlen):
            name, number, place = self._unpack("III", found.at + 12 * part)
            if found.has_bitfields:
                yield self._name(name), number, place & 0xFFFFFF, place >> 24
            else:
                yield self._name(name), number, place, 0

    def _member(self, found: _Type, name: str) -> tuple[int, int] | None:
        """The type of a member and its offset in bytes. The member may be inside an unnamed
        part.
        """
        for own, number, bits, width in self._members(found):
            if own == name:
                if width or bits % 8:
                    raise NoSuchNode(f"{name} is a bit field: it has no bytes of its own")
                return number, bits // 8
            if not own:
                inner = self._resolve(number)
                if inner.kind in {_STRUCT, _UNION}:
                    deeper = self._member(inner, name)
                    if deeper is not None:
                        return deeper[0], bits // 8 + deeper[1]
        return None

    def field(self, path: str) -> Field:
        """Where `type.field.field` lies in a `type`. Elements of arrays are numbers: `items.3`.

        NoSuchNode if there is no such type, field or element, or if the kernel has several types of
        that name with the field at different places. Raises BadTypes.
        """
        name, *steps = path.split(".")
        numbers = self._named(name)
        found, refusals = set(), []
        for number in numbers:
            try:
                found.add(self._follow(number, steps, path))
            except NoSuchNode as error:
                refusals.append(error)
        if not found:
            raise refusals[0]
        if len(found) > 1 or (refusals and len(numbers) > 1):
            raise NoSuchNode(f"{path}: this kernel has {len(numbers)} types {name}, which differ")
        return found.pop()

    def _follow(self, number: int, steps: Sequence[str], path: str) -> Field:
        offset = 0
        for step in steps:
            found = self._resolve(number)
            if found.kind == _ARRAY:
                element, _, count = self._unpack("III", found.at)
                if re.fullmatch("[0-9]{1,9}", step) is None or int(step) >= count:
                    raise NoSuchNode(f"{path}: an array has elements 0 to {count - 1}, not {step}")
                number, offset = element, offset + int(step) * self._size(element)
                continue
            if found.kind not in {_STRUCT, _UNION}:
                raise NoSuchNode(f"{path}: what {step} is asked of is no structure")
            member = self._member(found, step)
            if member is None:
                raise NoSuchNode(f"{path}: there is no field {step!a}")
            number, offset = member[0], offset + member[1]
        found, size = self._resolve(number), self._size(number)
        if found.kind == _ARRAY:
            element, _, count = self._unpack("III", found.at)
            return Field(offset, size, count, self._size(element))
        return Field(offset, size)


@functools.lru_cache(maxsize=1)
def _types_of(path: str, _mtime: int, _size: int) -> Types:
    """The types in a file. They are read once, in about 0.15 s, and kept until the file changes."""
    return Types(Path(path).read_bytes())


def read_types(sysfs: Path) -> Types:
    """The types of the running kernel. NoSuchNode tells why there are none."""
    path = os.path.join(sysfs, BTF_FILE)
    try:
        status = os.stat(path)
        return _types_of(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise NoSuchNode(
            f"types need {path}: {error.strerror}; it is there in kernels built with "
            "CONFIG_DEBUG_INFO_BTF"
        ) from error
    except BadTypes as error:
        raise NoSuchNode(f"{path} is garbage: {error}") from error
