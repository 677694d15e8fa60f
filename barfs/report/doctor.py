"""What `barfs doctor` prints: what works on a machine, what does not, and how to mend it."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from barfs.devmem import PhysicalMemory
from barfs.diagnosis.causes import Machine
from barfs.diagnosis.checkup import FUSE_DEVICE, Finding, State, examine, text
from barfs.diagnosis.text import printable
from barfs.errors import NoSuchNode
from barfs.machine.functions import AllFunctions, Allowed
from barfs.machine.kcore import CoreFile
from barfs.machine.pciids import PATHS, PciIds
from barfs.machine.recorded import source_at
from barfs.machine.source import BOOT, Source, source_of
from barfs.machine.symbols import Symbols
from barfs.registers.devices import DeviceMaps
from barfs.registers.files import MapFiles
from barfs.report.listing import inspect_all
from barfs.report.looks import GAP, PLAIN, Look, columns, line, paragraph
from barfs.report.selecting import select


def findings(
    sysfs: Path,
    proc: Path,
    devmem: Path,
    pattern: str | None,
    *,
    machine: Path | None = None,
    boot: Path = BOOT,
    fuse: Path = FUSE_DEVICE,
    pci_ids: Iterable[Path] = PATHS,
) -> list[Finding]:
    """The findings about a machine and its functions, or those that match `pattern`, worst first.

    Reads the command registers of functions that don't sleep. NoSuchNode if nothing matches, or if
    there is no such directory. `machine` is a recorded one, and then the paths do not count.
    BadRecording.
    """
    for option, path in (("--sysfs", sysfs), ("--proc", proc)):
        if machine is None and not path.is_dir():
            raise NoSuchNode(f"{option} {path} is not a directory")
    source = source_at(machine, sysfs, proc, boot)
    pci = Allowed(AllFunctions(source))
    addresses = pci.addresses()
    if pattern is not None:
        found = select(inspect_all(pci, PciIds(pci_ids)), pattern)
        addresses = [function.address for function in found]
    with _complete(source, pci, devmem) as looked_at:
        return examine(looked_at, addresses, fuse)


@contextlib.contextmanager
def machine_at(sysfs: Path, proc: Path, devmem: Path, boot: Path = BOOT) -> Iterator[Machine]:
    """The machine that some paths name, for a block. NoSuchNode if there is no such directory."""
    for option, path in (("--sysfs", sysfs), ("--proc", proc)):
        if not path.is_dir():
            raise NoSuchNode(f"{option} {path} is not a directory")
    source = source_of(sysfs, proc, boot)
    with _complete(source, Allowed(AllFunctions(source)), devmem) as machine:
        yield machine


@contextlib.contextmanager
def _complete(source: Source, pci: Allowed, devmem: Path) -> Iterator[Machine]:
    """A machine with its kernel's symbols and memory, for a block. A recorded one has neither."""
    memory = PhysicalMemory(source, devmem)
    machine = Machine(pci, memory, DeviceMaps(pci, memory, MapFiles()))
    if source.recording is not None:
        yield machine
        return
    symbols, core = Symbols(source.proc), CoreFile(source.proc)
    try:
        yield machine._replace(symbols=symbols, core=core)
    finally:
        symbols.close()
        core.close()


# Colours of what was found.
_COLOURS: Final = {State.TROUBLE: "red", State.NOTE: "yellow", State.OK: "green"}


def lines(found: Iterable[Finding], look: Look = PLAIN) -> Iterator[str]:
    """The lines to print: the text of `status`. At a terminal they have a heading and fit.

    A command that mends something stays in one line, so that it can be pasted.
    """
    found = list(found)
    if look.width is None:
        yield from text(found).splitlines()
        return
    heading = ("STATE", "SUBJECT", "WHAT WAS FOUND, AND WHAT MENDS IT")
    widths = columns([heading, *((one.state.value, one.subject, "") for one in found)])
    indent = sum(widths[:2]) + 2 * len(GAP)
    yield look.paint(line(heading, widths), "heading")
    for one in found:
        state, subject = one.state.value.ljust(widths[0]), one.subject.ljust(widths[1])
        first, *more = paragraph(printable(one.cause.sentence), indent, look)
        yield f"{look.paint(state, _COLOURS[one.state])}{GAP}{subject}{GAP}{first}"
        yield from more
        if one.cause.mend is not None:
            yield " " * indent + printable(one.cause.mend)
        if one.cause.advice is not None:
            for part in paragraph(printable(one.cause.advice), indent + 2, look):
                yield f"{' ' * indent}# {part.strip()}"


def is_hopeless(found: Iterable[Finding], pattern: str | None) -> bool:
    """Whether something keeps barfs from working, or from working on functions that match
    `pattern`.

    Trouble of a function counts only if the user asked for the function, since some always have
    trouble.
    """
    return any(
        finding.state is State.TROUBLE and (finding.device is None or pattern is not None)
        for finding in found
    )


def as_json(found: Iterable[Finding]) -> str:
    """A list of objects for programs.

    | key | value |
    |---|---|
    | `subject` | what was looked at: `root`, `lockdown`, ..., or a PCI address |
    | `device` | the PCI address, a string; null if it concerns all of barfs |
    | `state` | `trouble`, `note` or `ok` |
    | `sentence` | what was found |
    | `mend` | the command that mends it; null if there is none |
    | `advice` | what helps besides, or if there is no command; null if nothing does |
    """
    objects = [
        {
            "subject": finding.subject,
            "device": finding.device and str(finding.device),
            "state": finding.state.value,
            **finding.cause._asdict(),
        }
        for finding in found
    ]
    return json.dumps(objects, indent=2)
