"""The tree: which names exist, what they are, and their inode numbers.

Everything is computed from sysfs and /proc when asked, so nothing can go stale, and nothing here
touches a device. A node says what a file is, not what lies behind it: `pci/0000:00:04.0/bar2` is
one node, whichever device sits at that address.
"""

import enum
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Final, NamedTuple

from barfs.devmem import PhysicalMemory
from barfs.errors import BarfsError, DeviceGone, NoSuchNode
from barfs.names import AddressRange, LinkName, PciAddress, parse_bar
from barfs.pci import N_BARS, PciBus

# st_blksize. Tools that buffer ask for this much at a time: on registers no more than one access,
# elsewhere enough to be fast.
REGISTER_BLKSIZE: Final = 4
MEMORY_BLKSIZE: Final = 1 << 20

ROOT_INODE: Final = 1  # FUSE_ROOT_ID


class Kind(enum.IntEnum):
    """What a node is; the low byte of its inode number, so the numbers are here to stay."""

    ROOT = 1
    PCI = 2
    PHYS = 3
    FUNCTION = 4
    LINK = 5
    CONFIG = 6
    PHYS_FILE = 7
    BAR0 = 8  # ... BAR5 = 13
    BAR1 = 9
    BAR2 = 10
    BAR3 = 11
    BAR4 = 12
    BAR5 = 13


FIXED_DIRECTORIES: Final = frozenset((Kind.ROOT, Kind.PCI, Kind.PHYS))
DIRECTORIES: Final = FIXED_DIRECTORIES | {Kind.FUNCTION}


class Node(NamedTuple):
    """A thing in the tree.

    `address` is the function that it belongs to, for a link the one that it points to; None in
    `phys` and above. `start` and `size` are those of a file in `phys`, in bytes.
    """

    kind: Kind
    address: PciAddress | None = None
    start: int = 0
    size: int = 0

    @property
    def function(self) -> PciAddress:
        """The address of a node that has one."""
        assert self.address is not None, self  # noqa: S101 - for the reader and the type checker
        return self.address

    @property
    def bar(self) -> int:
        """The index of a BAR node."""
        return self.kind - Kind.BAR0

    @property
    def path(self) -> str:
        """Where it is in the tree, for messages."""
        match self.kind:
            case Kind.ROOT:
                return "/"
            case Kind.PCI | Kind.PHYS:
                return self.kind.name.lower()
            case Kind.FUNCTION | Kind.LINK:
                return f"pci/{self.address}"
            case Kind.CONFIG:
                return f"pci/{self.address}/config"
            case Kind.PHYS_FILE:
                return f"phys/{self.start:08x}-{self.start + self.size - 1:08x}"
            case _:
                return f"pci/{self.address}/bar{self.bar}"


ROOT: Final = Node(Kind.ROOT)
PCI: Final = Node(Kind.PCI)
PHYS: Final = Node(Kind.PHYS)
_FIXED: Final = {"pci": PCI, "phys": PHYS}


class Attributes(NamedTuple):
    """What stat shows of a node."""

    size: int
    blksize: int


class InodeNumbers:
    """Nodes to numbers and back.

    A number is computed: the kind in the low byte, the PCI address above. Only ranges of physical
    addresses don't fit; those are numbered in the order they are met, never twice, and kept while
    the kernel knows them.
    """

    _NUMBERED: Final = 1 << 62

    def __init__(self) -> None:
        self._fresh = count(self._NUMBERED)
        self._numbers: dict[Node, int] = {}
        self._nodes: dict[int, Node] = {}
        self._lookups: Counter[int] = Counter()

    def number(self, node: Node) -> int:
        """The inode number of a node."""
        if node.kind is Kind.PHYS_FILE:
            number = self._numbers.get(node)
            if number is None:
                number = self._numbers[node] = next(self._fresh)
                self._nodes[number] = node
            return number
        domain, bus, device, function = node.address or (0, 0, 0, 0)
        return (((domain << 8 | bus) << 5 | device) << 3 | function) << 8 | node.kind

    def node(self, number: int) -> Node:
        """The node of an inode number; NoSuchNode for one that was never given out."""
        if number & self._NUMBERED:
            try:
                return self._nodes[number]
            except KeyError:
                raise NoSuchNode(f"inode {number:#x} is not known") from None
        try:
            kind, place = Kind(number & 0xFF), number >> 8
        except ValueError:
            raise NoSuchNode(f"inode {number:#x} is not known") from None
        if kind in FIXED_DIRECTORIES:
            return Node(kind)
        return Node(kind, PciAddress(place >> 16, place >> 8 & 0xFF, place >> 3 & 0x1F, place & 7))

    def remember(self, number: int) -> None:
        """The kernel was told of a node once more."""
        if number & self._NUMBERED:
            self._lookups[number] += 1

    def forget(self, number: int, times: int) -> None:
        """The kernel has forgotten that many of the times it was told."""
        if number & self._NUMBERED:
            self._lookups[number] -= times
            self.settle(number)

    def settle(self, number: int) -> None:
        """Drop a node that the kernel does not know."""
        if number & self._NUMBERED and self._lookups[number] <= 0:
            del self._lookups[number]
            node = self._nodes.pop(number, None)
            if node is not None:
                del self._numbers[node]

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._nodes)


