"""`bar0` ... `bar5`, and windows into them, which are not listed."""

from collections.abc import Iterator, Mapping
from typing import Final

from barfs.errors import DeviceGone, FunctionPart, NoSuchNode, ReadOnly
from barfs.journal.records import Subject
from barfs.machine.functions import Functions
from barfs.machine.resources import Resource, bar_of, size_in_window
from barfs.names import BarName, ViewKind
from barfs.nodes import Attributes, Branch, Found, Kind, Lasting, Node, Share, View
from barfs.spans.opening import Spans
from barfs.tree.functions import FUNCTION, directory_of
from barfs.tree.views import attributes_of

BAR: Final = Kind("bar", share=Share.ALL, writable=True, lasting=Lasting.WITH_FUNCTION)


class Bars(Branch):
    """The BARs that exist, in a function's directory and in its views."""

    kinds = (BAR,)
    under = (FUNCTION,)

    def __init__(self, pci: Functions, spans: Spans) -> None:
        self._pci = pci
        self._spans = spans

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        try:
            found = self._pci.bars(directory.function)
        except DeviceGone:
            return
        for index, resource in found.items():
            if directory.view is not ViewKind.MEM or resource.is_memory:
                yield f"bar{index}", Node(BAR, directory.address, index, directory.view)

    def find(self, directory: Node, name: str) -> Found | None:
        wanted = BarName.parse(name)
        if wanted is None:
            return None
        resources = self._pci.resources(directory.function)
        resource = bar_of(directory.function, resources, wanted.bar)
        if directory.view is ViewKind.MEM and not resource.is_memory:
            sentence = "is in I/O ports, and mem/ is for memory"
            raise NoSuchNode(sentence, what=FunctionPart(directory.function, BarName(wanted.bar)))
        node = Node(BAR, directory.address, wanted.bar, directory.view)
        if wanted.window is not None:
            what = f"{directory_of(directory)}/{name}"
            size = size_in_window(what, wanted.window, directory.view, resource.size)
            node = node._replace(start=wanted.window.start, size=size)
        return Found(node, self._attributes(node, resources))

    def path(self, node: Node) -> str:
        window = f"@{node.start:x}+{node.size:x}" if node.size else ""
        return f"{directory_of(node)}/bar{node.bar}{window}"

    def _attributes(self, node: Node, resources: Mapping[int, Resource]) -> Attributes:
        size = node.size or bar_of(node.function, resources, node.bar).size
        is_memory = (
            not node.view and self._pci.reading(node.function, resources, node.bar).is_memory
        )
        return attributes_of(node.view, size, memory_like=is_memory)

    def attributes(self, node: Node) -> Attributes:
        return self._attributes(node, self._pci.resources(node.function))

    def subject(self, node: Node) -> Subject:
        return super().subject(node)._replace(bar=node.bar, start=node.start)

    def why_read_only(self, node: Node) -> ReadOnly | None:
        what = FunctionPart(node.function, BarName(node.bar))
        return self._pci.why_read_only(node.function, what)

    def open(self, node: Node, *, writable: bool) -> View:
        return self._spans.bar(
            node.function,
            node.bar,
            node.view,
            start=node.start,
            size=node.size,
            writable=writable,
            what=self.path(node),
        )
