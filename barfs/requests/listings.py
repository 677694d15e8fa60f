"""Directories that are being listed."""

from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakValueDictionary

from barfs.nodes import Node


class Names(list[tuple[str, Node]]):
    """The names in a directory and their nodes."""


class Listing(NamedTuple):
    """A directory that a thread has opened, and its names as they were then."""

    directory: Node
    thread: int
    names: Names


class Listings(dict[int, Listing]):
    """Listings by handle. All who have listed a directory since it last changed share its names."""

    def __init__(self) -> None:
        super().__init__()
        self._last: WeakValueDictionary[Node, Names] = WeakValueDictionary()

    def begin(
        self, handle: int, directory: Node, thread: int, names: Iterable[tuple[str, Node]]
    ) -> None:
        """A thread lists a directory."""
        new = Names(names)
        last = self._last.get(directory)
        if last is None or last != new:
            last = self._last[directory] = new
        self[handle] = Listing(directory, thread, last)

    def has(self, directory: Node, thread: int) -> bool:
        """Whether a thread lists a directory."""
        return any((directory, thread) == one[:2] for one in self.values())
