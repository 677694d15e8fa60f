"""Names that the kernel may keep for a while, since something tells of every change of them.

Opening a file asks the machine whatever the kernel has kept. If that finds that a name was kept too
long, the kernel is told to look the name up again (ESTALE), which it does once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Final

from barfs.errors import DeviceGone, NoSuchAddress, NoSuchNode
from barfs.machine.changes import nearest
from barfs.machine.source import Source
from barfs.nodes import Kind, Lasting, Node, Type

# How long the kernel may keep a name, in seconds, and how many of each kind it keeps at a time.
LIFETIME: Final = 1
MOST: Final = 1024

# How long it is remembered at least that the kernel may have kept a name, in seconds. The kernel
# rounds times up to its clock's ticks.
_REMEMBERED: Final = 1.25 * LIFETIME

# How long the kernel may keep attributes, in seconds. Those of a steady node never change. Those of
# a file are given by a look-up, and the open that follows need not ask again: the kernel rounds
# this up to the second tick of its clock from now, which is at most 20 ms. It asks for those of a
# directory whenever it goes through. So an unplug shows at once, though the names are kept.
STEADY_ATTRIBUTES: Final = 1
ATTRIBUTES: Final = 1e-6

# What says that a name leads nowhere.
NOT_THERE: Final = (DeviceGone, NoSuchAddress, NoSuchNode)


def attributes_lifetime(kind: Kind) -> float:
    """How long the kernel may keep the attributes of a node, in seconds."""
    if kind.steady:
        return STEADY_ATTRIBUTES
    return ATTRIBUTES if kind.type is Type.FILE and not kind.grows else 0


class Kept:
    """The names of functions and of their files that the kernel keeps.

    `drop` has it forget a name in a directory. The `maps` are the directories of register maps.
    """

    def __init__(
        self, source: Source, maps: Sequence[Path], drop: Callable[[Node, str], None]
    ) -> None:
        self._source = source
        self._maps = maps
        self._drop = drop
        self._changes = 0  # how many were told of
        self._since = 0.0
        # The nodes that the kernel was told of, and how many changes there had been; and of those
        # that other names are below, the names. What was told before `_since` is in the older ones.
        self._nodes: dict[Node, int] = {}
        self._older_nodes: dict[Node, int] = {}
        self._names: set[tuple[Node, str]] = set()
        self._older_names: set[tuple[Node, str]] = set()
        # Threads that are to look a node up again, and have not got through since.
        self._sent_back: set[tuple[int, Node]] = set()

    def lifetime(self, directory: Node, name: str, node: Node) -> int:
        """How long the kernel may keep a name that it has just looked up, in seconds."""
        if node.kind.steady:
            return LIFETIME
        if not self._may_keep(node):
            if self._told(node) is not None:  # it may be kept under another name
                self._nodes[node] = self._changes
            return 0
        self._nodes[node] = self._changes
        if directory.address is None:
            self._names.add((directory, name))
        return LIFETIME

    def _may_keep(self, node: Node) -> bool:
        if node.kind.lasting is Lasting.NOT_KNOWN or not self._is_told_of(node):
            return False
        self._turn()
        return len(self._nodes) < MOST and len(self._names) < MOST

    def _is_told_of(self, node: Node) -> bool:
        """Whether a change of a node's name would be told of."""
        if node.address is None or not self._source.tells_of(node.address):
            return False
        if node.kind.lasting is Lasting.WITH_FUNCTION:
            return True
        watches = self._source.changes.watches
        return all(watches(nearest(directory)) for directory in self._maps)

    def _turn(self) -> None:
        """Forget what the kernel has not kept any more for a while."""
        now = monotonic()
        if now - self._since <= _REMEMBERED:
            return
        recent = now - self._since <= 2 * _REMEMBERED
        self._older_nodes = self._nodes if recent else {}
        self._older_names = self._names if recent else set()
        self._nodes, self._names, self._since = {}, set(), now
        self._sent_back.clear()

    def changed(self) -> None:
        """Something has changed: the kernel is to forget all names."""
        self._changes += 1
        names = self._names | self._older_names
        self._names, self._older_names = set(), set()
        # Names below these go with them.
        for directory, name in names:
            self._drop(directory, name)

    def is_stale(self, node: Node, thread: int) -> bool:
        """Whether something has changed since the kernel was told what it may have kept of a node.

        As `is_doubtful`, if so.
        """
        then = self._told(node)
        return then is not None and then != self._changes and self.is_doubtful(node, thread)

    def is_doubtful(self, node: Node, thread: int) -> bool:
        """Whether the kernel may have kept a name that has turned out to lead nowhere.

        If so, this says it once to a thread, which is to look the name up again. If it still meets
        the node then, it has not come by a name.
        """
        if self._told(node) is None:
            return False
        if (thread, node) in self._sent_back:
            self._sent_back.remove((thread, node))
            return False
        self._sent_back.add((thread, node))
        return True

    def has_come(self, thread: int, node: Node | None = None) -> None:
        """A thread has met a node that is there. Or, if it is None, a name that is not there."""
        if self._sent_back:
            self._sent_back = {
                (other, doubtful)
                for other, doubtful in self._sent_back
                if other != thread or (node is not None and doubtful != node)
            }

    def _told(self, node: Node) -> int | None:
        then = self._nodes.get(node)
        return self._older_nodes.get(node) if then is None else then
