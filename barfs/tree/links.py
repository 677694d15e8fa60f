"""`1af4:1110`, `1af4:1110.1`: links in the root to functions, by their ids.

Names with the subsystem, `1af4:1110:1af4:1100`, are not listed, nor are names with `-` for `:`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
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
            found = self._meant(wanted, fresh=fresh)
            if found is not None:
                return Found(Node(LINK, found))
        others = sum(1 for _ in self._named(wanted, fresh=False))
        raise NoSuchNode(f"there is no device {name} ({others} of that name)")

    def _meant(self, wanted: LinkName, *, fresh: bool) -> PciAddress | None:
        """The function of a link's name. None if there is none, or if it has another id by now."""
        found = next(islice(self._named(wanted, fresh=fresh), wanted.instance, None), None)
        try:
            return found if found and self._pci.id(found) == wanted.id else None
        except DeviceGone:
            return None

    def _named(self, wanted: LinkName, *, fresh: bool) -> Iterable[PciAddress]:
        """The functions of a link's name, whatever its instance."""

        def fits(address: PciAddress) -> bool:
            try:
                return self._pci.subsystem(address) == wanted.subsystem
            except DeviceGone:
                return False

        candidates = self._pci.with_id(wanted.id, fresh=fresh)
        return filter(fits, candidates) if wanted.subsystem else candidates

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
