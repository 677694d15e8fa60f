"""What a function is, for people and for grep.

The facts come from sysfs. Only the command register comes from config space, since sysfs has no
file for it. A fact that an older kernel or a saved copy of sysfs does not have is unknown. Only a
function that is gone is an error.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from barfs.diagnosis.obstacles import Obstacles
from barfs.diagnosis.text import printable
from barfs.errors import Cause
from barfs.machine.configspace import (
    COMMAND_ABSENT,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    command_of,
)
from barfs.machine.functions import Functions
from barfs.machine.pciids import PATHS, PciIds
from barfs.machine.reading import Reading
from barfs.machine.resources import ROM_RESOURCE, Resource, parse_hex
from barfs.names import DeviceId, PciAddress
from barfs.registers.devices import DeviceMaps
from barfs.registers.files import Found, MapFiles
from barfs.report.registers import map_text

T = TypeVar("T")

UNKNOWN: Final = "unknown"


class Identity(NamedTuple):
    """A vendor:device with its names from pci.ids, `1af4:1110 Red Hat, Inc. Inter-VM ...`."""

    id: DeviceId
    vendor_name: str | None
    device_name: str | None

    def __str__(self) -> str:
        return _words(self.id, self.vendor_name, self.device_name)


class Class(NamedTuple):
    """A class code, which is 24 bits, with its name from pci.ids: `050000 RAM memory`."""

    code: int
    name: str | None

    def __str__(self) -> str:
        return _words(f"{self.code:06x}", self.name)


class Part(NamedTuple):
    """A BAR or the expansion ROM. `file` is its path in the mount, None if it has no file.

    `reading` says how a BAR is read. None for a ROM.
    """

    name: str
    resource: Resource
    file: str | None
    reading: Reading | None


def _words(number: object, *names: str | None) -> str:
    return " ".join(filter(None, (str(number), *names)))


class Asked:
    """A function that is asked for its facts."""

    def __init__(
        self, pci: Functions, address: PciAddress, ids: PciIds, maps: DeviceMaps | None
    ) -> None:
        self.pci = pci
        self.address = address
        self.ids = ids
        self.maps = maps or DeviceMaps(pci, None, MapFiles())

    def known(self, ask: Callable[[PciAddress], T]) -> T | None:
        """What `ask` finds. None if the function is there and lacks it. Raises DeviceGone."""
        return self.pci.known(self.address, ask)

    def attribute(self, name: str, pattern: str) -> str | None:
        """An attribute. None if it is not as the kernel prints it."""
        text = self.pci.attribute(self.address, name) or ""
        return text if re.fullmatch(pattern, text) else None

    def number(self, name: str, bits: int) -> int | None:
        """An attribute that is a number in hex. None if it is none."""
        try:
            return parse_hex(self.pci.attribute(self.address, name) or "", bits=bits)
        except ValueError:
            return None

    @cached_property
    def command(self) -> int | None:
        """The command register. It is read once, which may wake the function up."""
        command = self.known(partial(command_of, self.pci))
        # The kernel gives all ones for a function that does not answer (drivers/pci/access.c). The
        # upper bits of a real command register are 0.
        return None if command == COMMAND_ABSENT else command


def _identity(asked: Asked) -> Identity | None:
    device = asked.known(asked.pci.id)
    if device is None:
        return None
    return Identity(device, asked.ids.vendor(device.vendor), asked.ids.device(device))


def _subsystem(asked: Asked) -> Identity | None:
    subsystem = asked.known(asked.pci.subsystem)
    if subsystem is None:
        return None
    device = asked.known(asked.pci.id)
    name = asked.ids.subsystem(device, subsystem) if device else None
    return Identity(subsystem, asked.ids.vendor(subsystem.vendor), name)


def _class(asked: Asked) -> Class | None:
    code = asked.number("class", 24)
    return None if code is None else Class(code, asked.ids.device_class(code))


def _driver(asked: Asked) -> str | None:
    driver = asked.pci.driver(asked.address)
    if driver is None:
        return None if asked.pci.knows_driver(asked.address) else UNKNOWN
    return printable(driver)


def _numa_node(asked: Asked) -> int | None:
    node = asked.attribute("numa_node", "-1|[0-9]{1,9}")
    return None if node is None else int(node)


def _parts(asked: Asked) -> list[Part] | None:
    resources = asked.known(asked.pci.resources)
    if resources is None:
        return None
    has_rom = bool(asked.pci.rom_size(asked.address))
    parts = []
    for index, resource in resources.items():
        name = "rom" if index == ROM_RESOURCE else f"bar{index}"
        listed = index != ROM_RESOURCE or has_rom
        reading = None
        if index != ROM_RESOURCE:
            reading = asked.pci.reading(asked.address, resources, index)
        file = f"pci/{asked.address}/{name}" if listed else None
        parts.append(Part(name, resource, file, reading))
    return parts


def _silent(asked: Asked) -> list[tuple[str, Cause]] | None:
    """The BARs that don't answer, and why."""
    bars = asked.known(asked.pci.bars)
    look = asked.known(Obstacles(asked.pci).look)
    return None if look is None or bars is None else look.obstacles(bars)


