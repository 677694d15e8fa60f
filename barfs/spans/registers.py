"""Open registers and fields: lines of text, made by the accesses that a map tells."""

import sys
from collections.abc import Callable, Iterable

from barfs.access import contract
from barfs.access.apertures import Aperture
from barfs.access.files import Buffer, WriteFile
from barfs.errors import Access, BadRequest, KernelRefused, NoSuchNode, NotAllowed
from barfs.nodes import Allocate, Lines
from barfs.registers import texts
from barfs.registers.maps import Field, Register
from barfs.registers.plans import Word, plan, words


class Cells:
    """A register's accesses, through an aperture that has it at `start`, in bytes.

    BadRequest if the aperture does not allow their width.
    """

    def __init__(self, aperture: Aperture, register: Register, start: int = 0) -> None:
        contract.check_base(aperture.base + start, register.step, aperture.max_width)
        self.register = register
        self._aperture = aperture
        self._start = start

    def load(self, some: Iterable[Word]) -> int:
        """The register's bits in some of its words, one access each, the lowest first."""
        value = 0
        for word in some:
            data = bytearray(word.step)
            self._aperture.load_run(self._start + word.offset, word.step, data)
            value |= int.from_bytes(data, sys.byteorder) << word.lsb
        return value

    def store(self, some: Iterable[Word], value: int) -> None:
        """Write the register's bits into some of its words, one access each, the lowest first."""
        for word in some:
            data = (value >> word.lsb & (1 << 8 * word.step) - 1).to_bytes(word.step, sys.byteorder)
            self._aperture.store_run(self._start + word.offset, word.step, data)


def locate(register: Register, read: Callable[[Register], int], end: int | None) -> int:
    """The offset of a register in its space, in bytes. The space ends at `end`.

    `read` reads the registers that tell it. NoSuchNode if the device has fewer registers,
    BadRequest if they tell a place outside.
    """
    base, limits = register.where.base, register.where.limits
    for owner, field, index in limits:
        count = (read(owner) & field.mask) >> field.lsb
        if index >= count:
            raise NoSuchNode(f"{register.path}: {owner.path}.{field.name} is {count}")
    if base is None:
        return register.offset
    offset = register.offset + read(base)
    if offset % register.step or (end is not None and offset + register.size > end):
        raise BadRequest(f"{register.path} would be at {offset:#x}, as {base.path} has it")
    return offset


class _Named:
    """What registers and fields share: a read gives a line, a write is a command.

    `raw` is the value that the last write wrote into the register. None if it took several
    accesses.
    """

    text_size: int | None = None

    def __init__(self, aperture: Aperture, register: Register) -> None:
        self.way = aperture.way
        self._aperture = aperture
        self._cells = Cells(aperture, register)
        self._register = register
        self._line = b""
        self.raw: int | None = None

    def _sample(self) -> bytes:
        raise NotImplementedError

    def _samples(self, offset: int, length: int) -> bool:
        """Whether a read makes an access."""
        return length > 0 and (offset == 0 or not self._line)

    def read(self, offset: int, length: int, _: Allocate = bytearray, /) -> Buffer:
        """Read at offset 0, and give the rest of that line at other offsets."""
        if self._samples(offset, length):
            self._line = self._sample()
        return self._line[offset : offset + length]

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        """The addresses of the register, whatever the length of the text."""
        accesses = writing or self._samples(offset, length)
        size = self._register.size if accesses else 0
        return range(self._aperture.base, self._aperture.base + size)

    def width_at(self, offset: int, length: int) -> int:
        del offset, length
        return self._register.step

    def close(self) -> None:
        self._aperture.close()

    def _check_readable(self, *, readable: bool, name: str) -> None:
        if not readable:
            raise NotAllowed(f"{name} is write-only")


