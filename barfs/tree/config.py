"""`config`: a function's config space."""

from typing import Final

from barfs.errors import DeviceGone, FunctionPart, ReadOnly
from barfs.names import PciAddress
from barfs.nodes import Attributes, Kind, Lasting, Node, Share, View
from barfs.spans.views import ConfigView
from barfs.tree.functions import Part
from barfs.tree.views import REGISTER_BLKSIZE

# Others may never write it: whoever writes config space can move BARs and turn on DMA. By DMA a
# device reaches all memory.
CONFIG: Final = Kind("config", share=Share.READ, writable=True, lasting=Lasting.WITH_FUNCTION)


class Config(Part):
    """`config`, through sysfs's file of that name."""

    kind = CONFIG
    kinds = (CONFIG,)

    def is_in(self, address: PciAddress) -> bool:
        try:
            self._pci.config_size(address)
        except DeviceGone:
            return False
        return True

    def attributes(self, node: Node) -> Attributes:
        return Attributes(self._pci.config_size(node.function), REGISTER_BLKSIZE)

    def why_read_only(self, node: Node) -> ReadOnly | None:
        return self._pci.why_read_only(node.function, FunctionPart(node.function, "config"))

    def open(self, node: Node, *, writable: bool) -> View:
        return ConfigView(self._pci.open_config(node.function, writable=writable))
