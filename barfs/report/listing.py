"""What `barfs ls` prints: the machine's functions without a mount."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from barfs.errors import DeviceGone, NoSuchNode
from barfs.machine.functions import AllFunctions, Functions
from barfs.machine.pciids import PATHS, PciIds
from barfs.machine.resources import Resource
from barfs.machine.source import source_of
from barfs.names import LinkName, PciAddress
from barfs.report import info
from barfs.report.info import Decoding, Function

Form: TypeAlias = Literal["table", "text", "json"]


def show(
    sysfs: Path, pattern: str | None, form: Form, pci_ids: Iterable[Path] = PATHS
) -> Iterator[str]:
    """The lines to print of the functions that match `pattern`, of all if it is None.

    A table takes only what sysfs has files for; `text`, the same as `info`, and `json` read the
    command registers of what they show. What vanishes meanwhile is left out. NoSuchNode if nothing
    matches, or there is no such directory.
    """
    if not sysfs.is_dir():
        raise NoSuchNode(f"--sysfs {sysfs} is not a directory")
    pci = AllFunctions(source_of(sysfs))
    found = list(inspect_all(pci, PciIds(pci_ids)))
    if pattern is not None:
        found = select(found, pattern)
        if not found:
            raise NoSuchNode(f"nothing matches {pattern!a}")
    match form:
        case "table":
            yield from table(found)
        case "text":
            for index, (function, bits) in enumerate(_decodings(pci, found)):
                yield ("\n" if index else "") + info.text(function, bits).rstrip("\n")
        case "json":
            yield json.dumps([as_object(*pair) for pair in _decodings(pci, found)], indent=2)


def inspect_all(pci: Functions, ids: PciIds) -> Iterator[Function]:
    """All functions; what vanishes meanwhile is left out. Reads no config space."""
    for address in pci.addresses():
        try:
            yield info.inspect(pci, address, ids)
        except DeviceGone:
            continue


def _decodings(
    pci: Functions, functions: Iterable[Function]
) -> Iterator[tuple[Function, Decoding]]:
    for function in functions:
        try:
            yield function, info.decoding(pci, function.address)
        except DeviceGone:
            continue


def select(functions: Iterable[Function], pattern: str) -> list[Function]:
    """Those of all of a machine's functions that a pattern means, in either case.

    A PCI address is that function. A link's name, `1af4:1110.1`, is the function that the link
    points to; without an instance, `1af4:1110` or `1af4:1110:1af4:1100`, it is all of that name.
    Anything else is a part of the address, of ids and names as `info` shows them, or of the driver.
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
    found = [
        function
        for function in functions
        if function.id == link.id and link.subsystem in (None, function.subsystem)
    ]
    return found[link.instance : link.instance + 1] if link.instance else found


def _names(function: Function) -> list[str]:
    texts = [
        (function.id, function.id_text),
        (function.subsystem, function.subsystem_text),
        (function.class_code, function.class_text),
    ]
    known = [text for number, text in texts if number is not None]
    return [str(function.address), *known, function.driver or ""]


def table(functions: Iterable[Function]) -> Iterator[str]:
    """A line a function: address, id, name of the device or else its class, driver, BARs."""
    rows = [
        (
            str(function.address),
            info.UNKNOWN if function.id is None else str(function.id),
            function.device_name or f"class {function.class_text}",
            function.driver or "-",
            "  ".join(_brief(name, resource) for name, resource, _ in function.parts),
        )
        for function in functions
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _brief(name: str, resource: Resource) -> str:
    words = [name, info.size_text(resource.size)]
    if not resource.is_memory:
        words.append("I/O")
    elif resource.prefetchable:
        words.append("prefetchable")
    if not resource.assigned:
        words.append("not assigned")
    return " ".join(words)


def as_object(function: Function, bits: Decoding) -> dict[str, object]:
    """A function for JSON; null is unknown, where nothing else is said.

    | key | value |
    |---|---|
    | `address` | the PCI address, a string |
    | `id`, `subsystem` | vendor:device as a string, 4+4 hex digits |
    | `vendor_name`, `device_name`, `subsystem_vendor_name`, `subsystem_name` | from pci.ids |
    | `class`, `class_name` | a string of 6 hex digits; from pci.ids |
    | `revision` | a string of 2 hex digits |
    | `driver` | its name; null: there is none |
    | `power_state` | as in sysfs: `D0`, `D3hot`, ... |
    | `memory_decoding`, `io_decoding`, `bus_master` | true or false |
    | `numa_node` | an integer, -1: there is none |
    | `resources` | a list of the BARs and the expansion ROM |

    and of a resource

    | key | value |
    |---|---|
    | `name` | `bar0` ... `bar5`, `rom` |
    | `address` | an integer, of port I/O a port; null: not assigned |
    | `size` | an integer, in bytes |
    | `space` | `memory` or `io` |
    | `64bit`, `prefetchable` | true or false |
    | `file` | its path in the mount; null: it has no file |
    """
    resources = None
    if function.resources is not None:
        resources = [
            {
                "name": name,
                "address": resource.start if resource.assigned else None,
                "size": resource.size,
                "space": "memory" if resource.is_memory else "io",
                "64bit": resource.is_64bit,
                "prefetchable": resource.prefetchable,
                "file": file,
            }
            for name, resource, file in function.parts
        ]
    return {
        "address": str(function.address),
        "id": function.id and str(function.id),
        "vendor_name": function.vendor_name,
        "device_name": function.device_name,
        "subsystem": function.subsystem and str(function.subsystem),
        "subsystem_vendor_name": function.subsystem_vendor_name,
        "subsystem_name": function.subsystem_name,
        "class": None if function.class_code is None else f"{function.class_code:06x}",
        "class_name": function.class_name,
        "revision": None if function.revision is None else f"{function.revision:02x}",
        "driver": function.driver,
        "power_state": function.power_state,
        "memory_decoding": bits.memory,
        "io_decoding": bits.io,
        "bus_master": bits.bus_master,
        "numa_node": function.numa_node,
        "resources": resources,
    }
