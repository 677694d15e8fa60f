"""`regs/`: registers and fields by name, and `regs/README`.

A register whose reading has an effect opens, but is not listed. So a program that reads all files
of a directory, such as grep -r, eats no interrupt.
"""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Final

from barfs.access import contract
from barfs.access.apertures import Aperture
from barfs.errors import BarfsError, FunctionPart, NoSuchNode, ReadOnly
from barfs.journal.records import Subject
from barfs.machine.functions import Functions
from barfs.names import BarName, PciAddress, ViewKind
from barfs.nodes import DIRECTORY, Attributes, Branch, Found, Kind, Lasting, Node, Share, Type, View
from barfs.registers import texts
from barfs.registers.devices import CONFIG, DeviceMaps
from barfs.registers.maps import Block, Entry, Field, Register, Space, find
from barfs.registers.plans import effects_of_reading
from barfs.report.registers import readme
from barfs.spans.opening import Spans
from barfs.spans.registers import ConfigAperture, FieldView, RegisterView, locate
from barfs.spans.views import SnapshotView
from barfs.tree.functions import FUNCTION, check_present
from barfs.tree.physical import PHYS

REGS: Final = Kind("regs", Type.DIRECTORY, share=Share.READ, lasting=Lasting.WITH_MAP)
REGISTER: Final = Kind("register", share=Share.ALL, writable=True, lasting=Lasting.WITH_MAP)
# As for config space itself: others may never write it.
CONFIG_REGISTER: Final = Kind(
    "config register", share=Share.READ, writable=True, lasting=Lasting.WITH_MAP
)
README: Final = Kind("README", share=Share.READ, lasting=Lasting.WITH_MAP)

PHYS_REGS: Final = Kind("phys regs", Type.DIRECTORY)
PHYS_REGISTER: Final = Kind("phys register", writable=True)

_VIEWS: Final = {1: ViewKind.X8, 2: ViewKind.X16, 4: ViewKind.X32, 8: ViewKind.X64}


class Maps:
    """The entries of maps by their paths, for functions and for physical ranges."""

    def __init__(self, pci: Functions, maps: DeviceMaps) -> None:
        self.pci = pci
        self.device = maps

    def in_function(self, address: PciAddress, path: str) -> Entry | None:
        """The entry of a path in a function's registers. An empty path leads to all of them.

        Reads config space for the names of capabilities only, so `config` itself has none of them.
        Raises DeviceGone.
        """
        first, _, rest = path.partition("/")
        if first != CONFIG:
            top = self.device.top(address)
            return find(top, path) if path else top
        top = self.device.config(address, capabilities=rest.startswith(("CAP_", "ECAP_")))
        return find(top, rest) if rest else top

    def all_in(self, address: PciAddress) -> list[Block]:
        """All registers of a function. Raises DeviceGone.

        Reads config space, unless that would wake the function up. Capabilities are left out then.
        """
        awake = self.pci.attribute(address, "power_state") != "D3cold"
        return [self.device.top(address), self.device.config(address, capabilities=awake)]

    def in_physical_range(self, path: str) -> Entry | None:
        """The entry of a path that begins with the name of a range."""
        first, _, rest = path.partition("/")
        for known in self.device.in_physical_ranges():
            if known.name == first:
                top = self.device.physical_top(known)
                return find(top, rest) if rest else top
        return None


