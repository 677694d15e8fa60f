"""`ksym/`: the kernel's own memory by the names of its symbols. They are too many to be listed."""

from collections.abc import Iterator
from typing import Final

from barfs.errors import NoSuchNode, ReadOnly
from barfs.journal.records import Subject
from barfs.names import SymbolName
from barfs.nodes import DIRECTORY, Attributes, Branch, Found, Kind, Node, Type, View
from barfs.spans.kernel import Extent, KernelMemory, open_symbol
from barfs.spans.opening import Spans
from barfs.tree.root import ROOT
from barfs.tree.single import Single
from barfs.tree.views import attributes_of, view_in, views_in

# It is for its owner alone, for the same reasons as `phys`.
KSYM: Final = Kind("ksym", Type.DIRECTORY, steady=True)
SYMBOL: Final = Kind("symbol", writable=True)
ELEMENTS: Final = Kind("elements", Type.DIRECTORY)


def _path(node: Node) -> str:
    view = f"{node.view.label}/" if node.view else ""
    return f"ksym/{view}{node.name}"


def _name_of(node: Node) -> SymbolName:
    """The parsed name of a node. It was parsed before, when the node was made."""
    name = SymbolName.parse(node.name)
    assert name is not None, node  # noqa: S101 - for the reader and the type checker
    return name


class Ksym(Single):
    """`ksym`, with its views."""

    kind = KSYM
    kinds = (KSYM,)
    under = (ROOT,)

    def missing(self, directory: Node, name: str) -> str:
        del directory
        return f"ksym: {name!a} is no <symbol>, <symbol>:<type>.<field> or <symbol>@<window>"

    def path(self, node: Node) -> str:
        return f"ksym/{node.view.label}" if node.view else "ksym"

    def attributes(self, node: Node) -> Attributes:
        del node
        return DIRECTORY


class KernelSymbols(Branch):
    """Symbols, fields and windows in `ksym` and its views.

    A field that is an array is a directory with its elements. An array of single bytes is a file,
    since it is usually text.
    """

    kinds = (SYMBOL, ELEMENTS)
    under = (KSYM, ELEMENTS)

    def __init__(self, memory: KernelMemory, spans: Spans) -> None:
        self._memory = memory
        self._spans = spans

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        if directory.kind is KSYM:
            yield from views_in(directory)
            return
        for index in range(self._memory.extent(_name_of(directory)).elements):
            yield str(index), self._found(directory, f"{directory.name}.{index}").node

    def find(self, directory: Node, name: str) -> Found | None:
        if directory.kind is ELEMENTS:
            return self._found(directory, f"{directory.name}.{name}")
        view = view_in(directory, name)
        if view is not None:
            return Found(view, DIRECTORY)
        return None if SymbolName.parse(name) is None else self._found(directory, name)

    def _found(self, directory: Node, name: str) -> Found:
        """The node of a whole name, in the view of a directory. Raises NoSuchNode,
        NoSuchAddress.
        """
        wanted = SymbolName.parse(name)
        if wanted is None:
            raise NoSuchNode("is no field or window", what=f"ksym/{name}")
        extent = self._memory.extent(wanted, directory.view)
        kind = ELEMENTS if extent.elements else SYMBOL
        node = Node(kind, view=directory.view, name=str(wanted))
        return Found(node, self._attributes(node, extent))

    def path(self, node: Node) -> str:
        return _path(node)

    def _attributes(self, node: Node, extent: Extent) -> Attributes:
        if node.kind is ELEMENTS:
            return DIRECTORY
        return attributes_of(node.view, extent.size, memory_like=True)

    def attributes(self, node: Node) -> Attributes:
        return self._attributes(node, self._memory.extent(_name_of(node), node.view))

    def subject(self, node: Node) -> Subject:
        """The log has its physical address, or the virtual one if there is none."""
        extent = self._memory.extent(_name_of(node), node.view)
        start = extent.virtual if extent.physical is None else extent.physical
        return super().subject(node)._replace(start=start, unit="address")

    def why_read_only(self, node: Node) -> ReadOnly | None:
        return self._memory.why_read_only(_name_of(node), _path(node))

    def open(self, node: Node, *, writable: bool) -> View:
        name, what = _name_of(node), _path(node)
        return open_symbol(self._memory, self._spans, name, node.view, writable=writable, what=what)
