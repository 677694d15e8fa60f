"""Names that the kernel may keep for a while, since something tells of every change of them.

Opening a file asks the machine whatever the kernel has kept. If that finds that a name was kept too
long, the kernel is told to look the name up again (ESTALE), which it does once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple

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


class _When(NamedTuple):
    """When the kernel was told of a node: how many changes and how many names there had been."""

    changes: int
    told: int


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
        self._told = 0  # how many names the kernel was told
        self._since = 0.0
        # The nodes that the kernel was told of, and when; and of those that other names are below,
        # the names. What was told before `_since` is in the older ones.
        self._nodes: dict[Node, _When] = {}
        self._older_nodes: dict[Node, _When] = {}
        self._names: set[tuple[Node, str]] = set()
        self._older_names: set[tuple[Node, str]] = set()
        # At which node a thread was sent back, and how many names the kernel had been told then. Or
        # None, and how many when the thread came through a link since.
        self._sent_back: dict[int, tuple[Node | None, int]] = {}

    def lifetime(self, directory: Node, name: str, node: Node) -> int:
        """How long the kernel may keep a name that it has just looked up, in seconds."""
        if node.kind.steady:
            return LIFETIME
        self._told += 1
        may_keep = self._may_keep(node)
        # If not, it may be kept under another name all the same.
        if may_keep or self._when(node) is not None:
            self._nodes[node] = _When(self._changes, self._told)
        if may_keep and directory.address is None:
            self._names.add((directory, name))
        return LIFETIME if may_keep else 0

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

    def changed(self) -> None:
        """Something has changed: the kernel is to forget all names."""
        self._changes += 1
        names = self._names | self._older_names
        self._names, self._older_names = set(), set()
        # Names below these go with them.
        for directory, name in names:
            self._drop(directory, name)

    def is_stale(self, link: Node, thread: int) -> bool:
        """Whether a thread that comes to a link is to look up again how it came there.

        It is if something has changed since the kernel was told what it may have kept of the link.
        """
        then = self._when(link)
        if then is not None and then.changes != self._changes and self._send_back(link, thread):
            return True
        if thread in self._sent_back:
            self._sent_back[thread] = None, self._told
        return False

    def is_doubtful(self, node: Node, thread: int) -> bool:
        """Whether a thread is to look up again how it came to a node that is not there any more.

        It is if the kernel may have kept the name.
        """
        doubtful = self._send_back(node, thread)
        if not doubtful:
            self.has_come(thread)  # the error is what it came to
        return doubtful

    def _send_back(self, node: Node, thread: int) -> bool:
        """Send a thread back, if a name that the kernel has kept may have led it to a node.

        The kernel goes back once, and gives its program the second ESTALE. So nobody is sent back
        from a node that was looked up after the thread had been sent back, or that it meets again
        without a look-up, since it has come by no name then.
        """
        then = self._when(node)
        if then is None:
            return False
        at, told = self._sent_back.get(thread, (None, then.told))
        if then.told > told or at == node:
            return False
        if len(self._sent_back) >= MOST:  # most of them are of threads that have ended
            self._sent_back.clear()
        self._sent_back[thread] = node, self._told
        return True

    def has_come(self, thread: int) -> None:
        """A thread has met what it was on its way to, or a name that is not there."""
        if thread in self._sent_back:
            del self._sent_back[thread]

    def _when(self, node: Node) -> _When | None:
        then = self._nodes.get(node)
        return self._older_nodes.get(node) if then is None else then
