"""The tree: what kinds of file there are, who has which names, and inode numbers.

A node says what a file is, not what lies behind it: `pci/0000:00:04.0/bar2` is one node, whichever
device sits at that address. A branch says all that there is to say of some kinds of node. The tree
puts branches together, and knows none of them by name.
"""

import enum
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import ClassVar, Final, NamedTuple, Protocol, TypeAlias

from barfs.access.files import Buffer
from barfs.errors import BadRequest, BarfsError, DeviceGone, NoSuchNode, ReadOnly
from barfs.journal.records import Subject
from barfs.names import PciAddress, ViewKind


class Type(enum.Enum):
    """What the kernel takes a node for."""

    DIRECTORY = enum.auto()
    FILE = enum.auto()
    LINK = enum.auto()


class Share(enum.Enum):
    """What others than the owner may ever be allowed: --mode opens a file no further."""

    NOBODY = enum.auto()
    READ = enum.auto()
    ALL = enum.auto()


@dataclass(frozen=True, eq=False)
class Kind:
    """What a node is. What is not said of a kind makes it private, read-only and short-lived."""

    name: str
    type: Type = Type.FILE
    share: Share = Share.NOBODY
    writable: bool = False
    steady: bool = False  # it is always there: the kernel may keep its name for a while
    grows: bool = False  # its size changes by itself
    recorded: bool = True  # the journal has its opens and its requests


class Node(NamedTuple):
    """A thing in the tree.

    `address` is the function that it belongs to, for a link the one that it points to; None where
    there is none. `bar` is the index of the BAR that it belongs to, 0 to 7. `view` is that of a
    file, and of a directory that shows all its files so. `start` and `size`, in bytes, are those of
    a part of something: a window, a range; a size of 0 is all of it. `name` is what it is called,
    where nothing else tells it apart.
    """

    kind: Kind
    address: PciAddress | None = None
    bar: int = 0
    view: ViewKind = ViewKind.RAW
    start: int = 0
    size: int = 0
    name: str = ""

    @property
    def function(self) -> PciAddress:
        """The address of a node that has one."""
        assert self.address is not None, self  # noqa: S101 - for the reader and the type checker
        return self.address


class Attributes(NamedTuple):
    """What stat shows of a node: bytes, and ns since 1970 where its time is its own."""

    size: int
    blksize: int = 4096
    modified: int | None = None


DIRECTORY: Final = Attributes(0)

# Gives room for so many bytes, whatever is in there.
Allocate: TypeAlias = Callable[[int], bytearray | memoryview]


class View(Protocol):
    """An open file. Offsets and lengths are bytes."""

    def read(self, offset: int, length: int, allocate: Allocate = bytearray, /) -> Buffer:
        """Up to `length` bytes, fewer only at the end; in room from `allocate`, if need be."""

    def write(self, offset: int, data: bytes) -> int:
        """How many bytes were written, fewer than asked only at the end; PastEnd at and past it."""

    def width_at(self, offset: int, length: int) -> int | None:
        """The width in bytes of all accesses of a request; None if they differ or have none."""

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        """The addresses on the bus of a request's accesses; empty if it makes none.

        For what the kernel accesses, they are offsets.
        """

    def close(self) -> None:
        """Give up what is behind it."""


class Found(NamedTuple):
    """A node that was looked up, and its attributes if they are known by now."""

    node: Node
    attributes: Attributes | None = None


