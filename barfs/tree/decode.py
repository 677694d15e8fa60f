"""`decode/`: all fields of a register as text, from one read. `all` has all registers."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from barfs.access.apertures import Aperture
from barfs.access.files import Buffer
from barfs.errors import BarfsError, DeviceGone, NoSuchNode, NotAllowed
from barfs.names import ViewKind
from barfs.nodes import (
    DIRECTORY,
    Allocate,
    Attributes,
    Branch,
    Found,
    Kind,
    Lasting,
    Lines,
    Node,
    Share,
    Type,
    View,
)
from barfs.registers import texts
from barfs.registers.devices import CONFIG
from barfs.registers.maps import Entry, Register, Space, registers
from barfs.registers.plans import effects_of_reading, words
from barfs.spans.opening import Spans
from barfs.spans.registers import Cells, ConfigAperture, SampledText, locate
from barfs.tree.functions import FUNCTION, check_present
from barfs.tree.registers import Maps
from barfs.tree.single import Single

DECODE: Final = Kind("decode", Type.DIRECTORY, share=Share.READ, lasting=Lasting.WITH_MAP)
DECODED: Final = Kind("decoded", share=Share.READ, lasting=Lasting.WITH_MAP)
ALL: Final = Kind("all", share=Share.READ, lasting=Lasting.WITH_MAP)

# More bytes than any text has.
_LONGEST: Final = 1 << 40


class _Sample:
    """One read of each of some registers. The aperture begins where their place begins."""

    def __init__(self, wanted: list[Register]) -> None:
        self._wanted = wanted

    def __call__(self, aperture: Aperture) -> str:
        """Their texts. If one of them can't be read, the text says so."""
        values: dict[str, int] = {}

        def read(register: Register) -> int:
            """Read a register that tells where others are. None of them is read twice."""
            if register.path not in values:
                cells = Cells(aperture, register, register.offset)
                values[register.path] = cells.load(words(register))
            return values[register.path]

        parts = []
        for register in self._wanted:
            try:
                start = locate(register, read, aperture.size)
                if start == register.offset:
                    value = read(register)
                else:
                    value = Cells(aperture, register, start).load(words(register))
                parts.append(texts.decoded(register, value))
            except DeviceGone:
                raise
            except BarfsError as error:
                if len(self._wanted) == 1:
                    raise
                if not isinstance(error, NoSuchNode):
                    parts.append(f"{register.path} is not read: {error}\n")
        return "".join(parts)


def _open(maps: Maps, spans: Spans, node: Node, wanted: list[Register], what: str) -> View:
    """The text of registers that are all in one place. They are read when it is read."""
    place = wanted[0].place
    widths = {register.step for register in wanted}
    width = widths.pop() if len(widths) == 1 else None

    def make(aperture: Aperture) -> View:
        span = range(aperture.base, aperture.base + aperture.size)
        if len(wanted) == 1 and wanted[0].where.base is None:
            first = aperture.base + wanted[0].offset
            span = range(first, first + wanted[0].size)
        return SampledText(aperture, _Sample(wanted), span, width, sum(map(_size, wanted)))

    if place.space is Space.CONFIG:
        file = maps.pci.open_config(node.function, writable=False)
        return make(ConfigAperture(file, 0, file.size))
    return spans.bar(
        node.function, place.bar or 0, ViewKind.U8, writable=False, what=what, make=make
    )


def _size(register: Register) -> int:
    """How long the text of a register is, in bytes. Its value changes nothing about that."""
    return len(texts.decoded(register, 0).encode())


def _is_listed(register: Register) -> bool:
    return register.readable and not effects_of_reading(register)


