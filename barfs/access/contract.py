"""The access contract as pure functions: a request becomes checked accesses.

Nothing here touches hardware, and nothing may be added to an address after it has passed here.
"""

import re
from typing import Final, NamedTuple

from barfs.errors import Access, BadRequest, PastEnd
from barfs.names import quoted

# The widest access, in bytes, of a request that is not itself one access. Registers have 32 bits
# far more often than 64. A device that wants 64 bits at once gets them from a request of just 8
# bytes.
RUN_WIDTH = 4

# The kernel cuts requests at 1 MiB, or up to a page before that where the caller's buffer begins
# inside a page (fs/fuse/file.c, fuse_get_user_pages). What goes on where such a one ended is most
# likely its rest.
_CUT_FROM = (1 << 20) - (1 << 12)


def overlap(one: range, other: range) -> bool:
    """Whether two spans of addresses have a byte in common. An empty span has none."""
    return max(one.start, other.start) < min(one.stop, other.stop)


class Run(NamedTuple):
    """`length` bytes from `offset` in ascending accesses of `width` bytes."""

    offset: int
    width: int
    length: int


def clip_read(offset: int, length: int, size: int) -> int:
    """How much of a read lies before the end; 0 at and past it."""
    rest = size - offset
    return length if length <= rest else max(0, rest)


def clip_write(offset: int, length: int, size: int) -> int:
    """How much of a write lies before the end. PastEnd if nothing of a non-empty write does."""
    if length and offset >= size:
        raise PastEnd(f", but the file ends at {size:#x}", during=Access("write", offset, length))
    return clip_read(offset, length, size)


class Wholeness:
    """Tells of the requests of one open file which are all that somebody asked for.

    A request that was cut is not: at the end of the file, or by the kernel for its length.
    """

    def __init__(self) -> None:
        self._rest = -1  # where the rest of a request that the kernel may have cut would begin

    def is_whole(self, offset: int, asked: int, length: int) -> bool:
        """Whether nothing is missing of a request for `asked` bytes, of which `length` exist."""
        whole = asked == length and offset != self._rest
        if asked > _CUT_FROM:
            self._rest = offset + asked
        return whole


def is_single(offset: int, length: int, base: int, max_width: int) -> bool:
    """Whether `plan` makes one access of a request."""
    return length in (1, 2, 4, 8) and length <= max_width and (base + offset) % length == 0


def plan(offset: int, length: int, base: int, max_width: int) -> tuple[Run, ...]:
    """The accesses of a request on a file whose byte 0 is at bus address `base`.

    1, 2, 4 or 8 naturally aligned bytes (and at most `max_width`) are one access. Any other request
    is split into naturally aligned accesses of at most 4 bytes, lowest address first. They touch
    each byte of the request once, and no other byte. Alignment is counted on the bus: it is that of
    `base + offset`.
    """
    if is_single(offset, length, base, max_width):
        return (Run(offset, length, length),)
    runs = []
    end = offset + length
    while offset < end:
        width = RUN_WIDTH
        while (base + offset) % width or width > end - offset:
            width //= 2
        extent = end - offset - (end - offset) % width if width == RUN_WIDTH else width
        runs.append(Run(offset, width, extent))
        offset += extent
    return tuple(runs)


def check_base(base: int, width: int, max_width: int) -> None:
    """BadRequest if a span at bus address `base` can't be accessed in `width` bytes at a time."""
    if width > max_width:
        raise BadRequest(f"no access of {width} bytes is possible here, {max_width} at the most")
    if base % width:
        raise BadRequest(f"{base:#x} is no multiple of {width} bytes")


def check_fixed(offset: int, length: int, width: int) -> None:
    """BadRequest if a request is not a whole number of accesses of `width` bytes."""
    if offset % width or length % width:
        raise BadRequest(
            f"{length:#x} bytes at {offset:#x} are not made of whole accesses of {width} bytes"
        )


