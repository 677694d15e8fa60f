"""What is opened for a file of the tree: its view, over its apertures, watched over."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from barfs.access import contract
from barfs.access.apertures import Aperture
from barfs.access.files import PAGE_SIZE
from barfs.diagnosis.checkup import status
from barfs.errors import BadRequest, ReadOnly
from barfs.journal.records import LogView
from barfs.machine.resources import Resource, bar_of
from barfs.names import PciAddress
from barfs.nodes import BARS, Kind, Node, Tree
from barfs.report.info import describe
from barfs.spans import bars
from barfs.spans.views import (
    ConfigView,
    FixedView,
    Guard,
    GuardedView,
    JoinedView,
    RawView,
    SnapshotView,
    SysfsView,
    TextView,
    View,
)

# A range with more functions in it than this is a part of the bus rather than of a device.
MOST_GUARDS: Final = 64


def _accessed(node: Node, size: int) -> int:
    """How much of a file of `size` bytes is accessed: of a text view the register alone."""
    return node.view.width if node.view.is_text else size


def _functions_behind(tree: Tree, node: Node) -> list[tuple[int, int, PciAddress]]:
    """What of a file in `phys` belongs to functions, as offsets in the file."""
    parts = tree.functions_within(node._replace(size=_accessed(node, node.size)))
    if node.view.is_text:
        # Offsets in the text say nothing of where in the register an access is: it is all of it.
        return [(0, sys.maxsize, address) for *_, address in parts]
    return [] if len(parts) > MOST_GUARDS else parts


def _open_guarded(tree: Tree, node: Node, *, writable: bool) -> View:
    """A BAR or physical range, with a watch over the functions that it belongs to."""
    with ExitStack() as stack:
        # First the watch, then what is watched: a change between the two is seen.
        if node.kind is Kind.PHYS_FILE:
            parts = _functions_behind(tree, node)
        else:
            parts = [(0, sys.maxsize, node.function)]
        guards = []
        for start, end, address in parts:
            presence = tree.pci.everything.presence(address)
            stack.callback(presence.close)
            guards.append(Guard(start, end, presence))
        if tree.decoder is not None and node.kind in BARS:
            stack.callback(tree.decoder.hold(node.function, node.bar))
        bar = None
        if node.kind in BARS:
            bar = bar_of(node.function, guards[0].presence.resources(node.function), node.bar)
        combine = _claim(tree, node, bar, stack, writable=writable)
        view = _open_span(tree, node, bar, writable=writable, combine=combine)
        return GuardedView(view, guards, stack.pop_all()) if guards or tree.combining else view


def _claim(
    tree: Tree, node: Node, bar: Resource | None, stack: ExitStack, *, writable: bool
) -> bool:
    """Whether to map a BAR write-combining; CombinedElsewhere. What was claimed goes with `stack`.

    Only raw files are, of BARs that share no page with others.
    """
    if tree.combining is None:
        return False
    if bar is None:
        span = range(node.start, node.start + _accessed(node, node.size))
    elif bar.is_memory and bar.prefetchable and bar.size >= PAGE_SIZE:
        span = bar.span
        if not node.view:
            offered = writable and bars.can_combine(tree.pci, node.function, node.bar)
            release = tree.combining.combine(span) if offered else None
            if release is not None:
                stack.callback(release)
            return release is not None
    else:
        return False
    stack.callback(tree.combining.keep_exact(span, node.path))
    return False


def open_view(tree: Tree, node: Node, *, writable: bool) -> View:
    """Open what is behind a file; NoSuchNode and all that opening an aperture raises.

    BadRequest for a width that the place or the kind of BAR does not allow.
    """
    if node.kind is Kind.PHYS_FILE or node.kind in BARS:
        return _open_guarded(tree, node, writable=writable)
    if node.kind is Kind.CONFIG:
        return ConfigView(tree.pci.open_config(node.function, writable=writable))
    if writable:
        raise ReadOnly(f"{node.path} is read-only")
    if node.kind is Kind.ROM:
        return SysfsView(tree.pci.open_rom(node.function))
    if node.kind is Kind.LOG:
        return LogView(tree.stream)
    if node.kind is Kind.INFO:
        return SnapshotView(describe(tree.pci, node.function))
    if node.kind is Kind.STATUS:
        return SnapshotView(status(tree.machine))
    raise BadRequest(f"{node.path} is not a file")


def _open_span(
    tree: Tree, node: Node, bar: Resource | None, *, writable: bool, combine: bool
) -> View:
    """A BAR, a window or a physical range. Of a text view only the register itself is opened."""
    size = node.size or (bar.size if bar else 0)
    if node.view.is_text and size < node.view.width:
        raise BadRequest(f"{node.path}: {size} bytes hold no register of {node.view.width}")
    size = _accessed(node, size)
    apertures: Sequence[Aperture]
    if node.kind is Kind.PHYS_FILE:
        if writable:
            tree.pci.check_span_writable(node.start, size)
        apertures = tree.ways.open_physical(node.start, size, writable=writable)
    else:
        apertures = [
            bars.open_bar(
                tree.ways,
                node.function,
                node.bar,
                writable=writable,
                offset=node.start,
                size=size,
                resource=bar,
                combine=combine,
            )
        ]
    try:
        return _view(node, apertures)
    except BaseException as error:
        with ExitStack() as stack:
            for aperture in apertures:
                stack.callback(aperture.close)
        if isinstance(error, BadRequest):
            error.what = node.path
        raise


def _view(node: Node, apertures: Sequence[Aperture]) -> View:
    views: Sequence[RawView | FixedView]
    if not node.view:
        views = [RawView(aperture) for aperture in apertures]
    else:
        width = node.view.width
        for aperture in apertures:
            contract.check_base(aperture.base, width, aperture.max_width)
        if node.view.is_text:
            (aperture,) = apertures
            return TextView(aperture, width)
        views = [FixedView(aperture, width) for aperture in apertures]
    return views[0] if len(views) == 1 else JoinedView(views)