class RegisterView(_Named):
    """A register. It reads as in `x32/`. A value or value:mask can be written."""

    @property
    def lines(self) -> Lines:
        """See View."""
        return contract.Numbers(self._register.size)

    def _sample(self) -> bytes:
        register = self._register
        self._check_readable(readable=register.readable, name=register.path)
        return contract.format_value(self._cells.load(words(register)), register.size)

    def write(self, offset: int, data: bytes) -> int:
        """Write one value or value:mask. BadRequest, before any access, for any other text."""
        del offset
        register = self._register
        update = contract.parse_update(data, register.size)
        some = words(register, update.mask or None)
        old = 0
        if update.mask is not None:
            self._check_readable(readable=register.readable, name=register.path)
            old = self._cells.load(some)
        value = update.apply(old)
        self._cells.store(some, value)
        self.raw = value if len(some) == 1 else None
        return len(data)


class FieldView(_Named):
    """A field. It reads as a value and its name. Either can be written.

    A write that would change something beside the field is BadRequest, before any access.
    """

    def __init__(self, aperture: Aperture, register: Register, field: Field) -> None:
        super().__init__(aperture, register)
        self._field = field

    @property
    def _name(self) -> str:
        return f"{self._register.path}.{self._field.name}"

    @property
    def lines(self) -> Lines:
        """See View."""
        return texts.FieldLines(self._field)

    def _sample(self) -> bytes:
        field = self._field
        self._check_readable(readable=field.readable, name=self._name)
        value = self._cells.load(words(self._register, field.mask))
        return texts.line_of(field, (value & field.mask) >> field.lsb)

    def write(self, offset: int, data: bytes) -> int:
        del offset
        field = self._field
        update = texts.parse_field(data, field)
        made = plan(self._register, field, update.mask)
        old = self._cells.load([made.word]) >> made.word.lsb if made.keep else 0
        self.raw = made.value(old, update.value)
        self._cells.store([made.word], self.raw << made.word.lsb)
        return len(data)


class SampledText:
    """Text that accesses make. All of it is made when it is read from its beginning.

    `text_size` is how long it will be, in bytes.
    """

    raw: int | None = None
    lines: Lines | None = None

    def __init__(
        self,
        aperture: Aperture,
        sample: Callable[[Aperture], str],
        span: range,
        width: int | None,
        text_size: int,
    ) -> None:
        self.text_size: int | None = text_size
        self.way = aperture.way
        self._aperture = aperture
        self._sample = sample
        self._span = span
        self._width = width
        self._text = b""

    def _samples(self, offset: int, length: int) -> bool:
        return length > 0 and (offset == 0 or not self._text)

    def read(self, offset: int, length: int, _: Allocate = bytearray, /) -> Buffer:
        if self._samples(offset, length):
            self._text = self._sample(self._aperture).encode()
        return self._text[offset : offset + length]

    def write(self, offset: int, data: bytes) -> int:
        """No kind of such text is writable."""
        raise NotImplementedError(offset, data)

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        del writing
        return self._span if self._samples(offset, length) else range(0)

    def width_at(self, offset: int, length: int) -> int | None:
        del offset, length
        return self._width

    def close(self) -> None:
        self._aperture.close()


class ConfigAperture:
    """A part of config space. Each access is one request to the kernel. Offsets count in the
    part.
    """

    memory_like = False
    max_width = 4
    way = ""

    def __init__(self, file: WriteFile, start: int, size: int) -> None:
        self.base = start
        self.size = size
        self._file = file

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """Load through sysfs. KernelRefused if the kernel ends config space before its end."""
        with memoryview(into) as room:
            for at in range(0, len(room), width):
                data = self._file.read(self.base + offset + at, width)
                if len(data) < width:
                    during = Access("read", self.base + offset + at, width)
                    raise KernelRefused("is not shown without CAP_SYS_ADMIN", during=during)
                room[at : at + width] = data

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        for at in range(0, len(data), width):
            self._file.write(self.base + offset + at, bytes(data[at : at + width]))

    def copy_out(self, offset: int, into: Buffer) -> None:
        raise NotImplementedError(offset, into)

    def copy_in(self, offset: int, data: Buffer) -> None:
        raise NotImplementedError(offset, data)

    def close(self) -> None:
        self._file.close()
