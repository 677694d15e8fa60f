"""What is opened for a BAR or a physical range: its view, over its apertures, watched over."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Final, NamedTuple, Protocol, TypeAlias

from barfs.access import contract
from barfs.access.apertures import Aperture
from barfs.access.files import PAGE_SIZE
from barfs.devmem import PhysicalMemory
from barfs.errors import BadRequest
from barfs.machine.presence import Presence
from barfs.machine.resources import bar_of
from barfs.names import PciAddress, ViewKind
from barfs.nodes import View
from barfs.spans import bars
from barfs.spans.combining import Combining, Release
from barfs.spans.enabling import Decoder
from barfs.spans.guards import (
    EMPTY,
    EMPTY_TEXT,
    BarView,
    Guard,
    GuardedView,
    Held,
    HeldView,
    Newcomers,
)
from barfs.spans.interruptible import interruptible
from barfs.spans.roms import RomView
from barfs.spans.views import FixedView, JoinedView, RawView, TextView
from barfs.spans.ways import Ways

# A range with more functions in it than this is a part of the bus rather than of a device.
MOST_GUARDS: Final = 64


class _Owner(NamedTuple):
    """A function, and what of a file belongs to it: offsets, the end not included."""

    start: int
    end: int
    address: PciAddress


class _Open(Protocol):
    def __call__(self, span: range, *, writable: bool, combine: bool) -> Sequence[Aperture]:
        """The apertures of a span, ascending; with `combine` they are mapped write-combining."""


class _Place(NamedTuple):
    """Where a target is, now that it can't change unseen."""

    span: range  # its addresses on the bus
    check: Callable[[], None] | None  # raises NotDecoded if it does not answer; None: not known
    claim: range | None  # what is mapped in one caching type with it; None: never write-combining
    combines: Callable[[], bool] | None  # whether it can be mapped so; None: it is to be exact
    open: _Open


# Makes the view of what is opened in a width, in the place of that of the width.
Make: TypeAlias = Callable[[Aperture], View]


class _Target(NamedTuple):
    """What is to be opened, before anything is."""

    what: str  # its path
    view: ViewKind
    owners: Sequence[_Owner]
    decode: Callable[[], Release] | None  # has it decoded until it is released
    locate: Callable[[Sequence[Presence]], _Place]  # by the presences of its owners
    make: Make | None
    newcomers: Newcomers | None = None  # tells whether others come to lie there


def _accessed(view: ViewKind, size: int) -> int:
    """How much of a file of `size` bytes is accessed: of a text view the register alone."""
    return view.width if view.is_text else size