class Decode(Branch):
    """`decode/` of a function: a text for each register that can be read.

    A register whose reading has an effect opens by its name, and is not listed.
    """

    kinds = (DECODE, DECODED)
    under = (FUNCTION, DECODE)

    def __init__(self, maps: Maps, spans: Spans) -> None:
        self._maps = maps
        self._pci = maps.pci
        self._spans = spans

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        address = directory.function
        if directory.kind is FUNCTION:
            if not directory.view and self._pci.exists(address):
                yield "decode", Node(DECODE, address)
            return
        if not directory.name:
            yield CONFIG, Node(DECODE, address, name=CONFIG)
        entry = self._maps.in_function(address, directory.name)
        if entry is None or isinstance(entry, Register):
            return
        for name, child in entry.children():
            if isinstance(child, Register) and not _is_listed(child):
                continue
            yield name, self._node(directory, child)

    def find(self, directory: Node, name: str) -> Found | None:
        address = directory.function
        if directory.kind is FUNCTION:
            known = name == "decode" and not directory.view and self._pci.exists(address)
            return Found(Node(DECODE, address), DIRECTORY) if known else None
        path = f"{directory.name}/{name}" if directory.name else name
        entry = self._maps.in_function(address, path)
        return None if entry is None else Found(self._node(directory, entry))

    @staticmethod
    def _node(directory: Node, entry: Entry) -> Node:
        kind, bar = DECODE, 0
        if isinstance(entry, Register):
            kind, bar = DECODED, entry.place.bar or 0
        return Node(kind, directory.address, bar, name=entry.path)

    def path(self, node: Node) -> str:
        return f"pci/{node.address}/decode/{node.name}".rstrip("/")

    def attributes(self, node: Node) -> Attributes:
        check_present(self._pci, node, self.path(node))
        return DIRECTORY if node.kind is DECODE else Attributes(0)

    def open(self, node: Node, *, writable: bool) -> View:
        """Open the text. The register is read when the text is read."""
        del writable
        register = self._maps.in_function(node.function, node.name)
        if not isinstance(register, Register):
            raise NoSuchNode("there is no such register any more", what=self.path(node))
        if not register.readable:
            raise NotAllowed("the register is write-only", what=self.path(node))
        return _open(self._maps, self._spans, node, [register], self.path(node))


class All(Single):
    """`decode/all`: every register that can be read without an effect, each read once."""

    kind = ALL
    kinds = (ALL,)
    under = (DECODE,)

    def __init__(self, maps: Maps, spans: Spans) -> None:
        self._maps = maps
        self._spans = spans

    def node_in(self, directory: Node) -> Node | None:
        return None if directory.name else Node(ALL, directory.address)

    def path(self, node: Node) -> str:
        return f"pci/{node.address}/decode/all"

    def attributes(self, node: Node) -> Attributes:
        check_present(self._maps.pci, node, self.path(node))
        return Attributes(0)

    def open(self, node: Node, *, writable: bool) -> View:
        """Open the text. The registers are read when the text is read."""
        del writable
        found = [r for top in self._maps.all_in(node.function) for r in registers(top)]
        left_out = []
        places: dict[tuple[Space, int | None], list[Register]] = {}
        for register in found:
            effects = effects_of_reading(register)
            if effects:
                left_out.append(f"{register.path} is not read: {texts.reason_of(effects)}\n")
            elif register.readable:
                places.setdefault(register.place[:2], []).append(register)
            else:
                left_out.append(f"{register.path} is not read: it is write-only\n")
        with ExitStack() as stack:
            views = []
            for wanted in places.values():
                view = _open(self._maps, self._spans, node, wanted, self.path(node))
                stack.callback(view.close)
                views.append(view)
            return _Joined(views, "".join(left_out), stack.pop_all())


class _Joined:
    """The texts of several views one after the other, and a last one."""

    raw: int | None = None
    lines: Lines | None = None

    def __init__(self, views: list[View], last: str, held: ExitStack) -> None:
        self.way = ", ".join(dict.fromkeys(view.way for view in views if view.way))
        self._views = views
        self._last = last.encode()
        self._held = held
        self._text = b""
        self.text_size: int | None = sum(view.text_size or 0 for view in views) + len(self._last)

    def _samples(self, offset: int, length: int) -> bool:
        return length > 0 and (offset == 0 or not self._text)

    def read(self, offset: int, length: int, _: Allocate = bytearray, /) -> Buffer:
        if self._samples(offset, length):
            texts = [bytes(view.read(0, _LONGEST)) for view in self._views]
            self._text = b"".join([*texts, self._last])
        return self._text[offset : offset + length]

    def write(self, offset: int, data: bytes) -> int:
        """No kind of such text is writable."""
        raise NotImplementedError(offset, data)

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        """The addresses that the first view reads."""
        if not self._samples(offset, length) or not self._views:
            return range(0)
        return self._views[0].reach(0, _LONGEST, writing=writing)

    @staticmethod
    def width_at(offset: int, length: int) -> None:
        """None: the widths usually differ."""
        del offset, length

    def close(self) -> None:
        self._held.close()
