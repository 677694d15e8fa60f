"""The accesses that reading and writing a register or a field make. Pure: nothing is accessed.

A write of a field must not change the bits beside it. The map says what writes do to each of them.
From that follows what has to be written there. If every write would change such a bit, the field is
not written.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from barfs.errors import BadRequest
from barfs.registers.maps import Field, Register

# SystemRDL 2.0, 9.6: what a written 1 does (wo...), a written 0 does (wz...), any write does.
_DONE_BY_ONES: Final = frozenset(("woset", "woclr", "wot"))
_DONE_BY_ZEROS: Final = frozenset(("wzs", "wzc", "wzt"))
_BY_ANY_WRITE: Final = {
    "wclr": "is cleared by any write",
    "wset": "is set by any write",
    "wuser": "is changed by any write",
}


class Word(NamedTuple):
    """One access of a register: `step` bytes at `offset` in it. Its lowest bit is `lsb`."""

    offset: int
    step: int

    @property
    def lsb(self) -> int:
        """The lowest bit of the access, counted in the register."""
        return 8 * self.offset

    @property
    def mask(self) -> int:
        """Its bits in the register."""
        return ((1 << 8 * self.step) - 1) << self.lsb


def words(register: Register, mask: int | None = None) -> list[Word]:
    """The accesses that some bits of a register need, or all bits. They are ascending."""
    step = register.step
    found = [Word(offset, step) for offset in range(0, register.size, step)]
    return found if mask is None else [word for word in found if word.mask & mask]


def effects_of_reading(register: Register, mask: int | None = None) -> dict[str, str]:
    """What changes, and how, when some bits of a register are read, or all bits.

    Keys are the names of fields, or the name of the register.
    """
    if register.on_read is not None:
        return {register.path: register.on_read}
    touched = sum(word.mask for word in words(register, mask))
    return {
        f"{register.path}.{field.name}": field.on_read
        for field in register.fields
        if field.on_read is not None and field.mask & touched
    }


class Write(NamedTuple):
    """How a field is written: `word` is written. If there is anything to `keep`, it is read first.

    Masks are in the register's bits. `bits` are the bits of the field that are written, and `lsb`
    is the field's lowest bit. `ones` are written as 1. Bits that are in no mask are written as 0.
    """

    word: Word
    keep: int
    ones: int
    bits: int
    lsb: int

    def value(self, old: int, value: int) -> int:
        """The value to write into the word. `old` is what was read, `value` is that of the
        field.
        """
        kept = old << self.word.lsb & self.keep
        return (kept | self.ones | value << self.lsb & self.bits) >> self.word.lsb


def _obstacle(field: Field) -> str | None:
    """Why every write changes a field. None if some write leaves it alone."""
    if field.on_write in _BY_ANY_WRITE:
        return _BY_ANY_WRITE[field.on_write]
    if field.access in {"rw1", "w1"}:
        return "can be written only once"
    alone = field.self_clearing or field.on_write is not None
    return "can't be read" if field.access == "w" and not alone else None


def _beside(register: Register, word: Word, written: int) -> Iterator[tuple[Field, int]]:
    """The fields that have bits beside the written ones in a word, and these bits."""
    for field in register.fields:
        bits = field.mask & word.mask & ~written
        if bits:
            yield field, bits


def _unnamed(register: Register, word: Word) -> int:
    """The bits of a word that are in no field and have to be written as they were read.

    If a register can't be read, nobody can keep them, and they are written as 0.
    """
    if register.zero_reserved or not register.readable:
        return 0
    return word.mask & ~sum(field.mask for field in register.fields)


def plan(register: Register, field: Field, mask: int | None = None) -> Write:
    """How to write a field, or only its bits in `mask`, counted from its lowest bit.

    BadRequest if it can't be done without changing something else.
    """
    name = f"{register.path}.{field.name}"
    among = words(register, field.mask)
    if len(among) > 1:
        raise BadRequest(
            f"{name} is in {len(among)} accesses of {register.step} bytes; write the whole register"
        )
    (word,) = among
    written = field.mask & (field.mask if mask is None else mask << field.lsb)
    keep, ones, idle = _unnamed(register, word), 0, 0
    for other, bits in _beside(register, word, written):
        if not other.writable:
            idle |= bits
            continue
        obstacle = _obstacle(other)
        if obstacle is not None:
            raise BadRequest(
                f"{name} can't be written alone, as {register.path}.{other.name} beside it"
                f" {obstacle}; write the whole register"
            )
        if other.on_write in _DONE_BY_ZEROS:
            ones |= bits
        elif other.on_write not in _DONE_BY_ONES and not other.self_clearing:
            keep |= bits
    changed = effects_of_reading(register, word.mask)
    if keep and changed:
        raise BadRequest(
            f"{name} can't be written alone, as the bits beside it would have to be read, which"
            f" has an effect on {next(iter(changed))}; write the whole register"
        )
    # Bits that no write changes are written as they were read, if there is a read.
    return Write(word, keep | idle if keep else 0, ones, written, field.lsb)