class Update(NamedTuple):
    """What a line of text asks for: a value, and which bits to change. A mask of None is all."""

    value: int
    mask: int | None

    def apply(self, old: int) -> int:
        """The new value of a register that holds `old`."""
        return self.value if self.mask is None else old & ~self.mask | self.value & self.mask


# How much a message shows of a text that is no value, in bytes. The text may have any length.
_SHOWN = 80

# The longest text that is looked at, in bytes. The kernel cuts a longer one into several requests,
# of which each would be a command of its own.
TEXT_LIMIT: Final = 4096

# A decimal number has up to 20 digits. They hold 64 bits, and int() converts so many.
_NUMBER = r"0[xX][0-9a-fA-F]+|0[bB][01]+|0|[1-9][0-9]{0,19}"


# What such a number can begin with.
_BEGUN = r"0[xX][0-9a-fA-F]*|0[bB][01]*|0|[1-9][0-9]{0,19}"

_LINE = re.compile(rf"[ \t]*({_NUMBER})(?::({_NUMBER}))?[ \t]*\n?")
_BEGINNING = re.compile(
    rf"[ \t]*(?:({_NUMBER})(?::({_NUMBER}))?[ \t]+|({_NUMBER}):({_BEGUN})?|({_BEGUN}))?"
)


def _numbers(form: re.Pattern[str], text: bytes, width: int) -> list[int]:
    """The numbers in a text of a form; BadRequest."""
    if len(text) > TEXT_LIMIT:
        raise BadRequest(f"{len(text)} bytes are no number: a text has {TEXT_LIMIT} at the most")
    match = form.fullmatch(text.decode("latin-1"))
    shown = shown_text(text)
    if match is None:
        raise BadRequest(f"{shown} is no number (42, 0x2a, 0b101010), nor value:mask")
    begun = match[4] if form is _BEGINNING and match[4] != "0" else None
    if any(mask.isdecimal() for mask in (match[2], begun) if mask is not None):
        raise BadRequest(f"{shown}: a mask takes 0x or 0b in front, since setpci's is hex")
    words = filter(None, match.groups())
    numbers = [int(word, 0) for word in words if re.fullmatch(_NUMBER, word)]
    if max(numbers, default=0) >> 8 * width:
        raise BadRequest(f"{shown} is too big for {8 * width} bits")
    if form is _LINE and len(numbers) == 2 and numbers[0] & ~numbers[1]:
        outside = numbers[0] & ~numbers[1]
        raise BadRequest(f"{shown}: the mask leaves out bits of the value ({outside:#x})")
    return numbers


def shown_text(text: bytes) -> str:
    """A text that was written, for a message: without its newline, quoted as for a shell."""
    line = text.removesuffix(b"\n")
    shown = quoted(line[:_SHOWN].decode("ascii", "surrogateescape"))
    return f"{shown}..." if len(line) > _SHOWN else shown


class Numbers(NamedTuple):
    """The lines that are written to a register of `width` bytes."""

    width: int

    def check(self, text: bytes, *, ends: bool) -> None:
        """BadRequest if a text is no line for `parse_update`, or no beginning of one."""
        _numbers(_LINE if ends else _BEGINNING, text, self.width)


def parse_update(text: bytes, width: int) -> Update:
    """What one line of text says: `value` or `value:mask`, each decimal, 0x or 0b.

    With a mask only its bits change, as in setpci. Bits of the value outside of it are refused,
    since they would not be written. A decimal with a 0 in front is refused, since it could be meant
    as octal. So is a decimal mask, since setpci takes it for hex. BadRequest tells what is wrong
    with a text. A text longer than TEXT_LIMIT is refused whatever it is.
    """
    numbers = _numbers(_LINE, text, width)
    return Update(numbers[0], numbers[1] if len(numbers) == 2 else None)


def format_value(value: int, width: int) -> bytes:
    """A register as a line of text: `0x0000002a` for 4 bytes."""
    return b"0x%0*x\n" % (2 * width, value)


def text_size(width: int) -> int:
    """The length of a line of `format_value`, in bytes."""
    return len(format_value(0, width))
