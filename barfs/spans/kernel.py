"""The kernel's own memory by name: the place of a symbol, a field of it, or a window into it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from barfs.access.core import CoreAperture
from barfs.access.files import OFFSET_END
from barfs.devmem import IomemRange, PhysicalMemory
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
from barfs.machine.resources import check_window, size_in_window
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
    """`size` bytes at a virtual address, and at a physical one; None if nothing tells that.

    `elements` is the number of elements of an array that is no text. It is 0 for everything else.
    """

    virtual: int
    physical: int | None
    size: int
    elements: int = 0


# The physical address of `size` bytes at a virtual address, by what was told at one moment. None if
# nothing tells it.
_Locate: TypeAlias = Callable[[int, int], int | None]


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
        locate = self._locator(segments)
        room = room_after(segments, symbol.address)
        if not room and (segments or locate(symbol.address, 1) is None):
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
            size = size_in_window(str(name), name.window, view, size)
            start, elements = start + name.window.start, 0
        if not size:
            raise NoSuchAddress("nothing says how large it is", what=symbol.name)
        return Extent(start, locate(start, size), size, elements)

    def _segments(self) -> Sequence[Segment]:
        """The segments of the core file. There are none without it."""
        if self._core is None:
            return ()
        try:
            return self._core.segments()
        except (OSError, BadCore):
            return ()

    def located(self, pattern: str) -> Iterator[tuple[Symbol, int | None]]:
        """The symbols that match a shell pattern, and their physical addresses. Raises
        NoSuchNode.
        """
        locate = self._locator(self._segments())
        for symbol in self._symbols.matching(pattern):
            yield symbol, locate(symbol.address, 1)

    def _locator(self, segments: Sequence[Segment]) -> _Locate:
        """What tells physical addresses: the core file, or without it the distance from `_text`."""
        return partial(_by_core, segments) if segments else self._by_text()

    def _by_text(self) -> _Locate:
        """It tells physical addresses by the distance from `_text`.

        That holds where "Kernel code" begins at `_text`. Raises NoSuchNode.
        """
        source = self._memory.source
        own: list[IomemRange] = []
        if kernel.architecture(source) in _BEGINS_AT_TEXT:
            ranges = self._memory.within(0, OFFSET_END)
            own = [entry for entry in ranges if entry.name.startswith(_KERNEL)]
        code = next((entry for entry in own if entry.name == _CODE), None)
        if code is None:
            return lambda _virtual, _size: None
        offset = code.start - self._symbols.find("_text").address

        def locate(virtual: int, size: int) -> int | None:
            start = virtual + offset
            last = start + size - 1
            inside = any(entry.start <= start and last <= entry.end for entry in own)
            return start if inside else None

        return locate

    def why_read_only(self, name: SymbolName, what: str) -> ReadOnly | None:
        """Why an extent may not be written. None if it may."""
        return ReadOnly(_ONLY_READ, what=what) if self.extent(name).physical is None else None

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


def _by_core(segments: Sequence[Segment], virtual: int, size: int) -> int | None:
    """The physical address of a whole extent, by the core file."""
    last = size - 1
    start, end = (to_physical(segments, virtual + at) for at in (0, last))
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
    if extent.physical is None:
        return memory.open_elsewhere(extent, view, writable=writable, what=what)
    return spans.physical(extent.physical, extent.size, view, writable=writable, what=what)
