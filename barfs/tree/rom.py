"""`rom`: a function's expansion ROM."""

from typing import Final

from barfs.machine.functions import Functions
from barfs.names import PciAddress
from barfs.nodes import Attributes, Kind, Lasting, Node, Share, View
from barfs.spans.opening import Spans
from barfs.tree.functions import Part, check_present
from barfs.tree.views import MEMORY_BLKSIZE

ROM: Final = Kind("rom", share=Share.READ, waits=True, lasting=Lasting.WITH_FUNCTION)


class Rom(Part):
    """`rom`, which is there only if the function has one."""

    kind = ROM
    kinds = (ROM,)

    def __init__(self, pci: Functions, spans: Spans) -> None:
        super().__init__(pci)
        self._spans = spans

    def is_in(self, address: PciAddress) -> bool:
        return bool(self._pci.rom_size(address))

    def attributes(self, node: Node) -> Attributes:
        check_present(self._pci, node, self.path(node))
        return Attributes(self._pci.rom_size(node.function) or 0, MEMORY_BLKSIZE)

    def open(self, node: Node, *, writable: bool) -> View:
        del writable
        return self._spans.rom(node.function)