class Spans:
    """Opens BARs and physical ranges of one machine, of which `memory` says what lies where.

    `ways` lead to bytes. `decoder` turns decoding on, and `combining` knows what is mapped
    write-combining, if either is wanted. `check` is called between the pieces of a long request,
    and ends it by what it raises.
    """

    def __init__(
        self,
        ways: Ways,
        memory: PhysicalMemory,
        *,
        decoder: Decoder | None = None,
        combining: Combining | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._check = check
        self._ways = ways
        self._pci = ways.pci
        self._memory = memory
        self._decoder = decoder
        self._combining = combining

    def bar(
        self,
        address: PciAddress,
        index: int,
        view: ViewKind,
        *,
        start: int = 0,
        size: int = 0,
        writable: bool,
        what: str,
        make: Make | None = None,
    ) -> View:
        """Open a BAR, or `size` bytes of it from `start`; a size of 0 is all of it.

        `what` is its path, for messages. `make` makes another view than that of the kind.

        Reads the command register, not the BAR. BadRequest for a width that the place or the kind
        of BAR does not allow, CombinedElsewhere, and all that bars.open_bar raises.
        """

        def locate(presences: Sequence[Presence]) -> _Place:
            resources = presences[0].resources(address)
            resource = bar_of(address, resources, index)
            is_memory = view is ViewKind.MEM or (
                not view and self._pci.reading(address, resources, index).is_memory
            )

            def open_span(span: range, *, writable: bool, combine: bool) -> Sequence[Aperture]:
                aperture = bars.open_bar(
                    self._ways,
                    address,
                    index,
                    writable=writable,
                    offset=span.start - resource.start,
                    size=len(span),
                    resource=resource,
                    combine=combine,
                    memory_like=is_memory,
                )
                return [aperture]

            base = resource.start + start
            # The kernel offers it for no others, and these share no page with another BAR.
            combinable = resource.is_memory and resource.prefetchable and resource.size >= PAGE_SIZE
            combines = partial(bars.can_combine, self._pci, address, index)
            return _Place(
                range(base, base + (size or resource.size)),
                partial(bars.check_answers, self._ways, address, index, resource),
                resource.span if combinable else None,
                combines if combinable and is_memory else None,
                open_span,
            )

        decode = None if self._decoder is None else partial(self._decoder.hold, address, index)
        owners = [_Owner(0, sys.maxsize, address)]
        target = _Target(what, view, owners, decode, locate, make)
        return self._open(target, writable=writable)

    def rom(self, address: PciAddress) -> View:
        """Open a function's expansion ROM, to be read."""
        holder = self._ways.holder
        file = self._pci.open_rom(address) if holder is None else holder.open_rom(address)
        return RomView(file, self._pci, self._ways.obstacles, address)

    def note(self, address: PciAddress) -> str | None:
        """A line for `info` about how a function is held open, if it is."""
        return None if self._ways.holder is None else self._ways.holder.note(address)

    def physical(
        self,
        start: int,
        size: int,
        view: ViewKind,
        *,
        writable: bool,
        what: str,
        make: Make | None = None,
    ) -> View:
        """Open `size` bytes from physical address `start`.

        `what` is its path, for messages. `make` makes another view than that of the kind.

        BadRequest for a width that the place does not allow,
        ReadOnly where part of it is a BAR that may only be read, CombinedElsewhere, and all that
        Ways.open_physical raises.
        """
        accessed = range(start, start + _accessed(view, size))

        def locate(presences: Sequence[Presence]) -> _Place:
            del presences
            return _Place(range(start, start + size), None, accessed, None, open_span)

        def open_span(span: range, *, writable: bool, combine: bool) -> Sequence[Aperture]:
            del combine
            if writable:
                # Names know of no rule: this is the second line of defence.
                self._pci.check_span_writable(span.start, len(span))
            as_memory = view is ViewKind.MEM
            return self._ways.open_physical(
                span.start, len(span), writable=writable, as_memory=as_memory
            )

        owners = self._owners(accessed, view)
        target = _Target(what, view, owners, None, locate, make, self._newcomers(accessed, what))
        return self._open(target, writable=writable)

    def _newcomers(self, span: range, what: str) -> Newcomers | None:
        """A watch for functions that come to lie in a range. None for RAM, where none does."""
        if self._pci.source.recording or self._memory.is_ram(span.start, len(span)):
            return None
        functions = partial(self._functions_in, span)
        return Newcomers(functions, self._pci.source.stamp, what)

    def _functions_in(self, span: range) -> frozenset[PciAddress]:
        """The functions that /proc/iomem names in a range of physical addresses."""
        entries = self._memory.within(span.start, len(span))
        return frozenset(filter(None, (PciAddress.parse(entry.name) for entry in entries)))

    def _owners(self, span: range, view: ViewKind) -> Sequence[_Owner]:
        """The functions that /proc/iomem names in a range of physical addresses."""
        found = []
        for entry in self._memory.within(span.start, len(span)):
            address = PciAddress.parse(entry.name)
            if address is not None and self._pci.everything.exists(address):
                start, end = entry.start - span.start, entry.end + 1 - span.start
                found.append(_Owner(start, end, address))
        if view.is_text:
            # Offsets in text say nothing of where in the register an access is: it is all of it.
            return [owner._replace(start=0, end=sys.maxsize) for owner in found]
        return [] if len(found) > MOST_GUARDS else found

    def _open(self, target: _Target, *, writable: bool) -> View:
        held = Held()
        try:
            return self._opened(target, held, writable=writable)
        except BaseException:
            held.close()
            raise

    def _opened(self, target: _Target, held: Held, *, writable: bool) -> View:
        """The view of a target. What is held with it is added before it can be lost."""
        what, view = target.what, target.view
        # First the watch, then what is watched: a change between the two is seen.
        guards = []
        presences = []
        for start, end, address in target.owners:
            presence = self._pci.everything.presence(address)
            held.append(presence.close)
            presences.append(presence)
            guards.append(Guard(start, end, presence))
        if target.newcomers is not None:
            guards.append(Guard(0, sys.maxsize, target.newcomers))
        if target.decode is not None:
            held.append(target.decode())
        place = target.locate(presences)
        combine = self._combining is not None and self._claim(
            target, place, held, writable=writable
        )
        size = len(place.span)
        if view.is_text and size < view.width:
            raise BadRequest(f"{size} bytes hold no register of {view.width}", what=what)
        span = place.span[: _accessed(view, size)]
        empty = None if target.make else EMPTY_TEXT if view.is_text else EMPTY
        asked = monotonic()  # opening it asks whether it answers
        apertures = place.open(span, writable=writable, combine=combine)
        try:
            parts = interruptible(apertures, partial(self._look, guards))
            opened = view_of(parts, view, what, target.make)
        except BaseException:
            for aperture in apertures:
                aperture.close()
            raise
        if place.check is not None:
            return BarView(opened, guards, held, place.check, empty=empty, asked=asked)
        if guards:
            return GuardedView(opened, guards, held)
        return HeldView(opened, held) if self._combining else opened

    def _look(self, guards: Sequence[Guard], offset: int, length: int) -> None:
        """End a request by what this raises, if the rest of it is not to be done."""
        self._check()
        for guard in guards:
            guard.check(offset, length)

    def _claim(self, target: _Target, place: _Place, held: Held, *, writable: bool) -> bool:
        """Whether to map a target write-combining; CombinedElsewhere.

        What is claimed goes with `held`. Only memory is mapped so, and in no fixed width.
        """
        if self._combining is None or place.claim is None:
            return False
        if place.combines is None:
            held.append(self._combining.keep_exact(place.claim, target.what))
            return False
        offered = writable and place.combines()
        release = self._combining.combine(place.claim) if offered else None
        if release is None:
            return False
        held.append(release)
        return True


def view_of(
    apertures: Sequence[Aperture], view: ViewKind, what: str, make: Make | None = None
) -> View:
    """The view of a kind over apertures; BadRequest if they don't allow its width."""
    if make is not None:
        try:
            (aperture,) = apertures
            return make(aperture)
        except BadRequest as error:
            error.what = what
            raise
    if not view.is_fixed:
        return _joined([RawView(aperture) for aperture in apertures])
    for aperture in apertures:
        try:
            contract.check_base(aperture.base, view.width, aperture.max_width)
        except BadRequest as error:
            error.what = what
            raise
    if view.is_text:
        (aperture,) = apertures
        return TextView(aperture, view.width)
    return _joined([FixedView(aperture, view.width) for aperture in apertures])


def _joined(views: Sequence[RawView | FixedView]) -> View:
    return views[0] if len(views) == 1 else JoinedView(views)
