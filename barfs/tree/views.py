"""`u8/` ... `x64/`, `mem/`: the same files again, in one width, as text, or as memory."""

from collections.abc import Iterator
from typing import Final

from barfs.access import contract
from barfs.machine.functions import Functions
from barfs.names import VIEWS, ViewKind
from barfs.nodes import DIRECTORY, Attributes, Branch, Found, Node
from barfs.tree.functions import FUNCTION

# st_blksize, in bytes. Tools that buffer read this much at a time. On registers it is one access,
# elsewhere it is enough to be fast.
REGISTER_BLKSIZE: Final = 4
MEMORY_BLKSIZE: Final = 1 << 20


def view_in(directory: Node, name: str) -> Node | None:
    """The view of a directory that a name means. None if it means none, or this is a view."""
    view = VIEWS.get(name)
    return None if view is None or directory.view else directory._replace(view=view)


def views_in(directory: Node) -> Iterator[tuple[str, Node]]:
    """All views of a directory. None if it is a view itself."""
    if not directory.view:
        for name, view in VIEWS.items():
            yield name, directory._replace(view=view)


def attributes_of(view: ViewKind, size: int, *, memory_like: bool) -> Attributes:
    """What stat shows of a BAR or a physical range of `size` bytes."""
    if view.is_text:
        return Attributes(contract.text_size(view.width))
    if view.is_fixed:
        return Attributes(size, view.width)
    is_memory = memory_like or view is ViewKind.MEM
    return Attributes(size, MEMORY_BLKSIZE if is_memory else REGISTER_BLKSIZE)


class Views(Branch):
    """The views of functions: directories that have the BARs again."""

    under = (FUNCTION,)

    def __init__(self, pci: Functions) -> None:
        self._pci = pci

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        if self._pci.exists(directory.function):
            yield from views_in(directory)

    def find(self, directory: Node, name: str) -> Found | None:
        node = view_in(directory, name)
        if node is None or not self._pci.exists(directory.function):
            return None
        return Found(node, DIRECTORY)
