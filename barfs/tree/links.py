"""`1af4:1110`, `1af4:1110.1`: links in the root to functions, by their ids.

Names with the subsystem, `1af4:1110:1af4:1100`, are not listed, nor are names with `-` for `:`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from barfs.errors import DeviceGone, NoSuchNode
from barfs.machine.functions import Functions
from barfs.names import LinkName, PciAddress, with_colons
from barfs.nodes import Attributes, Branch, Found, Kind, Lasting, Node, Type
from barfs.tree.functions import PCI, directory_of
from barfs.tree.root import ROOT

LINK: Final = Kind("link", Type.LINK, lasting=Lasting.WITH_FUNCTION)
ALIAS: Final = Kind("alias", Type.LINK)


class Links(Branch):
    """The links in the root."""

    kinds = (LINK,)
    under = (ROOT,)

    def __init__(self, pci: Functions) -> None:
        self._pci = pci

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        del directory
        instances: Counter[object] = Counter()
        for address in self._pci.addresses():
            try:
                device = self._pci.id(address)
            except DeviceGone:
                continue
            if device is not None:
                yield str(LinkName(device, None, instances[device])), Node(LINK, address)
                instances[device] += 1

    def find(self, directory: Node, name: str) -> Found | None:
        del directory
        wanted = LinkName.parse(with_colons(name))
        if wanted is None:
            return None
        for fresh in (False, True):
            named = list(self._pci.with_id(wanted.id, wanted.subsystem, fresh=fresh))
            found = named[wanted.instance] if wanted.instance < len(named) else None
            if found is not None and self._is(found, wanted):
                return Found(Node(LINK, found))
        raise NoSuchNode(f"there is no device {name} ({len(named)} of that name)")

    def _is(self, address: PciAddress, wanted: LinkName) -> bool:
        """Whether a function has the ids of a link's name now."""
        try:
            return self._pci.id(address) == wanted.id and (
                wanted.subsystem is None or self._pci.subsystem(address) == wanted.subsystem
            )
        except DeviceGone:
            return False

    def path(self, node: Node) -> str:
        return directory_of(node)

    def attributes(self, node: Node) -> Attributes:
        return Attributes(len(self.target(node)))

    def target(self, node: Node) -> str:
        return directory_of(node)


class Aliases(Branch):
    """`pci/0000-00-04.0`: a link to `0000:00:04.0`, which is not listed.

    It is no second name of the directory: the kernel has one name for each directory.
    """

    kinds = (ALIAS,)
    under = (PCI,)

    def __init__(self, pci: Functions) -> None:
        self._pci = pci

    def find(self, directory: Node, name: str) -> Found | None:
        del directory
        address = PciAddress.parse(with_colons(name))
        if address is None or str(address) == name or not self._pci.exists(address):
            return None
        return Found(Node(ALIAS, address))

    def path(self, node: Node) -> str:
        return directory_of(node)

    def attributes(self, node: Node) -> Attributes:
        return Attributes(len(self.target(node)))

    def target(self, node: Node) -> str:
        return str(node.function)
