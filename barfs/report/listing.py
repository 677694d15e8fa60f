"""What `barfs ls` prints: the machine's functions without a mount."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from barfs.errors import DeviceGone, NoSuchNode
from barfs.machine.functions import AllFunctions, Functions
from barfs.machine.pciids import PATHS, PciIds
from barfs.machine.resources import Resource
from barfs.machine.source import source_of
from barfs.names import LinkName, PciAddress
from barfs.report import info
from barfs.report.info import Field, Function

Form: TypeAlias = Literal["table", "text", "json"]


def show(
    sysfs: Path, pattern: str | None, form: Form, pci_ids: Iterable[Path] = PATHS
) -> Iterator[str]:
    """The lines to print for the functions that match `pattern`, or for all if it is None.

    A table needs only what sysfs has files for. `text`, which is that of `info`, and `json` also
    read the command registers of the functions that they show. A function that vanishes meanwhile
    is left out. NoSuchNode if nothing matches, or if there is no such directory.
    """
    if not sysfs.is_dir():
        raise NoSuchNode(f"--sysfs {sysfs} is not a directory")
    pci = AllFunctions(source_of(sysfs))
    ids = PciIds(pci_ids)
    found = list(inspect_all(pci, ids))
    if pattern is not None:
        found = select(found, pattern)
        if not found:
            raise NoSuchNode(f"nothing matches {pattern!a}")
    match form:
        case "table":
            yield from table(found)
        case "text":
            for index, function in enumerate(_completed(pci, found, ids)):
                yield ("\n" if index else "") + function.text.rstrip("\n")
        case "json":
            objects = [function.as_object for function in _completed(pci, found, ids)]
            yield json.dumps(objects, indent=2)


def inspect_all(pci: Functions, ids: PciIds) -> Iterator[Function]:
    """All functions. One that vanishes meanwhile is left out. Reads no config space."""
    for address in pci.addresses():
        try:
            yield info.inspect(pci, address, ids)
        except DeviceGone:
            continue


def _completed(pci: Functions, functions: Iterable[Function], ids: PciIds) -> Iterator[Function]:
    for function in functions:
        try:
            yield info.complete(pci, function, ids)
        except DeviceGone:
            continue


def select(functions: Iterable[Function], pattern: str) -> list[Function]:
    """The functions that a pattern matches, in either case. `functions` are all of a machine.

    A PCI address matches that function. The name of a link, `1af4:1110.1`, matches the function
    that the link points to. A name without an instance, `1af4:1110` or `1af4:1110:1af4:1100`,
    matches all functions of that name. Any other pattern matches a part of the address, of the ids
    and names as `info` shows them, or of the driver.
    """
    pattern = pattern.lower()
    address = PciAddress.parse(pattern)
    if address is not None:
        return [function for function in functions if function.address == address]
    link = LinkName.parse(pattern)
    if link is not None:
        return _linked(functions, link)
    return [
        function
        for function in functions
        if any(pattern in name.lower() for name in _names(function))
    ]


def _linked(functions: Iterable[Function], link: LinkName) -> list[Function]:
    found = [function for function in functions if _is_named(function, link)]
    return found[link.instance : link.instance + 1] if link.instance else found


def _is_named(function: Function, link: LinkName) -> bool:
    device, subsystem = function[info.ID], function[info.SUBSYSTEM]
    return (device and device.id) == link.id and link.subsystem in (
        None,
        subsystem and subsystem.id,
    )


def _names(function: Function) -> list[str]:
    fields: tuple[Field[Any], ...] = (
        *(info.ADDRESS, info.ID, info.SUBSYSTEM, info.CLASS, info.DRIVER),
    )
    return [one.text(function[one]) for one in fields if function[one] is not None]


def table(functions: Iterable[Function]) -> Iterator[str]:
    """A line for each function: address, id, name of the device or its class, driver, BARs."""
    rows = [_row(function) for function in functions]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _row(function: Function) -> tuple[str, ...]:
    device = function[info.ID]
    device_class = function[info.CLASS]
    name = device and device.device_name
    return (
        str(function.address),
        info.UNKNOWN if device is None else str(device.id),
        name or f"class {device_class or info.UNKNOWN}",
        function[info.DRIVER] or "-",
        "  ".join(_brief(part.name, part.resource) for part in function[info.PARTS] or ()),
    )


def _brief(name: str, resource: Resource) -> str:
    words = [name, info.size_text(resource.size)]
    if not resource.is_memory:
        words.append("I/O")
    elif resource.prefetchable:
        words.append("prefetchable")
    if not resource.assigned:
        words.append("not assigned")
    return " ".join(words)
