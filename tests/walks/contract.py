"""The contract of docs/reference.md, said again with none of barfs's code, to compare with."""

import dataclasses
import re

PAGE = 4096


class Bytes:
    """Zeros without end, except where something else was written."""

    def __init__(self, start=b""):
        self.pages = {}
        self.write(0, start)

    def _parts(self, offset, length):
        """Number and slice of each page that a stretch lies in."""
        end = offset + length
        while offset < end:
            page, first = divmod(offset, PAGE)
            last = min(PAGE, first + end - offset)
            yield page, slice(first, last)
            offset += last - first

    def read(self, offset, length):
        zeros = bytes(PAGE)
        return b"".join(
            self.pages.get(page, zeros)[part] for page, part in self._parts(offset, length)
        )

    def write(self, offset, data):
        done = 0
        for page, part in self._parts(offset, len(data)):
            extent = part.stop - part.start
            self.pages.setdefault(page, bytearray(PAGE))[part] = data[done : done + extent]
            done += extent


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Bytes behind a file that are all of one kind."""

    backing: object  # whose bytes: a BAR's or the memory's
    at: int  # where in them
    bus: int
    size: int
    memory_like: bool
    widest: int

    def part(self, offset, length):
        return dataclasses.replace(self, at=self.at + offset, bus=self.bus + offset, size=length)


def parts(stretches, offset, length):
    """What of each stretch a request lies in. One that is cut at the end is not one access."""
    cut = offset + length > sum(stretch.size for stretch in stretches)
    found = []
    for stretch in stretches:
        first, last = max(offset, 0), min(offset + length, stretch.size)
        if first < last:
            found.append(stretch.part(first, last - first))
        offset -= stretch.size
    if cut or len(found) > 1:  # then none of them is one access by itself
        found = [dataclasses.replace(part, widest=min(part.widest, 4)) for part in found]
    return found


def raw_accesses(part):
    """Offset and width of each access of a request; for memory one copy of it all."""
    at, bus, length = part.at, part.bus, part.size
    if part.memory_like:
        return [("copy", at, length)]
    if length in {1, 2, 4, 8} and length <= part.widest and bus % length == 0:
        return [("one", at, length)]
    made = []
    while length:
        width = next(width for width in (4, 2, 1) if width <= length and bus % width == 0)
        made.append(("one", at, width))
        at, bus, length = at + width, bus + width, length - width
    return made


def fixed_accesses(part, width):
    """Accesses of one width."""
    return [("one", at, width) for at in range(part.at, part.at + part.size, width)]


def merged(accesses):
    """Copies that continue each other are one: into how many they are cut is not the contract."""
    result = []
    for verb, kind, backing, at, length in accesses:
        if kind == "copy" and result:
            before = result[-1]
            if before[:3] == (verb, kind, backing) and before[3] + before[4] == at:
                result[-1] = (*before[:4], before[4] + length)
                continue
        result.append((verb, kind, backing, at, length))
    return result


LONGEST_TEXT = 4096  # in bytes


def number(text):
    """What a number in a text view means; None if it is none."""
    for prefix, base, digits in ((b"0x", 16, b"0-9a-fA-F"), (b"0b", 2, b"01")):
        if text[:2].lower() == prefix:
            return int(text[2:], base) if re.fullmatch(b"[" + digits + b"]+", text[2:]) else None
    if not re.fullmatch(b"[0-9]{1,20}", text) or (text[:1] == b"0" and text != b"0"):
        return None
    return int(text)


def update(text, width, *, ends=True):
    """Value and mask that a line in a text view means, the mask None if all; None if not valid."""
    words = text.removesuffix(b"\n").strip(b" \t").split(b":")
    numbers = [number(word) for word in words]
    if (
        (ends and len(text) > LONGEST_TEXT)
        or len(numbers) > 2
        or None in numbers
        or max(numbers) >= 1 << 8 * width
    ):
        return None
    if len(words) == 2 and words[1][:2].lower() not in {b"0x", b"0b"}:
        return None
    if ends and len(numbers) == 2 and numbers[0] & ~numbers[1]:
        return None
    return numbers[0], numbers[1] if len(numbers) == 2 else None


def begins(text, width):
    """Whether a valid line can go on from a text."""
    return (
        b"\n" not in text
        and len(text) <= LONGEST_TEXT
        and any(update(text + more, width, ends=False) for more in (b"", b"0", b"x0", b"0x0"))
    )


def line(value, width):
    """A register as text."""
    return f"0x{value:0{2 * width}x}\n".encode()
