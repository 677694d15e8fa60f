"""Registers and fields as text: to read, to write, and to describe.

A register is the same line as in `x32/`. A field is its value, with the name that the map gives it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from barfs.access import contract
from barfs.access.contract import Update
from barfs.errors import BadRequest
from barfs.registers.maps import Field, Register
from barfs.registers.plans import Write, effects_of_reading, plan

# SystemRDL 2.0, 9.6, in words.
EFFECTS: Final = {
    "rclr": "cleared by reading",
    "rset": "set by reading",
    "ruser": "changed by reading",
    "woset": "write 1 to set",
    "woclr": "write 1 to clear",
    "wot": "write 1 to toggle",
    "wzs": "write 0 to set",
    "wzc": "write 0 to clear",
    "wzt": "write 0 to toggle",
    "wclr": "cleared by any write",
    "wset": "set by any write",
    "wuser": "changed by any write",
}
_ACCESSES: Final = {"rw1": "rw once", "w1": "w once", "na": "no access"}


def value_of(field: Field, value: int) -> str:
    """A field's value: `1`, `0x2`, or with its name, `0x2 FULL`."""
    number = str(value) if field.width == 1 else f"{value:#x}"
    name = next((name for name, known in field.values.items() if known == value), None)
    return number if name is None else f"{number} {name}"


def line_of(field: Field, value: int) -> bytes:
    """A field's value as a line."""
    return f"{value_of(field, value)}\n".encode()


def _longest_value(field: Field) -> str:
    """The longest of a field's values, as text."""
    most = (1 << field.width) - 1
    return max((value_of(field, value) for value in (most, *field.values.values())), key=len)


def longest_line(field: Field) -> int:
    """The most bytes that a field's line may have."""
    return len(f"{_longest_value(field)}\n".encode())


def parse_field(text: bytes, field: Field) -> Update:
    """Parse one line: a value, the name of one, or value:mask. BadRequest tells what is wrong.

    Numbers are written as for registers.
    """
    name = text.strip(b" \t\n").decode("latin-1")
    for known, value in field.values.items():
        if known.encode().decode("latin-1") == name:
            return Update(value, None)
    try:
        update = contract.parse_update(text, 8)
    except BadRequest as error:
        if not field.values:
            raise
        raise BadRequest(f"{error}, nor one of {', '.join(field.values)}") from error
    if max(update.value, update.mask or 0) >> field.width:
        bits = "1 bit" if field.width == 1 else f"{field.width} bits"
        raise BadRequest(f"{contract.shown_text(text)} is too big for a field of {bits}")
    return update


class FieldLines(NamedTuple):
    """The lines that are written to a field."""

    field: Field

    def check(self, text: bytes, *, ends: bool) -> None:
        """BadRequest if a text is no line for `parse_field`, or no beginning of one."""
        if ends:
            parse_field(text, self.field)
        elif not self._may_begin(text):
            contract.Numbers(8).check(text, ends=False)

    def _may_begin(self, text: bytes) -> bool:
        """Whether more can make one of the field's names of a text."""
        start = text.lstrip(b" \t")
        return any(name.encode().startswith(start.rstrip(b" \t")) for name in self.field.values)


def bits_of(field: Field) -> str:
    """The bits of a field: `7:6`, `3`."""
    return f"{field.lsb}" if field.width == 1 else f"{field.msb}:{field.lsb}"


def _notes(field: Field) -> Iterator[str]:
    """Notes on the effects of accesses to a field."""
    yield _ACCESSES.get(field.access, field.access)
    for effect in (field.on_read, field.on_write):
        if effect is not None:
            yield EFFECTS[effect]
    if field.self_clearing:
        yield "clears itself"


def first_line(description: str) -> str:
    """The first line of a description."""
    return description.strip().partition("\n")[0]


def decoded(register: Register, value: int) -> str:
    """All fields of one value of a register: name, bits, value and its name, description.

    Each column has room for any value, so the length of the text does not depend on the value.
    """
    head = contract.format_value(value, register.size).decode().strip()
    lines = [f"{register.path} {head} {first_line(register.description)}".rstrip()]
    rows = []
    for field in register.fields:
        shown = value_of(field, (value & field.mask) >> field.lsb) if field.readable else "-"
        room = len(_longest_value(field)) if field.readable else 0
        rows.append((field.name, bits_of(field), shown.ljust(room)))
    descriptions = [first_line(field.description) for field in register.fields]
    lines += [
        f"{row}  {description}" if description else row
        for row, description in zip(_aligned(rows) if rows else (), descriptions, strict=True)
    ]
    return "".join(f"{line}\n" for line in lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as their widest words, indented."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells)}"


def how_written(register: Register, field: Field) -> str:
    """The accesses of a write to a field, or why there are none."""
    if not field.writable:
        return "not writable"
    try:
        made: Write = plan(register, field)
    except BadRequest as error:
        return re.sub(r"^.*?(?=, as |is in )", "never alone", str(error), count=1)
    return "written with a read" if made.keep else "written at once"


def datasheet(register: Register, fields: Iterable[Field]) -> str:
    """A register and some of its fields: place, width, description, and effects of accesses."""
    place = f"{register.place}@{register.offset:x}"
    if register.where.base is not None:
        place = f"{register.place}, {register.offset:#x} from {register.where.base.path}"
    lines = [f"{register.path}: {place}, {8 * register.size} bits"]
    if register.step < register.size:
        lines[0] += f" in accesses of {8 * register.step}"
    if register.description:
        lines.append(f"  {first_line(register.description)}")
    effects = effects_of_reading(register)
    if effects:
        lines.append(f"  reading has an effect: {reason_of(effects)}; not listed, opens by name")
    rows = []
    for field in fields:
        reset = "" if field.reset is None else f"reset {field.reset:#x}"
        notes = ", ".join([*_notes(field), *([how_written(register, field)] * field.writable)])
        rows.append((field.name, bits_of(field), notes, reset, first_line(field.description)))
        lines_after = [
            f"{name} = {value:#x} {field.meanings.get(name, '')}".rstrip()
            for name, value in field.values.items()
        ]
        rows += [("", "", text, "", "") for text in lines_after]
    lines += _aligned(rows) if rows else []
    return "".join(f"{line.rstrip()}\n" for line in lines)


def reason_of(effects: dict[str, str]) -> str:
    """`CTRL.ERR is cleared by reading`. If many have the same effect, it names one and a number."""
    by_effect: dict[str, list[str]] = {}
    for name, effect in effects.items():
        by_effect.setdefault(effect, []).append(name)
    return ", ".join(
        f"{names[0]} is {EFFECTS[effect]}"
        if len(names) == 1
        else f"{names[0]} and {len(names) - 1} more are {EFFECTS[effect]}"
        for effect, names in by_effect.items()
    )