class Tree:
    """Names and attributes over one machine's PCI functions and physical memory."""

    def __init__(self, pci: PciBus, memory: PhysicalMemory) -> None:
        self.pci = pci
        self.memory = memory

    def lookup(self, parent: Node, name: str) -> Node:
        """The node of a name in a directory; NoSuchNode, NoSuchAddress."""
        match parent.kind:
            case Kind.ROOT:
                return _FIXED.get(name) or self._lookup_link(name)
            case Kind.PCI:
                address = PciAddress.parse(name)
                if address is None or not self.pci.exists(address):
                    raise NoSuchNode(f"pci: there is no function {name!a}")
                return Node(Kind.FUNCTION, address)
            case Kind.PHYS:
                wanted = AddressRange.parse(name)
                if wanted is None:
                    raise NoSuchNode(
                        f"phys: {name!a} is no <addr>, <addr>+<length> or <start>-<end> in hex"
                    )
                start, size = self.memory.resolve(wanted)
                return Node(Kind.PHYS_FILE, start=start, size=size)
            case Kind.FUNCTION:
                return self._lookup_file(parent.function, name)
            case _:
                raise NoSuchNode(f"{parent.path} is not a directory")

    def _lookup_link(self, name: str) -> Node:
        wanted = LinkName.parse(name)
        if wanted is None:
            raise NoSuchNode(f"there is no {name!a}; a device is <vendor>:<device>, lower case")
        instance = 0
        for address in self.pci.addresses():
            try:
                if self.pci.id(address) != wanted.id:
                    continue
                if wanted.subsystem and self.pci.subsystem(address) != wanted.subsystem:
                    continue
            except DeviceGone:
                continue
            if instance == wanted.instance:
                return Node(Kind.LINK, address)
            instance += 1
        raise NoSuchNode(f"there is no device {name} ({instance} of that name)")

    def _lookup_file(self, address: PciAddress, name: str) -> Node:
        index = parse_bar(name)
        try:
            if index is not None:
                self.pci.bar(address, index)
                return Node(Kind(Kind.BAR0 + index), address)
            if name == "config":
                self.pci.config_size(address)
                return Node(Kind.CONFIG, address)
        except DeviceGone as error:
            raise NoSuchNode(str(error)) from error
        raise NoSuchNode(f"pci/{address}: there is no {name!a}")

    def list(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """Names and nodes of a directory; what vanishes meanwhile is left out."""
        match directory.kind:
            case Kind.ROOT:
                yield from _FIXED.items()
                yield from self._links()
            case Kind.PCI:
                for address in self.pci.addresses():
                    if self.pci.exists(address):
                        yield str(address), Node(Kind.FUNCTION, address)
            case Kind.PHYS:
                for entry in self.memory.ranges():
                    size = entry.end + 1 - entry.start
                    yield str(entry), Node(Kind.PHYS_FILE, start=entry.start, size=size)
            case Kind.FUNCTION:
                yield from self._files(directory.function)
            case _:
                raise NoSuchNode(f"{directory.path} is not a directory")

    def _files(self, address: PciAddress) -> Iterator[tuple[str, Node]]:
        try:
            bars = self.pci.bars(address)
            self.pci.config_size(address)
        except DeviceGone:
            return
        for index in range(N_BARS):
            if index in bars:
                yield f"bar{index}", Node(Kind(Kind.BAR0 + index), address)
        yield "config", Node(Kind.CONFIG, address)

    def _links(self) -> Iterator[tuple[str, Node]]:
        instances: Counter[object] = Counter()
        for address in self.pci.addresses():
            try:
                device = self.pci.id(address)
            except DeviceGone:
                continue
            if device is not None:
                yield str(LinkName(device, None, instances[device])), Node(Kind.LINK, address)
                instances[device] += 1

    def target(self, link: Node) -> str:
        """What a link points to, from the root."""
        if link.kind is not Kind.LINK:
            raise BarfsError(f"{link.path} is not a link")
        return link.path

    def attributes(self, node: Node) -> Attributes:
        """Size and block size in bytes; DeviceGone. Reads neither the device nor config space."""
        match node.kind:
            case Kind.ROOT | Kind.PCI | Kind.PHYS:
                return Attributes(0, 4096)
            case Kind.FUNCTION:
                if not self.pci.exists(node.function):
                    raise DeviceGone(f"{node.path}: the device is gone")
                return Attributes(0, 4096)
            case Kind.LINK:
                return Attributes(len(node.path), 4096)
            case Kind.CONFIG:
                return Attributes(self.pci.config_size(node.function), REGISTER_BLKSIZE)
            case Kind.PHYS_FILE:
                ram = self.memory.is_ram(node.start, node.size)
                return Attributes(node.size, MEMORY_BLKSIZE if ram else REGISTER_BLKSIZE)
            case _:
                resource = self.pci.bar(node.function, node.bar)
                return Attributes(
                    resource.size,
                    MEMORY_BLKSIZE if resource.prefetchable else REGISTER_BLKSIZE,
                )
