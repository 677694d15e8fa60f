"""`log`: who read and wrote what."""

from typing import Final

from barfs.journal.records import Journal, LogView, Stream
from barfs.nodes import Attributes, Kind, Node, View
from barfs.tree.root import ROOT
from barfs.tree.single import Single

# Reading it makes no records. Otherwise it would never end.
LOG: Final = Kind("log", grows=True, recorded=False)


class OpenLog(LogView, View):
    """The log as a file that is not written, and is made of no accesses."""


class Log(Single):
    """`log`, the lines of the journal."""

    kind = LOG
    kinds = (LOG,)
    under = (ROOT,)

    def __init__(self, journal: Journal) -> None:
        self._stream = Stream(journal)

    def attributes(self, node: Node) -> Attributes:
        del node
        self._stream.refresh()
        return Attributes(self._stream.size, modified=self._stream.modified)

    def open(self, node: Node, *, writable: bool) -> View:
        del node, writable
        return OpenLog(self._stream)
