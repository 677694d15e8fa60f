"""The tree: which names exist, what they are, and their inode numbers.

Everything is computed from sysfs and /proc when asked, so nothing can go stale, and nothing here
touches a device. A node says what a file is, not what lies behind it: `pci/0000:00:04.0/bar2` is
one node, whichever device sits at that address.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import count, islice
from typing import Final, NamedTuple

from barfs.access import contract
from barfs.devmem import PhysicalMemory
from barfs.diagnosis.causes import Machine
from barfs.errors import BarfsError, DeviceGone, NoSuchNode
from barfs.journal.records import Journal, Stream
from barfs.machine.resources import Resource, check_window
from barfs.names import AddressRange, BarName, LinkName, PciAddress
from barfs.spans.combining import Combining
from barfs.spans.enabling import Decoder
from barfs.spans.ways import Ways

# st_blksize. Tools that buffer ask for this much at a time: on registers no more than one access,
# elsewhere enough to be fast.
REGISTER_BLKSIZE: Final = 4
MEMORY_BLKSIZE: Final = 1 << 20
TEXT_BLKSIZE: Final = 4096

ROOT_INODE: Final = 1  # FUSE_ROOT_ID


class Kind(enum.IntEnum):
    """What a node is; the low byte of its inode number."""

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
    ROM = 14
    INFO = 15
    LOG = 16
    STATUS = 17


class ViewKind(enum.IntEnum):
    """How a BAR or a physical range is shown; the next four bits of the inode number."""

    RAW = 0
    U8 = 1
    U16 = 2
    U32 = 3
    U64 = 4
    X8 = 5
    X16 = 6
    X32 = 7
    X64 = 8

    @property
    def is_text(self) -> bool:
        """One register as a line of text."""
        return self >= ViewKind.X8

    @property
    def width(self) -> int:
        """Of each access, in bytes; not for RAW."""
        return 1 << (self - 1) % 4


# By the names of their directories.
VIEWS: Final = {kind.name.lower(): kind for kind in ViewKind if kind}

FIXED_DIRECTORIES: Final = frozenset((Kind.ROOT, Kind.PCI, Kind.PHYS))
WITHOUT_FUNCTION: Final = FIXED_DIRECTORIES | {Kind.LOG, Kind.STATUS}
BARS: Final = frozenset(kind for kind in Kind if kind.name.startswith("BAR"))
READ_ONLY: Final = frozenset((Kind.ROM, Kind.INFO, Kind.LOG, Kind.STATUS))
# What a function has whatever its resources are.
_PLAIN_PARTS: Final = frozenset((Kind.FUNCTION, Kind.ROM, Kind.INFO))
DIRECTORIES: Final = FIXED_DIRECTORIES | {Kind.FUNCTION}
# Regular files whose size does not change by itself.
FILES: Final = frozenset(Kind) - DIRECTORIES - {Kind.LINK, Kind.LOG}


class Node(NamedTuple):
    """A thing in the tree.

    `address` is the function that it belongs to, for a link the one that it points to; None in
    `phys` and above. `start` and `size`, in bytes, are those of a file in `phys` or of a window
    into a BAR; a BAR without a window has a size of 0 here. `view` is that of a file, and of a
    directory that shows all its files so.
    """

    kind: Kind
    address: PciAddress | None = None
    start: int = 0
    size: int = 0
    view: ViewKind = ViewKind.RAW

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
        view = f"/{self.view.name.lower()}" if self.view else ""
        match self.kind:
            case Kind.ROOT:
                return "/"
            case Kind.PCI | Kind.LOG | Kind.STATUS:
                return self.kind.name.lower()
            case Kind.PHYS:
                return f"phys{view}"
            case Kind.PHYS_FILE:
                return f"phys{view}/{self.start:08x}-{self.start + self.size - 1:08x}"
            case Kind.FUNCTION | Kind.LINK:
                return f"pci/{self.address}{view}"
            case Kind.CONFIG | Kind.ROM | Kind.INFO:
                return f"pci/{self.address}/{self.kind.name.lower()}"
            case _:
                window = f"@{self.start:x}+{self.size:x}" if self.size else ""
                return f"pci/{self.address}{view}/bar{self.bar}{window}"


ROOT: Final = Node(Kind.ROOT)
PCI: Final = Node(Kind.PCI)
PHYS: Final = Node(Kind.PHYS)
LOG: Final = Node(Kind.LOG)
STATUS: Final = Node(Kind.STATUS)
_FIXED: Final = {"pci": PCI, "phys": PHYS, "log": LOG, "status": STATUS}


class Attributes(NamedTuple):
    """What stat shows of a node."""

    size: int
    blksize: int


_OF_DIRECTORIES: Final = Attributes(0, 4096)


@lru_cache(maxsize=1 << 14)
def _node_of(number: int) -> Node:
    """What InodeNumbers makes a number of, backwards."""
    try:
        kind, view, place = Kind(number & 0xFF), ViewKind(number >> 8 & 0xF), number >> 12
    except ValueError:
        raise NoSuchNode(f"inode {number:#x} is not known") from None
    if kind in WITHOUT_FUNCTION:
        return Node(kind, view=view)
    address = PciAddress(place >> 16, place >> 8 & 0xFF, place >> 3 & 0x1F, place & 7)
    return Node(kind, address, view=view)


class InodeNumbers:
    """Nodes to numbers and back.

    A number is computed: kind, view, PCI address. Only ranges of physical addresses and windows
    don't fit; those are numbered in the order they are met, never twice, and kept while the kernel
    knows them.
    """

    _NUMBERED: Final = 1 << 62

    def __init__(self) -> None:
        self._fresh = count(self._NUMBERED)
        self._numbers: dict[Node, int] = {}
        self._nodes: dict[int, Node] = {}
        self._lookups: Counter[int] = Counter()

    def number(self, node: Node) -> int:
        """The inode number of a node."""
        if node.size:
            number = self._numbers.get(node)
            if number is None:
                number = self._numbers[node] = next(self._fresh)
                self._nodes[number] = node
            return number
        domain, bus, device, function = node.address or (0, 0, 0, 0)
        place = ((domain << 8 | bus) << 5 | device) << 3 | function
        return (place << 4 | node.view) << 8 | node.kind

    def node(self, number: int) -> Node:
        """The node of an inode number; NoSuchNode for one that was never given out."""
        if number & self._NUMBERED:
            try:
                return self._nodes[number]
            except KeyError:
                raise NoSuchNode(f"inode {number:#x} is not known") from None
        return _node_of(number)

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
    """Names and attributes over one machine, and over its memory if that is of interest.

    `log` shows the journal, `decoder` is what turns decoding on, and `combining` knows what is
    mapped write-combining, if either is wanted; `ways` lead to bytes.
    """

    def __init__(
        self,
        machine: Machine,
        ways: Ways,
        journal: Journal | None = None,
        *,
        decoder: Decoder | None = None,
        combining: Combining | None = None,
    ) -> None:
        self.machine = machine
        self.pci = machine.pci
        self.ways = ways
        self.combining = combining
        self.journal = journal or Journal()
        self.stream = Stream(self.journal)
        self.decoder = decoder
        self._fixed = {
            name: node for name, node in _FIXED.items() if node is not PHYS or machine.phys
        }

    @property
    def memory(self) -> PhysicalMemory:
        """What is in `phys`; NoSuchNode if there is none."""
        if not self.machine.phys:
            raise NoSuchNode("there is no phys in this mount (--no-phys)")
        return self.machine.memory

    def is_writable(self, node: Node) -> bool:
        """Whether no rule makes a file's device read-only."""
        ruled = node.kind in BARS or node.kind is Kind.CONFIG
        return not (ruled and self.pci.is_read_only(node.function))

    def lookup(self, parent: Node, name: str) -> Node:
        """The node of a name in a directory; NoSuchNode, NoSuchAddress."""
        return self._lookup(parent, name)[0]

    def find(self, parent: Node, name: str) -> tuple[Node, Attributes]:
        """As `lookup`, and `attributes` as they were then."""
        node, attributes = self._lookup(parent, name)
        return node, attributes or self.attributes(node)

    def _lookup(self, parent: Node, name: str) -> tuple[Node, Attributes | None]:
        """The node, and its attributes if they are known by now."""
        match parent.kind:
            case Kind.ROOT:
                return self._fixed.get(name) or self._lookup_link(name), None
            case Kind.PCI:
                address = PciAddress.parse(name)
                if address is None or not self.pci.exists(address):
                    raise NoSuchNode(f"pci: there is no function {name!a}")
                return Node(Kind.FUNCTION, address), _OF_DIRECTORIES
            case Kind.PHYS:
                return self._lookup_range(parent, name), None
            case Kind.FUNCTION:
                try:
                    return self._lookup_file(parent, name)
                except DeviceGone as error:
                    raise NoSuchNode(str(error)) from error
            case _:
                raise NoSuchNode(f"{parent.path} is not a directory")

    def _lookup_link(self, name: str) -> Node:
        wanted = LinkName.parse(name)
        if wanted is None:
            raise NoSuchNode(f"there is no {name!a}; a device is <vendor>:<device>, lower case")
        for fresh in (False, True):
            found = self._meant(wanted, fresh=fresh)
            if found is not None:
                return Node(Kind.LINK, found)
        others = sum(1 for _ in self._named(wanted, fresh=False))
        raise NoSuchNode(f"there is no device {name} ({others} of that name)")

    def _meant(self, wanted: LinkName, *, fresh: bool) -> PciAddress | None:
        """The function of a link's name; None if there is none, or it has another id by now."""
        found = next(islice(self._named(wanted, fresh=fresh), wanted.instance, None), None)
        try:
            return found if found and self.pci.id(found) == wanted.id else None
        except DeviceGone:
            return None

    def _named(self, wanted: LinkName, *, fresh: bool) -> Iterable[PciAddress]:
        """The functions of a link's name, whatever its instance."""

        def fits(address: PciAddress) -> bool:
            try:
                return self.pci.subsystem(address) == wanted.subsystem
            except DeviceGone:
                return False

        candidates = self.pci.with_id(wanted.id, fresh=fresh)
        return filter(fits, candidates) if wanted.subsystem else candidates

    def _lookup_range(self, directory: Node, name: str) -> Node:
        if not directory.view and name in VIEWS:
            return Node(Kind.PHYS, view=VIEWS[name])
        wanted = AddressRange.parse(name)
        if wanted is None:
            raise NoSuchNode(
                f"phys: {name!a} is no <addr>, <addr>+<length> or <start>-<end> in hex"
            )
        start, size = self.memory.resolve(wanted)
        return Node(Kind.PHYS_FILE, start=start, size=size, view=directory.view)

    def _lookup_file(self, directory: Node, name: str) -> tuple[Node, Attributes | None]:
        wanted = BarName.parse(name)
        if wanted is None:
            if name in self._file_names(directory):
                return self._file(directory, name), None
            raise NoSuchNode(f"{directory.path}: there is no {name!a}")
        resource = self.pci.bar(directory.function, wanted.bar)
        kind = Kind(Kind.BAR0 + wanted.bar)
        if wanted.window is None:
            node = Node(kind, directory.address, view=directory.view)
            return node, _attributes_of_bar(node, resource)
        start, end = wanted.window
        if end is None:
            limit = start + directory.view.width if directory.view.is_text else resource.size
            end = max(start, min(limit, resource.size) - 1)
        size = end + 1 - start
        check_window(f"{directory.path}/{name}", start, size, resource.size)
        node = Node(kind, directory.address, start, size, directory.view)
        return node, _attributes_of_bar(node, resource)

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """Names and nodes of a directory; what vanishes meanwhile is left out."""
        match directory.kind:
            case Kind.ROOT:
                yield from self._fixed.items()
                yield from self._links()
            case Kind.PCI:
                for address in self.pci.addresses():
                    if self.pci.exists(address):
                        yield str(address), Node(Kind.FUNCTION, address)
            case Kind.PHYS:
                yield from self._ranges(directory.view)
            case Kind.FUNCTION:
                for name in self._file_names(directory):
                    yield name, self._file(directory, name)
            case _:
                raise NoSuchNode(f"{directory.path} is not a directory")

    def _ranges(self, view: ViewKind) -> Iterator[tuple[str, Node]]:
        if not view:
            for name, kind in VIEWS.items():
                yield name, Node(Kind.PHYS, view=kind)
        for entry in self.memory.ranges():
            size = entry.end + 1 - entry.start
            yield str(entry), Node(Kind.PHYS_FILE, start=entry.start, size=size, view=view)

    def _file_names(self, directory: Node) -> list[str]:
        """What a function's directory has; nothing if it is gone."""
        address = directory.function
        try:
            bars = [f"bar{index}" for index in self.pci.bars(address)]
            self.pci.config_size(address)
        except DeviceGone:
            return []
        if directory.view:
            return bars
        rom = ["rom"] if self.pci.rom_size(address) else []
        return [*bars, "config", *rom, "info", *VIEWS]

    @staticmethod
    def _file(directory: Node, name: str) -> Node:
        """The node of one of those names."""
        if name in VIEWS:
            return Node(Kind.FUNCTION, directory.address, view=VIEWS[name])
        return Node(Kind[name.upper()], directory.address, view=directory.view)

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

    def functions_within(self, node: Node) -> list[tuple[int, int, PciAddress]]:
        """Of a physical range: what of it belongs to functions, as offsets, the end not included.

        As /proc/iomem names them. Touches no memory.
        """
        found = []
        for entry in self.memory.within(node.start, node.size):
            address = PciAddress.parse(entry.name)
            if address is not None and self.pci.everything.exists(address):
                found.append((entry.start - node.start, entry.end + 1 - node.start, address))
        return found

    def attributes(self, node: Node) -> Attributes:
        """Size and block size in bytes; DeviceGone. Reads neither the device nor config space."""
        if node.kind in _PLAIN_PARTS and not self.pci.exists(node.function):
            raise DeviceGone(f"{node.path}: the device is gone")
        match node.kind:
            case Kind.ROOT | Kind.PCI | Kind.PHYS | Kind.FUNCTION:
                return _OF_DIRECTORIES
            case Kind.LINK:
                return Attributes(len(node.path), 4096)
            case Kind.CONFIG:
                return Attributes(self.pci.config_size(node.function), REGISTER_BLKSIZE)
            case Kind.ROM:
                return Attributes(self.pci.rom_size(node.function) or 0, MEMORY_BLKSIZE)
            case Kind.INFO | Kind.STATUS:
                # As in /proc: how long it is shows when it is read.
                return Attributes(0, TEXT_BLKSIZE)
            case Kind.LOG:
                self.stream.refresh()
                return Attributes(self.stream.size, TEXT_BLKSIZE)
            case Kind.PHYS_FILE:
                ram = self.memory.is_ram(node.start, node.size)
                return _attributes(node.view, node.size, memory_like=ram)
            case _:
                return _attributes_of_bar(node, self.pci.bar(node.function, node.bar))


def _attributes_of_bar(node: Node, bar: Resource) -> Attributes:
    """Of a BAR or a window into it."""
    return _attributes(node.view, node.size or bar.size, memory_like=bar.prefetchable)


def _attributes(view: ViewKind, size: int, *, memory_like: bool) -> Attributes:
    """Of a BAR or physical range of `size` bytes."""
    if view.is_text:
        return Attributes(contract.text_size(view.width), TEXT_BLKSIZE)
    if view:
        return Attributes(size, view.width)
    return Attributes(size, MEMORY_BLKSIZE if memory_like else REGISTER_BLKSIZE)
