"""The tree: what kinds of file there are, who has which names, and inode numbers.

A node says what a file is, and not what lies behind it: `pci/0000:00:04.0/bar2` is one node,
whatever device is at that address. A branch knows everything about some kinds of node. The tree
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
from barfs.errors import Access, BadRequest, BarfsError, DeviceGone, NoSuchNode, OnlyRead, ReadOnly
from barfs.journal.records import Subject
from barfs.names import PciAddress, ViewKind


class Type(enum.Enum):
    """What a node is to the kernel."""

    DIRECTORY = enum.auto()
    FILE = enum.auto()
    LINK = enum.auto()


class Share(enum.Enum):
    """The most that --mode may allow to others than the owner."""

    NOBODY = enum.auto()
    READ = enum.auto()
    ALL = enum.auto()


class Lasting(enum.Enum):
    """What has to change before a name can mean something else, or nothing."""

    NOT_KNOWN = enum.auto()
    WITH_FUNCTION = enum.auto()  # the function
    WITH_MAP = enum.auto()  # the function, or a register map


@dataclass(frozen=True, eq=False)
class Kind:
    """What a node is. A kind that says nothing else is private, read-only and short-lived."""

    name: str
    type: Type = Type.FILE
    share: Share = Share.NOBODY
    writable: bool = False
    steady: bool = False  # always there, so that the kernel may keep its name for a while
    lasting: Lasting = Lasting.NOT_KNOWN
    grows: bool = False  # the size changes by itself
    recorded: bool = True  # opens and requests are recorded in the journal
    waits: bool = False  # a request may have to wait for another one, so it is made in a thread


class Node(NamedTuple):
    """A thing in the tree.

    `address` is the function that it belongs to, or that a link points to. None if there is none.
    `bar` is the index of its BAR, 0 to 7. `view` is the view of a file, or of all files in a
    directory. `start` and `size` are in bytes; they are those of a window or a range. A size of 0
    means the whole. `name` is its name, if nothing else tells it from others.
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
    """What stat shows of a node: sizes in bytes. `modified` is in ns since 1970."""

    size: int
    blksize: int = 4096
    modified: int | None = None


DIRECTORY: Final = Attributes(0)

# Gives room for so many bytes, which need not be cleared.
Allocate: TypeAlias = Callable[[int], bytearray | memoryview]


class Lines(Protocol):
    """The form of the lines of text that are written to a file."""

    def check(self, text: bytes, *, ends: bool) -> None:
        """BadRequest if a text is no line, or can't be the beginning of one if it does not end."""


class View(Protocol):
    """An open file. Offsets and lengths are bytes.

    A view that inherits from this refuses to be written, and makes no accesses of its own, unless
    it says otherwise.
    """

    @property
    def way(self) -> str:
        """By which way its bytes are reached. Empty if there is only one."""
        return ""

    def read(self, offset: int, length: int, allocate: Allocate = bytearray, /) -> Buffer:
        """Up to `length` bytes, fewer only at the end. `allocate` gives room, if it is needed."""

    def write(self, offset: int, data: bytes) -> int:
        """How many bytes were written, fewer only at the end. PastEnd at the end and beyond."""
        raise OnlyRead(" of a read-only file", during=Access("write", offset, len(data)))

    def width_at(self, offset: int, length: int) -> int | None:
        """The width of all accesses of a request, in bytes. None if they differ or have none."""
        del offset, length
        return None

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        """The bus addresses that a request accesses. Empty if it makes no accesses.

        For files that the kernel accesses itself they are offsets.
        """
        del offset, length, writing
        return range(0)

    def close(self) -> None:
        """Give up everything behind it."""
        return

    @property
    def text_size(self) -> int | None:
        """How long its text is, in bytes, where that does not show before it is open."""
        return None

    @property
    def lines(self) -> Lines | None:
        """How what is written to it has to look. None: bytes are written to it, if anything."""
        return None

    @property
    def raw(self) -> int | None:
        """What the last write of a register by name wrote into it, if that was one access."""
        return None


class Found(NamedTuple):
    """A node that was looked up, and its attributes if they are known already."""

    node: Node
    attributes: Attributes | None = None


class Branch:
    """Has names in some directories, and answers for the nodes of some kinds.

    A method that is not overridden refuses, or has nothing. Only `open` may touch a device.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ()  # the kinds that it answers for
    under: ClassVar[tuple[Kind, ...]] = ()  # the directories that it has names in

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """Its listed names in a directory, and their nodes. None if the directory is gone."""
        del directory
        return iter(())

    def find(self, directory: Node, name: str) -> Found | None:
        """The node of a name in a directory. None if the branch has no such name.

        For a name that only this branch could have, it raises NoSuchNode or NoSuchAddress with
        words of its own. Raises DeviceGone.
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
        """The message when no branch has a name in a directory."""
        return f"{self.path(directory)}: there is no {name!a}"

    def path(self, node: Node) -> str:
        """The path of a node in the tree, for messages and the log."""
        raise NotImplementedError(node)

    def attributes(self, node: Node) -> Attributes:
        """What stat shows. Raises DeviceGone. Reads neither the device nor config space."""
        raise NotImplementedError(node)

    def subject(self, node: Node) -> Subject:
        """What the log calls a node."""
        device = str(node.address) if node.address else None
        return Subject(self.path(node), device, is_text=node.view.is_text)

    def why_read_only(self, node: Node) -> ReadOnly | None:
        """Why a node of a writable kind may not be written. None if it may."""
        del node
        return None

    def open(self, node: Node, *, writable: bool) -> View:
        """Open a file. Raises everything that opening an aperture raises."""
        del writable
        raise BadRequest(" is not a file", what=self.path(node))

    def target(self, node: Node) -> str:
        """The path that a link points to."""
        raise BarfsError(" is not a link", what=self.path(node))


