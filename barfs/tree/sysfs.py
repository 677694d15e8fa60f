"""`sysfs`: a link to a function's own directory in sysfs."""

import os
from typing import Final

from barfs.nodes import Attributes, Kind, Lasting, Node, Type
from barfs.tree.functions import Part, check_present

SYSFS: Final = Kind("sysfs", Type.LINK, lasting=Lasting.WITH_FUNCTION)


class Sysfs(Part):
    """`sysfs`. Its target is an absolute path, so it is right wherever the mount is."""

    kind = SYSFS
    kinds = (SYSFS,)

    def attributes(self, node: Node) -> Attributes:
        check_present(self._pci, node, self.path(node))
        return Attributes(len(os.fsencode(self.target(node))))

    def target(self, node: Node) -> str:
        """The absolute path. DeviceGone."""
        return os.path.abspath(self._pci.path(node.function, ""))
