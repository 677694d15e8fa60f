"""Branches with one name in a directory."""

from collections.abc import Iterator
from typing import ClassVar

from barfs.nodes import Branch, Found, Kind, Node


class Single(Branch):
    """The name of its kind, in each directory of the kinds that it is `under`."""

    kind: ClassVar[Kind]

    def node_in(self, directory: Node) -> Node | None:
        """The node in a directory. None if there is none."""
        return Node(self.kind, directory.address)

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        node = self.node_in(directory)
        if node is not None:
            yield self.kind.name, node

    def find(self, directory: Node, name: str) -> Found | None:
        node = self.node_in(directory) if name == self.kind.name else None
        return None if node is None else Found(node)

    def path(self, node: Node) -> str:
        del node
        return self.kind.name
