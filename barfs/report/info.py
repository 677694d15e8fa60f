"""What a function is, for people and for grep.

From sysfs, and from config space what sysfs has no file for: the command register. What an older
kernel or a saved copy of sysfs does not have is unknown; only a function that is gone is an error.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from barfs.diagnosis.causes import printable
from barfs.machine.configspace import (
    COMMAND_ABSENT,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    command_of,
)
from barfs.machine.functions import Functions
from barfs.machine.pciids import PATHS, PciIds
from barfs.machine.resources import ROM_RESOURCE, Resource, parse_hex
from barfs.names import DeviceId, PciAddress

UNKNOWN: Final = "unknown"


@dataclasses.dataclass(frozen=True)
class Function:
    """A PCI function as sysfs and pci.ids have it. None is unknown, where nothing else is said."""

    address: PciAddress
    id: DeviceId | None
    vendor_name: str | None
    device_name: str | None
    subsystem: DeviceId | None
    subsystem_vendor_name: str | None
    subsystem_name: str | None
    class_code: int | None  # 24 bits: class, subclass, programming interface
    class_name: str | None
    revision: int | None
    driver: str | None  # None: there is none
    power_state: str | None
    numa_node: int | None  # -1: there is none
    resources: Mapping[int, Resource] | None
    has_rom: bool  # whether the mount has a `rom`

    @property
    def id_text(self) -> str:
        """`1af4:1110 Red Hat, Inc. Inter-VM shared memory`."""
        return _named(self.id, self.vendor_name, self.device_name)

    @property
    def subsystem_text(self) -> str:
        """`1af4:1100 Red Hat, Inc. QEMU Virtual Machine`; `none` for 0000:0000, as bridges have."""
        if self.subsystem == DeviceId(0, 0):
            return "none"
        return _named(self.subsystem, self.subsystem_vendor_name, self.subsystem_name)

    @property
    def class_text(self) -> str:
        """`050000 RAM memory`."""
        return _named(
            None if self.class_code is None else f"{self.class_code:06x}", self.class_name
        )

    @property
    def parts(self) -> Iterator[tuple[str, Resource, str | None]]:
        """BARs and ROM with name, resource and file in the mount; None: the mount has no file."""
        for index, resource in (self.resources or {}).items():
            name = "rom" if index == ROM_RESOURCE else f"bar{index}"
            listed = index != ROM_RESOURCE or self.has_rom
            yield name, resource, f"pci/{self.address}/{name}" if listed else None


class Decoding(NamedTuple):
    """Bits of the command register; None is unknown."""

    memory: bool | None = None
    io: bool | None = None
    bus_master: bool | None = None


def _named(number: object, *names: str | None) -> str:
    return UNKNOWN if number is None else " ".join(filter(None, (str(number), *names)))


def _hex(pci: Functions, address: PciAddress, name: str, bits: int) -> int | None:
    try:
        return parse_hex(pci.attribute(address, name) or "", bits=bits)
    except ValueError:
        return None


def _match(pci: Functions, address: PciAddress, name: str, pattern: str) -> str | None:
    """An attribute if it is as the kernel prints it."""
    text = pci.attribute(address, name) or ""
    return text if re.fullmatch(pattern, text) else None


def inspect(pci: Functions, address: PciAddress, ids: PciIds) -> Function:
    """What sysfs has files for, with names. DeviceGone. Reads no config space."""
    device = pci.known(address, pci.id)
    subsystem = pci.known(address, pci.subsystem)
    class_code = _hex(pci, address, "class", 24)
    node = _match(pci, address, "numa_node", "-1|[0-9]{1,9}")
    driver = pci.driver(address)
    return Function(
        address=address,
        id=device,
        vendor_name=ids.vendor(device.vendor) if device else None,
        device_name=ids.device(device) if device else None,
        subsystem=subsystem,
        subsystem_vendor_name=ids.vendor(subsystem.vendor) if subsystem else None,
        subsystem_name=ids.subsystem(device, subsystem) if device and subsystem else None,
        class_code=class_code,
        class_name=None if class_code is None else ids.device_class(class_code),
        revision=_hex(pci, address, "revision", 8),
        driver=None if driver is None else printable(driver),
        power_state=_match(pci, address, "power_state", "[A-Za-z0-9]+"),
        numa_node=None if node is None else int(node),
        resources=pci.known(address, pci.resources),
        has_rom=bool(pci.rom_size(address)),
    )


def decoding(pci: Functions, address: PciAddress) -> Decoding:
    """Reads the command register, which may wake the function up. DeviceGone."""
    command = pci.known(address, partial(command_of, pci))
    # All ones are what the kernel gives for a function that does not answer
    # (drivers/pci/access.c); of a real command register the upper bits are 0.
    if command is None or command == COMMAND_ABSENT:
        return Decoding()
    return Decoding(
        memory=bool(command & COMMAND_MEMORY),
        io=bool(command & COMMAND_IO),
        bus_master=bool(command & COMMAND_MASTER),
    )


def size_text(size: int) -> str:
    """Bytes, in the largest of K, M, G, T (of 1024) that leaves no fraction: `256`, `128K`."""
    for unit in ("", "K", "M", "G"):
        if size % 1024:
            return f"{size}{unit}"
        size //= 1024
    return f"{size}T"


def _on(bit: bool | None) -> str:  # noqa: FBT001 - the bit itself
    return UNKNOWN if bit is None else "on" if bit else "off"


def _resource_text(resource: Resource, file: str | None) -> str:
    kind = "I/O"
    if resource.is_memory:
        kind = f"memory {64 if resource.is_64bit else 32}-bit"
        kind += " prefetchable" if resource.prefetchable else ""
    where = f"address {resource.start:#x}" if resource.assigned else "not assigned"
    size = f"size {resource.size:#x} ({size_text(resource.size)})"
    return f"{where}, {size}, {kind}, {f'file {file}' if file else 'no file'}"


def text(function: Function, bits: Decoding) -> str:
    """The lines of `info`, each `key: value`."""
    lines = [
        f"address: {function.address}",
        f"id: {function.id_text}",
        f"subsystem: {function.subsystem_text}",
        f"class: {function.class_text}",
        f"revision: {UNKNOWN if function.revision is None else f'{function.revision:02x}'}",
        f"driver: {function.driver or 'none'}",
        f"power state: {function.power_state or UNKNOWN}",
        f"memory decoding: {_on(bits.memory)}",
        f"I/O decoding: {_on(bits.io)}",
        f"bus master: {_on(bits.bus_master)}",
        f"NUMA node: {_named(function.numa_node) if function.numa_node != -1 else 'none'}",
        *(f"{name}: {_resource_text(part, file)}" for name, part, file in function.parts),
    ]
    if function.resources is None:
        lines.append(f"BARs: {UNKNOWN}")
    return "\n".join(lines) + "\n"


def describe(pci: Functions, address: PciAddress, pci_ids: Iterable[Path] = PATHS) -> str:
    """The text of `info`, with names from the first of `pci_ids` that can be read. DeviceGone.

    Reads the command register, after the power state: it may wake the function up.
    """
    function = inspect(pci, address, PciIds(pci_ids))
    return text(function, decoding(pci, address))
