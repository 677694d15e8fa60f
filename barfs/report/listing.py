"""What `barfs ls` prints: the machine's functions without a mount."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from barfs.errors import DeviceGone, NoSuchNode
from barfs.machine.functions import AllFunctions, Functions
from barfs.machine.patterns import DevicePattern
from barfs.machine.pciids import PATHS, PciIds
from barfs.machine.recorded import source_at
from barfs.machine.resources import Resource
from barfs.registers.devices import DeviceMaps
from barfs.registers.files import MapFiles
from barfs.report import info
from barfs.report.info import Function
from barfs.report.looks import GAP, PLAIN, Look, columns, cut, line, wrap
from barfs.report.selecting import matching, select

Form: TypeAlias = Literal["table", "text", "json"]


def show(
    sysfs: Path,
    word: str | None,
    form: Form,
    pci_ids: Iterable[Path] = PATHS,
    *,
    patterns: Iterable[DevicePattern] = (),
    look: Look = PLAIN,
    machine: Path | None = None,
) -> Iterator[str]:
    """The lines to print of the functions that a word and all patterns mean.

    A table needs only what sysfs has files for. `text`, which is that of `info`, and `json` also
    read the command registers of the functions that they show. A function that vanishes meanwhile
    is left out. NoSuchNode if nothing matches, or if there is no such directory. `machine` is a
    recorded one, and then `sysfs` does not count. BadRecording.
    """
    if machine is None and not sysfs.is_dir():
        raise NoSuchNode(f"--sysfs {sysfs} is not a directory")
    source = source_at(machine, sysfs)
    if not source.is_directory(source.sysfs / "bus/pci/devices"):
        raise NoSuchNode(f"{sysfs} shows no PCI functions: it has no bus/pci/devices")
    pci = AllFunctions(source)
    ids = PciIds(pci_ids)
    found = list(inspect_all(pci, ids))
    if word is not None:
        found = select(found, word)
    for pattern in patterns:
        found = matching(found, pattern)
        if not found:
            raise NoSuchNode(f"nothing matches {pattern}")
    match form:
        case "table":
            yield from table(found, look)
        case "text":
            for index, function in enumerate(_completed(pci, found, ids)):
                yield ("\n" if index else "") + function.text.rstrip("\n")
        case "json":
            objects = [function.as_object for function in _completed(pci, found, ids)]
            yield json.dumps(objects, indent=2)


def inspect_all(pci: Functions, ids: PciIds) -> Iterator[Function]:
    """All functions. One that vanishes meanwhile is left out. Reads no config space."""
    maps = DeviceMaps(pci, None, MapFiles())
    for address in pci.addresses():
        try:
            yield info.inspect(pci, address, ids, maps)
        except DeviceGone:
            continue


def _completed(pci: Functions, functions: Iterable[Function], ids: PciIds) -> Iterator[Function]:
    for function in functions:
        try:
            yield info.complete(pci, function, ids)
        except DeviceGone:
            continue


# What stands above the columns of a table at a terminal.
HEADING: Final = ("ADDRESS", "ID", "NAME", "DRIVER", "BARS")

# The least that is left of a name, in columns.
_NAME_LEAST: Final = 16


class Row(NamedTuple):
    """A line of the table."""

    address: str
    id: str
    name: str  # of the device, or else its class
    driver: str
    parts: list[str]


def table(functions: Iterable[Function], look: Look = PLAIN) -> Iterator[str]:
    """A line a function: address, id, name of the device or else its class, driver, BARs.

    At a terminal names are cut and BARs take several lines, so that it fits.
    """
    rows = [_row(function) for function in functions]
    whole = [(*row[:4], GAP.join(row.parts)) for row in rows]
    if not whole or look.width is None:
        widths = columns(whole)
        yield from (line(cells, widths) for cells in whole)
        return
    widths = columns([HEADING, *whole])
    left = look.width - sum(widths[:2]) - widths[3] - 4 * len(GAP)
    if widths[2] + widths[4] > left:
        widths[2] = min(widths[2], max(left - widths[4], _NAME_LEAST))
        widths[4] = left - widths[2]
    yield look.paint(line(HEADING, widths), "heading")
    for row in rows:
        first, *more = wrap(row.parts, widths[4])
        cells = (row.address, row.id, cut(row.name, widths[2]), row.driver)
        shown = line((*cells, first), widths)
        yield shown.replace(row.id, look.paint(row.id, "cyan"), 1)
        yield from (" " * (sum(widths[:4]) + 4 * len(GAP)) + rest for rest in more)


def _row(function: Function) -> Row:
    device = function[info.ID]
    device_class = function[info.CLASS]
    name = device and device.device_name
    return Row(
        address=str(function.address),
        id=info.UNKNOWN if device is None else str(device.id),
        name=name or f"class {device_class or info.UNKNOWN}",
        driver=function[info.DRIVER] or "-",
        parts=[_brief(part.name, part.resource) for part in function[info.PARTS] or ()],
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
