"""The kernel's own memory by name: the place of a symbol, a field of it, or a window into it."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from barfs.access.core import CoreAperture
from barfs.access.files import OFFSET_END
from barfs.devmem import PhysicalMemory
from barfs.errors import BadRequest, NoSuchAddress, NoSuchNode, ReadOnly
from barfs.machine import kernel
from barfs.machine.btf import read_types
from barfs.machine.kcore import (
    BadCore,
    CoreFile,
    Segment,
    room_after,
    to_physical,
    virtual_pieces,
)
from barfs.machine.resources import check_window
from barfs.machine.symbols import Symbol, Symbols
from barfs.names import SymbolName, ViewKind
from barfs.nodes import View
from barfs.spans.opening import Spans, view_of
from barfs.spans.ways import KernelCore

# The names of the kernel's own ranges in /proc/iomem (arch/x86/kernel/setup.c).
_KERNEL: Final = "Kernel "
_CODE: Final = "Kernel code"

# The machine in /proc/sys/kernel/arch on which "Kernel code" begins at `_text`.
_BEGINS_AT_TEXT: Final = frozenset(("x86_64",))


# A symbol in a module, or one that vmalloc placed, has no physical address.
_ONLY_READ: Final = " is outside of the kernel's image, where memory is only read"


class Extent(NamedTuple):
    """`size` bytes at a virtual address.

    `elements` is the number of elements of an array that is no text. It is 0 for everything else.
    """

    virtual: int
    size: int
    elements: int = 0


class KernelMemory:
    """The memory of the running kernel, by the names of its symbols.

    `core` is /proc/kcore, if it may be used. Only opening touches memory.
    """

    def __init__(self, memory: PhysicalMemory, symbols: Symbols, core: CoreFile | None) -> None:
        self._memory = memory
        self._symbols = symbols
        self._core = core

    def extent(self, name: SymbolName, view: ViewKind = ViewKind.RAW) -> Extent:
        """The extent of a name: a symbol up to the next one, a field, or a window into either.

        In a text view a window without an end is one register. Raises NoSuchNode. Raises
        NoSuchAddress for a symbol without memory, and for a window or a field that is not inside.
        """
        symbol = self._symbols.find(name.symbol)
        segments = self._segments()
        room = room_after(segments, symbol.address)
        if not room and (segments or self._by_text(Extent(symbol.address, 1)) is None):
            raise self._no_memory(symbol.address, symbol.name)
        start, size, elements = symbol.address, symbol.size or room, 0
        if room:
            size = min(size, room)
        if name.field is not None:
            field = read_types(self._memory.source.sysfs).field(name.field)
            what = f"{symbol.name}:{name.field}"
            if field.size == 0:
                raise NoSuchNode("this field has no size of its own", what=what)
            check_window(what, field.offset, field.size, size)
            start, size = start + field.offset, field.size
            elements = field.elements if field.element_size != 1 else 0
        if name.window is not None:
            begin, end = name.window
            if end is None:
                limit = begin + view.width if view.is_text else size
                end = max(begin, min(limit, size) - 1)
            check_window(str(name), begin, end + 1 - begin, size)
            return Extent(start + begin, end + 1 - begin)
        if not size:
            raise NoSuchAddress("nothing says how large it is", what=symbol.name)
        return Extent(start, size, elements)

    def _segments(self) -> Sequence[Segment]:
        """The segments of the core file. There are none without it."""
        if self._core is None:
            return ()
        try:
            return self._core.segments()
        except (OSError, BadCore):
            return ()

    def physical(self, extent: Extent) -> int | None:
        """The physical address of a whole extent. None if nothing tells it."""
        segments = self._segments()
        return _physical(segments, extent) if segments else self._by_text(extent)

    def located(self, pattern: str) -> Iterator[tuple[Symbol, int | None]]:
        """The symbols that match a shell pattern, and their physical addresses. Raises
        NoSuchNode.
        """
        segments = self._segments()
        for symbol in self._symbols.matching(pattern):
            extent = Extent(symbol.address, 1)
            yield symbol, _physical(segments, extent) if segments else self._by_text(extent)

    def _by_text(self, extent: Extent) -> int | None:
        """The physical address by the distance from `_text`, if "Kernel code" begins there."""
        source = self._memory.source
        if kernel.architecture(source) not in _BEGINS_AT_TEXT:
            return None
        ranges = self._memory.within(0, OFFSET_END)
        own = [entry for entry in ranges if entry.name.startswith(_KERNEL)]
        code = next((entry for entry in own if entry.name == _CODE), None)
        if code is None:
            return None
        start = code.start + extent.virtual - self._symbols.find("_text").address
        inside = any(entry.start <= start and start + extent.size - 1 <= entry.end for entry in own)
        return start if inside else None

    def why_read_only(self, name: SymbolName, what: str) -> ReadOnly | None:
        """Why an extent may not be written. None if it may."""
        return ReadOnly(_ONLY_READ, what=what) if self.physical(self.extent(name)) is None else None

    def open_elsewhere(self, extent: Extent, view: ViewKind, *, writable: bool, what: str) -> View:
        """Open an extent without a physical address, through the core file.

        Raises NoSuchAddress and ReadOnly.
        """
        if writable:  # the second line of defence
            raise ReadOnly(_ONLY_READ, what=what)
        size = view.width if view.is_text else extent.size
        pieces = virtual_pieces(self._segments(), extent.virtual, size)
        if pieces is None or self._core is None:
            raise self._no_memory(extent.virtual, what)
        aperture = CoreAperture(self._core.fd, pieces, what=what, base=extent.virtual)
        aperture.way = KernelCore.name
        return view_of([aperture], view, what)

    def _no_memory(self, virtual: int, what: str) -> NoSuchAddress:
        """Why a virtual address leads nowhere."""
        if self._core is None:
            reason = "/proc/kcore, which says where it is, is not used (--no-kcore)"
        elif self._core.refusal is not None:
            reason = f"{self._core.path}, which says where it is: {self._core.refusal.strerror}"
        else:
            reason = "it is a per-CPU or absolute symbol, or its memory is gone"
        return NoSuchAddress(
            f"virtual address {virtual:#x} is in no memory of the kernel's: {reason}",
            what=what,
        )


def _physical(segments: Sequence[Segment], extent: Extent) -> int | None:
    """The physical address of a whole extent, by the core file."""
    last = extent.size - 1
    start, end = (to_physical(segments, extent.virtual + at) for at in (0, last))
    return start if start is not None and end == start + last else None


def open_symbol(
    memory: KernelMemory,
    spans: Spans,
    name: SymbolName,
    view: ViewKind,
    *,
    writable: bool,
    what: str,
) -> View:
    """Open an extent. `what` is its path, for messages.

    It is opened by its physical address, as in `phys/`, and raises the same errors. An extent
    without one is read through the core file: writing it is ReadOnly. NoSuchAddress if the file
    lacks it.
    """
    extent = memory.extent(name, view)
    if view.is_text and extent.size < view.width:
        raise BadRequest(f"{extent.size} bytes hold no register of {view.width}", what=what)
    start = memory.physical(extent)
    if start is None:
        return memory.open_elsewhere(extent, view, writable=writable, what=what)
    return spans.physical(start, extent.size, view, writable=writable, what=what)