class Registers(Branch):
    """Directories of registers: what those of functions and physical ranges share."""

    directory: ClassVar[Kind]
    _looked_at: tuple[Node, tuple[Register, Field | None]] | tuple[None, None] = (None, None)

    def _entry(self, node: Node, path: str) -> Entry | None:
        raise NotImplementedError(node, path)

    def _file(self, parent: Node, register: Register, field: Field | None) -> Node:
        raise NotImplementedError(parent, register, field)

    def _attributes(self, register: Register, field: Field | None) -> Attributes:
        size = contract.text_size(register.size) if field is None else texts.longest_line(field)
        return Attributes(size)

    def _node(self, parent: Node, entry: Entry) -> Node:
        if isinstance(entry, Register):
            return self._file(parent, entry, None)
        return Node(self.directory, parent.address, name=entry.path)

    def _listed(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """The names in a directory of registers."""
        entry = self._entry(directory, directory.name)
        if entry is None or isinstance(entry, Register):
            return
        for name, child in entry.children():
            if isinstance(child, Register):
                yield from self._listed_register(directory, name, child)
            else:
                yield name, self._node(directory, child)

    def _listed_register(
        self, directory: Node, name: str, register: Register
    ) -> Iterator[tuple[str, Node]]:
        if not effects_of_reading(register):
            yield name, self._file(directory, register, None)
        for field in register.fields:
            if not effects_of_reading(register, field.mask):
                yield f"{name}.{field.name}", self._file(directory, register, field)

    def _found(self, directory: Node, name: str) -> Found | None:
        """The node of a name in a directory of registers."""
        first, dot, rest = name.partition(".")
        path = f"{directory.name}/{first}" if directory.name else first
        entry = self._entry(directory, path)
        if entry is None or (dot and not isinstance(entry, Register)):
            return None
        if not isinstance(entry, Register):
            return Found(Node(self.directory, directory.address, name=path), DIRECTORY)
        field = entry.field(rest) if dot else None
        if dot and field is None:
            return None
        return Found(self._file(directory, entry, field), self._attributes(entry, field))

    def _register(self, node: Node) -> tuple[Register, Field | None]:
        """The register of a file, and the field if it is one. NoSuchNode if the map has changed."""
        path, _, last = node.name.rpartition("/")
        name, dot, rest = last.partition(".")
        entry = self._entry(node, f"{path}/{name}" if path else name)
        field = entry.field(rest) if dot and isinstance(entry, Register) else None
        if not isinstance(entry, Register) or (dot and field is None):
            raise NoSuchNode("there is no such register any more", what=self.path(node))
        return entry, field

    def attributes(self, node: Node) -> Attributes:
        if node.kind.type is Type.DIRECTORY:
            return DIRECTORY
        found = self._register(node)
        self._looked_at = node, found
        return self._attributes(*found)

    def why_read_only(self, node: Node) -> ReadOnly | None:
        looked_at, found = self._looked_at
        # Mode bits are asked for right after the attributes. Only they use what was found.
        self._looked_at = None, None
        register, field = found if found and looked_at == node else self._register(node)
        if (register if field is None else field).writable:
            return None
        kind = "register" if field is None else "field"
        return ReadOnly(f"the {kind} is read-only", what=self.path(node))

    def subject(self, node: Node) -> Subject:
        """What the log calls it. A name that a changed map lacks now stays as it was."""
        found = super().subject(node)
        if node.kind.type is Type.DIRECTORY:
            return found
        directory, slash, last = node.name.rpartition("/")
        name, _, field = last.partition(".")
        found = found._replace(register=f"{directory}{slash}{name}", field=field or None)
        try:
            return found._replace(start=self._register(node)[0].offset)
        except BarfsError:
            return found


def file_of(kind: Kind, parent: Node, register: Register, field: Field | None) -> Node:
    """The node of a register or a field."""
    name = register.path if field is None else f"{register.path}.{field.name}"
    return Node(kind, parent.address, register.place.bar or 0, _VIEWS[register.size], name=name)


def view_of(register: Register, field: Field | None, aperture: Aperture) -> View:
    """The view of a register or a field, through an aperture of its own."""
    if field is None:
        return RegisterView(aperture, register)
    return FieldView(aperture, register, field)


class FunctionRegisters(Registers):
    """`regs/` of a function, with `config/` in it."""

    kinds = (REGS, REGISTER, CONFIG_REGISTER)
    under = (FUNCTION, REGS)
    directory = REGS

    def __init__(self, maps: Maps, spans: Spans) -> None:
        self._maps = maps
        self._pci = maps.pci
        self._spans = spans
        # The places that registers told of others. They are for the log, which asks no device.
        self._offsets: dict[tuple[PciAddress, str], int] = {}

    def _entry(self, node: Node, path: str) -> Entry | None:
        return self._maps.in_function(node.function, path)

    def _file(self, parent: Node, register: Register, field: Field | None) -> Node:
        kind = CONFIG_REGISTER if register.place.space is Space.CONFIG else REGISTER
        return file_of(kind, parent, register, field)

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        if directory.kind is FUNCTION:
            if not directory.view and self._pci.exists(directory.function):
                yield "regs", Node(REGS, directory.address)
            return
        if not directory.name:
            yield CONFIG, Node(REGS, directory.address, name=CONFIG)
        yield from self._listed(directory)

    def find(self, directory: Node, name: str) -> Found | None:
        if directory.kind is FUNCTION:
            known = name == "regs" and not directory.view
            exists = known and self._pci.exists(directory.function)
            return Found(Node(REGS, directory.address), DIRECTORY) if exists else None
        return self._found(directory, name)

    def path(self, node: Node) -> str:
        return f"pci/{node.address}/regs/{node.name}".rstrip("/")

    def attributes(self, node: Node) -> Attributes:
        check_present(self._pci, node, self.path(node))
        return super().attributes(node)

    def why_read_only(self, node: Node) -> ReadOnly | None:
        is_config = node.kind is CONFIG_REGISTER
        what = FunctionPart(node.function, "config" if is_config else BarName(node.bar))
        return self._pci.why_read_only(node.function, what) or super().why_read_only(node)

    def subject(self, node: Node) -> Subject:
        found = super().subject(node)
        if node.kind is CONFIG_REGISTER:
            return found
        start = self._offsets.get((node.function, found.register or ""), found.start)
        return found._replace(bar=node.bar, start=start)

    def open(self, node: Node, *, writable: bool) -> View:
        """Open a register. If other registers tell where it is, they are read."""
        register, field = self._register(node)
        if register.place.space is Space.CONFIG:
            file = self._pci.open_config(node.function, writable=writable)
            return view_of(register, field, ConfigAperture(file, register.offset, register.size))
        end = self._pci.bar(node.function, node.bar).size
        start = locate(register, partial(self._read, node), end)
        if register.where.base is not None:
            self._offsets[node.function, register.path] = start
        return self._spans.bar(
            node.function,
            node.bar,
            node.view,
            start=start,
            size=register.size,
            writable=writable,
            what=self.path(node),
            make=partial(view_of, register, field),
        )

    def _read(self, node: Node, register: Register) -> int:
        """Read a register that tells where others are."""
        view = self._spans.bar(
            node.function,
            node.bar,
            _VIEWS[register.size],
            start=register.offset,
            size=register.size,
            writable=False,
            what=self.path(node),
            make=partial(view_of, register, None),
        )
        try:
            return int(bytes(view.read(0, contract.text_size(register.size))), 0)
        finally:
            view.close()


class Readme(Branch):
    """`regs/README`: the map that is used, and the registers that are not listed."""

    kinds = (README,)
    under = (REGS,)

    def __init__(self, maps: Maps) -> None:
        self._maps = maps

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        if not directory.name:
            yield "README", Node(README, directory.address)

    def path(self, node: Node) -> str:
        return f"pci/{node.address}/regs/README"

    def attributes(self, node: Node) -> Attributes:
        check_present(self._maps.pci, node, self.path(node))
        return Attributes(0)

    def open(self, node: Node, *, writable: bool) -> View:
        del writable
        maps, address = self._maps.device, node.function
        return SnapshotView(readme(maps.found(address), maps.top(address)))


class PhysicalRegisters(Registers):
    """`phys/regs/`, with a directory for each range that has a map."""

    kinds = (PHYS_REGS, PHYS_REGISTER)
    under = (PHYS, PHYS_REGS)
    directory = PHYS_REGS

    def __init__(self, maps: Maps, spans: Spans) -> None:
        self._maps = maps
        self._spans = spans

    def _entry(self, node: Node, path: str) -> Entry | None:
        del node
        return self._maps.in_physical_range(path)

    def _file(self, parent: Node, register: Register, field: Field | None) -> Node:
        return file_of(PHYS_REGISTER, parent, register, field)

    def entries(self, directory: Node) -> Iterator[tuple[str, Node]]:
        if directory.kind is PHYS:
            if not directory.view:
                yield "regs", Node(PHYS_REGS)
        elif directory.name:
            yield from self._listed(directory)
        else:
            for known in self._maps.device.in_physical_ranges():
                yield known.name, Node(PHYS_REGS, name=known.name)

    def find(self, directory: Node, name: str) -> Found | None:
        if directory.kind is PHYS:
            known = name == "regs" and not directory.view
            return Found(Node(PHYS_REGS), DIRECTORY) if known else None
        return self._found(directory, name)

    def path(self, node: Node) -> str:
        return f"phys/regs/{node.name}".rstrip("/")

    def subject(self, node: Node) -> Subject:
        return super().subject(node)._replace(unit="address")

    def open(self, node: Node, *, writable: bool) -> View:
        register, field = self._register(node)
        return self._spans.physical(
            register.offset,
            register.size,
            node.view,
            writable=writable,
            what=self.path(node),
            make=partial(view_of, register, field),
        )