class Branch:
    """What has names in some directories, and answers for the nodes of some kinds.

    A method that is not overridden refuses, or has nothing. None of them touches a device, but for
    `open`.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ()  # that it answers for
    under: ClassVar[tuple[Kind, ...]] = ()  # the directories that it has names in

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """Its listed names in a directory, and their nodes; none if the directory is gone."""
        del directory
        return iter(())

    def find(self, directory: Node, name: str) -> Found | None:
        """What it calls so in a directory; None if it has no such name.

        NoSuchNode and NoSuchAddress with words of its own, for a name that can only be its own.
        DeviceGone.
        """
        for listed, node in self.entries(directory):
            if listed == name:
                return Found(node)
        return None

    def names_of(self, address: PciAddress) -> Iterable[tuple[Node, str]]:
        """The directories and names that come and go with a function."""
        del address
        return ()

    # For nodes of its own kinds

    def missing(self, directory: Node, name: str) -> str:
        """What is to be said when nobody has a name in a directory."""
        return f"{self.path(directory)}: there is no {name!a}"

    def path(self, node: Node) -> str:
        """Where it is in the tree, for messages and the log."""
        raise NotImplementedError(node)

    def attributes(self, node: Node) -> Attributes:
        """See Tree."""
        raise NotImplementedError(node)

    def subject(self, node: Node) -> Subject:
        """What the log calls it."""
        device = str(node.address) if node.address else None
        return Subject(self.path(node), device, is_text=node.view.is_text)

    def why_read_only(self, node: Node) -> ReadOnly | None:
        """The refusal to write, though its kind is writable; None: it may be written."""
        del node
        return None

    def open(self, node: Node, *, writable: bool) -> View:
        """Open what is behind it; all that opening an aperture raises."""
        del writable
        raise BadRequest(" is not a file", what=self.path(node))

    def target(self, node: Node) -> str:
        """What a link points to."""
        raise BarfsError(" is not a link", what=self.path(node))


class Tree:
    """All names of a mount. The order of branches is the order of a listing.

    The first kind of the first branch is the root. Everything is computed when it is asked for, so
    that nothing can go stale.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        self._branches = branches
        self._owners = {kind: branch for branch in branches for kind in branch.kinds}
        self._under: defaultdict[Kind, list[Branch]] = defaultdict(list)
        for branch in branches:
            for kind in branch.under:
                self._under[kind].append(branch)
        self.kinds = tuple(self._owners)
        self.root = Node(self.kinds[0])

    def _owner(self, node: Node) -> Branch:
        try:
            return self._owners[node.kind]
        except KeyError:
            raise NoSuchNode(f"there is no {node.kind.name} in this mount") from None

    def _has_names(self, directory: Node) -> Sequence[Branch]:
        """The branches with names in a directory; NoSuchNode if it is none."""
        owner = self._owner(directory)
        if directory.kind.type is not Type.DIRECTORY:
            raise NoSuchNode(" is not a directory", what=owner.path(directory))
        return self._under[directory.kind]

    def _find(self, directory: Node, name: str) -> Found:
        try:
            for branch in self._has_names(directory):
                found = branch.find(directory, name)
                if found is not None:
                    return found
        except DeviceGone as error:
            raise error.restated(NoSuchNode) from error
        raise NoSuchNode(self._owner(directory).missing(directory, name))

    def lookup(self, directory: Node, name: str) -> Node:
        """The node of a name in a directory; NoSuchNode, NoSuchAddress."""
        return self._find(directory, name).node

    def find(self, directory: Node, name: str) -> tuple[Node, Attributes]:
        """As `lookup`, and `attributes` as they were then."""
        node, attributes = self._find(directory, name)
        return node, attributes or self.attributes(node)

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """Names and nodes of a directory; what vanishes meanwhile is left out."""
        for branch in self._has_names(directory):
            yield from branch.entries(directory)

    def names_of(self, address: PciAddress) -> Iterator[tuple[Node, str]]:
        """The directories and names that come and go with a function."""
        for branch in self._branches:
            yield from branch.names_of(address)

    def path(self, node: Node) -> str:
        """Where a node is in the tree, for messages."""
        return self._owner(node).path(node)

    def attributes(self, node: Node) -> Attributes:
        """What stat shows; DeviceGone. Reads neither the device nor config space."""
        return self._owner(node).attributes(node)

    def subject(self, node: Node) -> Subject:
        """What the log calls a node."""
        return self._owner(node).subject(node)

    def why_read_only(self, node: Node) -> ReadOnly | None:
        """The refusal to write a node; None if it may be, unless the whole mount is read-only."""
        owner = self._owner(node)
        if not node.kind.writable:
            return ReadOnly(" is read-only", what=owner.path(node))
        return owner.why_read_only(node)

    def is_writable(self, node: Node) -> bool:
        """Whether nothing says that a node may not be written."""
        return node.kind.writable and self.why_read_only(node) is None

    def open(self, node: Node, *, writable: bool) -> View:
        """Open what is behind a file; ReadOnly, BadRequest, all that opening an aperture raises."""
        if writable:
            refusal = self.why_read_only(node)
            if refusal is not None:
                raise refusal
        return self._owner(node).open(node, writable=writable)

    def target(self, link: Node) -> str:
        """What a link points to, as seen from its directory."""
        return self._owner(link).target(link)


