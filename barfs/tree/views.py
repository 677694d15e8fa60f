"""`u8/` ... `x64/`: the same files, accessed in one width, or as text."""

from collections.abc import Iterator
from typing import Final

from barfs.access import contract
from barfs.machine.functions import Functions
from barfs.names import VIEWS, ViewKind
from barfs.nodes import DIRECTORY, Attributes, Branch, Found, Node
from barfs.tree.functions import FUNCTION

# st_blksize. Tools that buffer ask for this much at a time: on registers no more than one access,
# elsewhere enough to be fast.
REGISTER_BLKSIZE: Final = 4
MEMORY_BLKSIZE: Final = 1 << 20


def view_in(directory: Node, name: str) -> Node | None:
    """The view that a name means in a directory that is not one itself; None if it means none."""
    view = VIEWS.get(name)
    return None if view is None or directory.view else directory._replace(view=view)


def views_in(directory: Node) -> Iterator[tuple[str, Node]]:
    """All views of a directory, none if it is one itself."""
    if not directory.view:
        for name, view in VIEWS.items():
            yield name, directory._replace(view=view)


def attributes_of(view: ViewKind, size: int, *, memory_like: bool) -> Attributes:
    """What stat shows of a BAR or a physical range of `size` bytes."""
    if view.is_text:
        return Attributes(contract.text_size(view.width))
    if view:
        return Attributes(size, view.width)
    return Attributes(size, MEMORY_BLKSIZE if memory_like else REGISTER_BLKSIZE)


class Views(Branch):
    """The views of functions: directories of the same kind, in which the BARs are again."""

    under = (FUNCTION,)

    def __init__(self, pci: Functions) -> None:
        self._pci = pci

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """See Branch."""
        if self._pci.exists(directory.function):
            yield from views_in(directory)

    def find(self, directory: Node, name: str) -> Found | None:
        """See Branch."""
        node = view_in(directory, name)
        if node is None or not self._pci.exists(directory.function):
            return None
        return Found(node, DIRECTORY)