def _bit(mask: int) -> Callable[[Asked], bool | None]:
    """Whether a bit of the command register is set."""

    def ask(asked: Asked) -> bool | None:
        return None if asked.command is None else bool(asked.command & mask)

    return ask


def _on(bit: bool) -> str:  # noqa: FBT001 - the bit itself
    return "on" if bit else "off"


def size_text(size: int) -> str:
    """A number of bytes in the largest unit (K, M, G, T) that leaves no fraction: `256`, `128K`."""
    for unit in ("", "K", "M", "G"):
        if size % 1024:
            return f"{size}{unit}"
        size //= 1024
    return f"{size}T"


def _part_text(part: Part) -> str:
    resource = part.resource
    kind = "I/O"
    if resource.is_memory:
        kind = f"memory {64 if resource.is_64bit else 32}-bit"
        kind += " prefetchable" if resource.prefetchable else ""
    where = f"address {resource.start:#x}" if resource.assigned else "not assigned"
    size = f"size {resource.size:#x} ({size_text(resource.size)})"
    read = "" if part.reading is None else f", read as {part.reading}"
    return f"{where}, {size}, {kind}, {f'file {part.file}' if part.file else 'no file'}{read}"


def _part_object(part: Part) -> dict[str, object]:
    resource = part.resource
    return {
        "name": part.name,  # bar0 ... bar5, rom
        "address": resource.start if resource.assigned else None,  # for port I/O it is a port
        "size": resource.size,  # in bytes
        "space": "memory" if resource.is_memory else "io",
        "64bit": resource.is_64bit,
        "prefetchable": resource.prefetchable,
        # registers or memory, and the reason; null for a ROM
        "read_as": None if part.reading is None else part.reading.word,
        "read_as_why": None if part.reading is None else part.reading.why,
        "file": part.file,
    }


@dataclass(frozen=True, eq=False)
class Field(Generic[T]):
    """A fact about a function, said once.

    `ask` finds the fact, or None if it is unknown. It may raise DeviceGone. `text` gives the text
    behind the label in `info`; `rows` gives several lines of label and text instead. `keys` give
    its values in JSON, by their keys. They are null if the fact is unknown.
    """

    label: str
    ask: Callable[[Asked], T | None]
    keys: Mapping[str, Callable[[T], object]]
    text: Callable[[T], str] = str
    rows: Callable[[T], Iterable[tuple[str, str]]] | None = None
    unknown: str = UNKNOWN
    in_config_space: bool = False  # asking may wake the function up

    def lines(self, value: T | None) -> Iterator[str]:
        """The lines of `info`."""
        if value is None:
            if self.unknown:
                yield f"{self.label}: {self.unknown}"
        elif self.rows is None:
            yield f"{self.label}: {self.text(value)}"
        else:
            yield from (f"{label}: {text}" for label, text in self.rows(value))

    def objects(self, value: T | None) -> dict[str, object]:
        """The values in JSON, by keys."""
        return {key: None if value is None else say(value) for key, say in self.keys.items()}


