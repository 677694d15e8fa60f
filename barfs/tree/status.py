"""`status`: what works on the machine, as text."""

from typing import Final

from barfs.diagnosis.causes import Machine
from barfs.diagnosis.checkup import status
from barfs.nodes import Attributes, Kind, Node, View
from barfs.spans.views import SnapshotView
from barfs.tree.root import ROOT
from barfs.tree.single import Single

STATUS: Final = Kind("status")


class Status(Single):
    """`status`, made when it is opened."""

    kind = STATUS
    kinds = (STATUS,)
    under = (ROOT,)

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def attributes(self, node: Node) -> Attributes:
        # As in /proc, the length shows only when it is read.
        del node
        return Attributes(0)

    def open(self, node: Node, *, writable: bool) -> View:
        del node, writable
        return SnapshotView(status(self._machine))
