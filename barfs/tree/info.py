"""`info`: what a function is, as text."""

from typing import Final

from barfs.machine.functions import Functions
from barfs.nodes import Attributes, Kind, Lasting, Node, Share, View
from barfs.registers.devices import DeviceMaps
from barfs.report.info import describe
from barfs.spans.opening import Spans
from barfs.spans.views import SnapshotView
from barfs.tree.functions import Part, check_present

INFO: Final = Kind("info", share=Share.READ, lasting=Lasting.WITH_FUNCTION)


class Info(Part):
    """`info`, made when it is opened."""

    kind = INFO
    kinds = (INFO,)

    def __init__(self, pci: Functions, maps: DeviceMaps, spans: Spans) -> None:
        super().__init__(pci)
        self._maps = maps
        self._spans = spans

    def attributes(self, node: Node) -> Attributes:
        # As in /proc, the length shows only when it is read.
        check_present(self._pci, node, self.path(node))
        return Attributes(0)

    def open(self, node: Node, *, writable: bool) -> View:
        """Make the text. That may wake the function up."""
        del writable
        text = describe(self._pci, node.function, maps=self._maps)
        note = self._spans.note(node.function)
        return SnapshotView(text if note is None else f"{text}{note}\n")