ADDRESS: Final = Field[PciAddress]("address", lambda asked: asked.address, {"address": str})
ID: Final = Field[Identity](
    "id",
    _identity,
    {
        "id": lambda it: str(it.id),
        "vendor_name": lambda it: it.vendor_name,
        "device_name": lambda it: it.device_name,
    },
)
SUBSYSTEM: Final = Field[Identity](
    "subsystem",
    _subsystem,
    {
        "subsystem": lambda it: str(it.id),
        "subsystem_vendor_name": lambda it: it.vendor_name,
        "subsystem_name": lambda it: it.device_name,
    },
    # Bridges have 0000:0000.
    text=lambda it: "none" if it.id == DeviceId(0, 0) else str(it),
)
CLASS: Final = Field[Class](
    "class", _class, {"class": lambda it: f"{it.code:06x}", "class_name": lambda it: it.name}
)
DRIVER: Final = Field[str](
    "driver", _driver, {"driver": lambda it: None if it == UNKNOWN else it}, unknown="none"
)
PARTS: Final = Field[list[Part]](
    "BARs",
    _parts,
    {"resources": lambda parts: [_part_object(part) for part in parts]},
    rows=lambda parts: [(part.name, _part_text(part)) for part in parts],
)

REGISTERS: Final = Field[Found](
    "registers",
    lambda asked: asked.maps.found(asked.address),
    {"registers": lambda found: str(found.file), "registers_refused": lambda found: found.refusal},
    text=map_text,
    unknown=map_text(None),
)

# All facts about a function, in the order in which they are shown.
FIELDS: Final[tuple[Field[Any], ...]] = (
    ADDRESS,
    ID,
    SUBSYSTEM,
    CLASS,
    Field[int](
        "revision",
        lambda asked: asked.number("revision", 8),
        {"revision": "{:02x}".format},
        text="{:02x}".format,
    ),
    DRIVER,
    Field[str](
        "power state",
        lambda asked: asked.attribute("power_state", "[A-Za-z0-9]+"),
        {"power_state": str},
    ),
    *(
        Field[bool](label, _bit(mask), {key: bool}, text=_on, in_config_space=True)
        for label, key, mask in (
            ("memory decoding", "memory_decoding", COMMAND_MEMORY),
            ("I/O decoding", "io_decoding", COMMAND_IO),
            ("bus master", "bus_master", COMMAND_MASTER),
        )
    ),
    Field[int](
        "NUMA node",
        _numa_node,
        {"numa_node": int},  # -1: there is none
        text=lambda node: "none" if node == -1 else str(node),
    ),
    PARTS,
    Field[list[tuple[str, Cause]]](
        "does not answer",
        _silent,
        {
            "silent": lambda it: [
                {"bars": names.split(", "), **cause._asdict()} for names, cause in it
            ]
        },
        rows=lambda it: [("does not answer", f"{names}: {cause}") for names, cause in it],
        unknown="",
        in_config_space=True,
    ),
    REGISTERS,
)


@dataclass(frozen=True)
class Function:
    """A PCI function: what was found for each of the fields that it was asked for."""

    address: PciAddress
    found: Mapping[Field[Any], Any]

    def __getitem__(self, asked_for: Field[T]) -> T | None:
        """A fact. None if it is unknown."""
        value: T | None = self.found.get(asked_for)
        return value

    @property
    def text(self) -> str:
        """The lines of `info`, each `key: value`."""
        return "".join(f"{line}\n" for one in FIELDS for line in one.lines(self[one]))

    @property
    def as_object(self) -> dict[str, object]:
        """The object for JSON. null means unknown, if the field says nothing else."""
        return {key: value for one in FIELDS for key, value in one.objects(self[one]).items()}


def inspect(
    pci: Functions, address: PciAddress, ids: PciIds, maps: DeviceMaps | None = None
) -> Function:
    """The facts that sysfs has files for, with names. Raises DeviceGone. Reads no config space."""
    asked = Asked(pci, address, ids, maps)
    return Function(address, {one: one.ask(asked) for one in FIELDS if not one.in_config_space})


def complete(pci: Functions, function: Function, ids: PciIds) -> Function:
    """The same with facts from config space, which may wake it up. Raises DeviceGone."""
    asked = Asked(pci, function.address, ids, None)
    more = {one: one.ask(asked) for one in FIELDS if one.in_config_space}
    return Function(function.address, {**function.found, **more})


def describe(
    pci: Functions,
    address: PciAddress,
    pci_ids: Iterable[Path] = PATHS,
    maps: DeviceMaps | None = None,
) -> str:
    """The text of `info`, with names from the first of `pci_ids` that can be read.

    The command register is read after the power state, because reading it may wake the function up.
    Raises DeviceGone.
    """
    ids = PciIds(pci_ids)
    return complete(pci, inspect(pci, address, ids, maps), ids).text