# A number, from its low bits on. All that is in domain 0 has one of 32 bits, as programs need that
# were built without large files: stat gives them EOVERFLOW for more.
_KIND_BITS: Final = 6  # the kind's place among all kinds, from 1 on
_VIEW_BITS: Final = 5
_BAR_BITS: Final = 3
_HAS_ADDRESS: Final = 1 << 14
_FUNCTION: Final = 15  # bus, device and function: 16 bits
_NUMBERED: Final = 1 << 31  # all other bits then count
_DOMAIN: Final = 32


class InodeNumbers:
    """Nodes to numbers and back. The first of the `kinds` is that of the root, whose number is 1.

    A number is computed: kind, view, BAR, PCI address. Only what has a start, a size or a name
    does not fit; that is numbered in the order it is met, never twice, and kept while the kernel
    knows it.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        if len(kinds) >= 1 << _KIND_BITS:
            raise ValueError(f"{len(kinds)} kinds do not fit into {_KIND_BITS} bits")
        self._kinds = dict(enumerate(kinds, 1))
        self._places = {kind: place for place, kind in self._kinds.items()}
        self._computed = lru_cache(maxsize=1 << 14)(self._compute)
        self._fresh = map(self._nth, count())
        self._numbers: dict[Node, int] = {}
        self._nodes: dict[int, Node] = {}
        self._lookups: Counter[int] = Counter()

    @staticmethod
    def _nth(index: int) -> int:
        """The number of the node that is met after `index` others."""
        return index // _NUMBERED << _DOMAIN | _NUMBERED | index % _NUMBERED

    def number(self, node: Node) -> int:
        """The inode number of a node."""
        kind, address, bar, view, *part = node
        if any(part):
            number = self._numbers.get(node)
            if number is None:
                number = self._numbers[node] = next(self._fresh)
                self._nodes[number] = node
            return number
        number = (bar << _VIEW_BITS | view) << _KIND_BITS | self._places[kind]
        if address is not None:
            domain, bus, device, function = address
            place = (bus << 5 | device) << 3 | function
            number |= domain << _DOMAIN | place << _FUNCTION | _HAS_ADDRESS
        return number

    def _compute(self, number: int) -> Node:
        """What `number` makes a number of, backwards."""
        rest, kind = divmod(number, 1 << _KIND_BITS)
        rest, view = divmod(rest, 1 << _VIEW_BITS)
        bar = rest % (1 << _BAR_BITS)
        place = number >> _FUNCTION
        address = None
        if number & _HAS_ADDRESS:
            domain = number >> _DOMAIN
            address = PciAddress(domain, place >> 8 & 0xFF, place >> 3 & 0x1F, place & 7)
        if (
            kind not in self._kinds
            or view not in frozenset(ViewKind)
            or (address is None and place)
        ):
            raise NoSuchNode(f"inode {number:#x} is not known")
        return Node(self._kinds[kind], address, bar, ViewKind(view))

    def node(self, number: int) -> Node:
        """The node of an inode number; NoSuchNode for one that was never given out."""
        if number & _NUMBERED:
            try:
                return self._nodes[number]
            except KeyError:
                raise NoSuchNode(f"inode {number:#x} is not known") from None
        return self._computed(number)

    def remember(self, number: int) -> None:
        """The kernel was told of a node once more."""
        if number & _NUMBERED:
            self._lookups[number] += 1

    def forget(self, number: int, times: int) -> None:
        """The kernel has forgotten that many of the times it was told."""
        if number & _NUMBERED:
            self._lookups[number] -= times
            self.settle(number)

    def settle(self, number: int) -> None:
        """Drop a node that the kernel does not know."""
        if number & _NUMBERED and self._lookups[number] <= 0:
            del self._lookups[number]
            node = self._nodes.pop(number, None)
            if node is not None:
                del self._numbers[node]

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._nodes)
