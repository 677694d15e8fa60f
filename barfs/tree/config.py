"""`config`: a function's config space."""

from typing import Final

from barfs.errors import DeviceGone, FunctionPart, ReadOnly
from barfs.names import PciAddress
from barfs.nodes import Attributes, Kind, Node, Share, View
from barfs.spans.views import ConfigView
from barfs.tree.functions import Part
from barfs.tree.views import REGISTER_BLKSIZE

# Never writable by others: config space moves BARs and turns on DMA, by which a device reaches all
# memory.
CONFIG: Final = Kind("config", share=Share.READ, writable=True)


class Config(Part):
    """`config`, through sysfs's file of that name."""

    kind = CONFIG
    kinds = (CONFIG,)

    def is_in(self, address: PciAddress) -> bool:
        """See Part."""
        try:
            self._pci.config_size(address)
        except DeviceGone:
            return False
        return True

    def attributes(self, node: Node) -> Attributes:
        """See Tree."""
        return Attributes(self._pci.config_size(node.function), REGISTER_BLKSIZE)

    def why_read_only(self, node: Node) -> ReadOnly | None:
        """See Branch."""
        return self._pci.why_read_only(node.function, FunctionPart(node.function, "config"))

    def open(self, node: Node, *, writable: bool) -> View:
        """See Branch."""
        return ConfigView(self._pci.open_config(node.function, writable=writable))
