"""`phys/`: ranges of physical addresses. The ranges of /proc/iomem are listed, any other opens."""

from collections.abc import Iterator
from typing import Final

from barfs.devmem import PhysicalMemory
from barfs.journal.records import Subject
from barfs.names import AddressRange
from barfs.nodes import DIRECTORY, Attributes, Branch, Found, Kind, Node, Type, View
from barfs.spans.opening import Spans
from barfs.tree.root import ROOT
from barfs.tree.single import Single
from barfs.tree.views import attributes_of, view_in, views_in

# Nobody but the owner gets in: access to physical memory is access to everything, and /proc/iomem
# shows its addresses to root alone.
PHYS: Final = Kind("phys", Type.DIRECTORY, steady=True)
RANGE: Final = Kind("range", writable=True)


def _directory_of(node: Node) -> str:
    return f"phys/{node.view.label}" if node.view else "phys"


class Physical(Single):
    """`phys`, with its views."""

    kind = PHYS
    kinds = (PHYS,)
    under = (ROOT,)

    def missing(self, directory: Node, name: str) -> str:
        del directory
        return f"phys: {name!a} is no <addr>, <addr>+<length> or <start>-<end> in hex"

    def path(self, node: Node) -> str:
        return _directory_of(node)

    def attributes(self, node: Node) -> Attributes:
        del node
        return DIRECTORY


class Ranges(Branch):
    """The ranges in `phys` and in its views."""

    kinds = (RANGE,)
    under = (PHYS,)

    def __init__(self, memory: PhysicalMemory, spans: Spans) -> None:
        self._memory = memory
        self._spans = spans

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        yield from views_in(directory)
        for entry in self._memory.ranges():
            size = entry.end + 1 - entry.start
            yield str(entry), Node(RANGE, view=directory.view, start=entry.start, size=size)

    def find(self, directory: Node, name: str) -> Found | None:
        view = view_in(directory, name)
        if view is not None:
            return Found(view, DIRECTORY)
        wanted = AddressRange.parse(name)
        if wanted is None:
            return None
        width = directory.view.width if directory.view.is_text else None
        start, size = self._memory.resolve(wanted, width)
        return Found(Node(RANGE, view=directory.view, start=start, size=size))

    def path(self, node: Node) -> str:
        return f"{_directory_of(node)}/{node.start:08x}-{node.start + node.size - 1:08x}"

    def attributes(self, node: Node) -> Attributes:
        ram = self._memory.is_ram(node.start, node.size)
        return attributes_of(node.view, node.size, memory_like=ram)

    def subject(self, node: Node) -> Subject:
        return (
            super()
            .subject(node)
            ._replace(
                start=node.start,
                unit="address",
                unclaimed=not self._memory.is_claimed(node.start, node.size),
            )
        )

    def open(self, node: Node, *, writable: bool) -> View:
        return self._spans.physical(
            node.start, node.size, node.view, writable=writable, what=self.path(node)
        )
