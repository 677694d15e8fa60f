"""`pci/`, the directories of functions in it, and files that a function has once."""

from collections.abc import Iterable, Iterator
from typing import Final

from barfs.errors import DeviceGone
from barfs.machine.functions import Functions
from barfs.names import PciAddress
from barfs.nodes import DIRECTORY, Attributes, Branch, Found, Kind, Lasting, Node, Share, Type
from barfs.tree.root import ROOT
from barfs.tree.single import Single

PCI: Final = Kind("pci", Type.DIRECTORY, share=Share.READ, steady=True)
FUNCTION: Final = Kind("function", Type.DIRECTORY, share=Share.READ, lasting=Lasting.WITH_FUNCTION)


def directory_of(node: Node) -> str:
    """The path of a function's directory, with the view of a node in it or of itself."""
    view = f"/{node.view.label}" if node.view else ""
    return f"pci/{node.address}{view}"


def check_present(pci: Functions, node: Node, path: str) -> None:
    """DeviceGone if the function of a node is not there."""
    if not pci.exists(node.function):
        raise DeviceGone("the device is gone", what=path)


class Pci(Single):
    """The directory `pci`."""

    kind = PCI
    kinds = (PCI,)
    under = (ROOT,)

    def missing(self, directory: Node, name: str) -> str:
        del directory
        return f"pci: there is no function {name!a}"

    def attributes(self, node: Node) -> Attributes:
        del node
        return DIRECTORY


class FunctionDirectories(Branch):
    """The directories of functions in `pci`. Their names are PCI addresses."""

    kinds = (FUNCTION,)
    under = (PCI,)

    def __init__(self, pci: Functions) -> None:
        self._pci = pci

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        del directory
        for address in self._pci.addresses():
            if self._pci.exists(address):
                yield str(address), Node(FUNCTION, address)

    def find(self, directory: Node, name: str) -> Found | None:
        del directory
        address = PciAddress.parse(name)
        if address is None or not self._pci.exists(address):
            return None
        return Found(Node(FUNCTION, address), DIRECTORY)

    def names_of(self, address: PciAddress) -> Iterable[tuple[Node, str]]:
        return [(Node(PCI), str(address))]

    def path(self, node: Node) -> str:
        return directory_of(node)

    def attributes(self, node: Node) -> Attributes:
        check_present(self._pci, node, self.path(node))
        return DIRECTORY


class Part(Single):
    """A file that a function has once. It is not in the directories of views."""

    under = (FUNCTION,)

    def __init__(self, pci: Functions) -> None:
        self._pci = pci

    def node_in(self, directory: Node) -> Node | None:
        if directory.view or not self.is_in(directory.function):
            return None
        return Node(self.kind, directory.address)

    def is_in(self, address: PciAddress) -> bool:
        """Whether a function has it."""
        return self._pci.exists(address)

    def path(self, node: Node) -> str:
        return f"{directory_of(node)}/{self.kind.name}"