class Tree:
    """All names of a mount. A listing has the order of the branches.

    The first kind of the first branch is the root. Everything is computed when it is asked for, so
    nothing can go stale.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        self._branches = branches
        self._owners: dict[Kind, Branch] = {}
        self._under: defaultdict[Kind, list[Branch]] = defaultdict(list)
        for branch in branches:
            for kind in branch.kinds:
                if kind in self._owners:
                    raise ValueError(f"two branches answer for {kind.name}")
                self._owners[kind] = branch
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
        """The branches that have names in a directory. NoSuchNode if it is no directory."""
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
        """The node of a name in a directory. Raises NoSuchNode and NoSuchAddress."""
        return self._find(directory, name).node

    def find(self, directory: Node, name: str) -> tuple[Node, Attributes]:
        """The node of a name, as `lookup`, and its attributes at that moment."""
        node, attributes = self._find(directory, name)
        return node, attributes or self.attributes(node)

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """Names and nodes of a directory. Names that vanish meanwhile are left out."""
        for branch in self._has_names(directory):
            yield from branch.entries(directory)

    def names_of(self, address: PciAddress) -> Iterator[tuple[Node, str]]:
        """The directories and names that come and go with a function."""
        for branch in self._branches:
            yield from branch.names_of(address)

    def path(self, node: Node) -> str:
        """The path of a node in the tree, for messages."""
        return self._owner(node).path(node)

    def attributes(self, node: Node) -> Attributes:
        """What stat shows. Raises DeviceGone. Reads neither the device nor config space."""
        return self._owner(node).attributes(node)

    def subject(self, node: Node) -> Subject:
        """What the log calls a node."""
        return self._owner(node).subject(node)

    def why_read_only(self, node: Node) -> OnlyRead | ReadOnly | None:
        """Why a node may not be written. None if it may, unless the whole mount is read-only."""
        owner = self._owner(node)
        if not node.kind.writable:
            return OnlyRead(" is read-only", what=owner.path(node))
        return owner.why_read_only(node)

    def is_writable(self, node: Node) -> bool:
        """Whether a node may be written."""
        return node.kind.writable and self.why_read_only(node) is None

    def open(self, node: Node, *, writable: bool) -> View:
        """Open a file. Raises why_read_only's, BadRequest, and what opening an aperture raises."""
        if writable:
            refusal = self.why_read_only(node)
            if refusal is not None:
                raise refusal
        return self._owner(node).open(node, writable=writable)

    def target(self, link: Node) -> str:
        """The path that a link points to, as seen from its directory."""
        return self._owner(link).target(link)


# The parts of a number, from its low bits on. Everything in domain 0 has a number of 32 bits.
# Programs that were built without large files need that: stat gives them EOVERFLOW for larger
# numbers.
_KIND_BITS: Final = 6  # the kind's place among all kinds, from 1 on
_VIEW_BITS: Final = 5
_BAR_BITS: Final = 3
_HAS_ADDRESS: Final = 1 << 14
_FUNCTION: Final = 15  # bus, device and function: 16 bits
_NUMBERED: Final = 1 << 31  # if it is set, all other bits are a count
_DOMAIN: Final = 32


# How many names of numbered nodes the kernel may know. Each takes some 600 bytes here.
MOST_NAMED: Final = 1 << 13

# The number of a directory, and a name in it.
Name: TypeAlias = tuple[int, bytes]


class InodeNumbers:
    """Nodes to numbers and back. The first of the `kinds` is that of the root, whose number is 1.

    A number is computed from kind, view, BAR and PCI address. A node with a start, a size or a name
    does not fit. Such nodes are numbered in the order in which they are met. No number is given
    twice, and a number is kept as long as the kernel knows the node.

    There is no end to names with a start and a size, and the kernel forgets names only when it
    needs memory. So it has to be told of the oldest ones beyond MOST_NAMED: see `remember`.
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
        self._names: dict[int, Name] = {}  # of numbered nodes, the oldest first

    @staticmethod
    def _nth(index: int) -> int:
        """The number of the node that is met after `index` others."""
        return index // _NUMBERED << _DOMAIN | _NUMBERED | index % _NUMBERED

    def number(self, node: Node) -> int:
        """The inode number of a node."""
        kind, address, bar, view, start, size, name = node
        if start or size or name:
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
        """The node from which `number` computes a number."""
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
        """The node of an inode number. NoSuchNode for a number that was never given out."""
        if number & _NUMBERED:
            try:
                return self._nodes[number]
            except KeyError:
                raise NoSuchNode(f"inode {number:#x} is not known") from None
        return self._computed(number)

    def remember(self, number: int, name: Name | None = None) -> Name | None:
        """Note that the kernel was told of a node once more, by a name if it asked for one.

        Returns a name that it is to forget now, if it was told of too many.
        """
        if number & _NUMBERED:
            self._lookups[number] += 1
            if name is not None:
                self._names[number] = name
                if len(self._names) > MOST_NAMED:
                    return self._names.pop(next(iter(self._names)))
        return None

    def forget(self, number: int, times: int) -> None:
        """Note that the kernel has forgotten so many of the times that it was told."""
        if number & _NUMBERED:
            self._lookups[number] -= times
            self.settle(number)

    def settle(self, number: int) -> None:
        """Drop a node that the kernel does not know."""
        if number & _NUMBERED and self._lookups[number] <= 0:
            del self._lookups[number]
            self._names.pop(number, None)
            node = self._nodes.pop(number, None)
            if node is not None:
                del self._numbers[node]

    def __len__(self) -> int:
        """How many numbered nodes are kept."""
        return len(self._nodes)
