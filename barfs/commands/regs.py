"""`barfs regs`: show maps of registers, and make them, without a mount."""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from barfs.commands.command import Argument, Command, UsageError
from barfs.commands.ls import JSON
from barfs.commands.machines import recorded
from barfs.commands.output import say
from barfs.daemon.options import Option
from barfs.daemon.settings import MACHINE, PROC, REGISTERS, SYSFS
from barfs.errors import DeviceGone, NoSuchNode
from barfs.machine.source import REAL_PROC, REAL_SYSFS
from barfs.names import with_colons

if TYPE_CHECKING:
    from barfs.machine.functions import AllFunctions
    from barfs.registers.devices import DeviceMaps
    from barfs.registers.files import MapFiles
    from barfs.registers.maps import Block, Field, Register

ACTIONS: Final = ("list", "show", "compile")

OUTPUT: Final = Option("-o --output", "the map to write; it is named after its device", takes="OUT")


def _subject(text: str) -> str:
    """What a map is for: an id with `-` for `:` is meant so, and `class-010802` is not."""
    is_id = re.fullmatch("[0-9a-fA-F]{4}(?:[-:][0-9a-fA-F]{4}){1,3}", text)
    return with_colons(text) if is_id else text


SUBJECT: Final = Option(
    "--for",
    "what the map is for, where the source does not say it: 10ee:9038, class-010802",
    takes="ID",
    parse=_subject,
    repeated=True,
    name="subjects",
)
BAR: Final = Option(
    "--bar", "the BAR that has the registers", choices=("0", "1", "2", "3", "4", "5")
)
OFFSET: Final = Option(
    "--offset",
    "what is added to the source's addresses; may be negative: --offset=-0xe0000000",
    takes="OFFSET",
    parse=lambda text: int(text, 0),
)
INCLUDE: Final = Option(
    "--include", "look for included files in DIR", takes="DIR", parse=Path, repeated=True
)
TOP: Final = Option("--top", "the address map to compile, if not the last one", takes="NAME")
PERL: Final = Option("--perl", "run the Perl in <%% %%> of SystemRDL files")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    action, words = arguments.action, arguments.word
    if action == "compile":
        if not words or arguments.output is None:
            raise UsageError("compile takes one FILE or more, and --output", COMMAND)
        _compile([Path(word) for word in words], arguments)
    elif action == "list":
        if len(words) not in {1, 2}:
            raise UsageError("list takes a PATTERN, and at most one NAME", COMMAND)
        _list(words[0], words[1] if len(words) > 1 else None, arguments)
    elif action == "show":
        if len(words) != 1:
            raise UsageError("show takes one NAME", COMMAND)
        _show(words[0], arguments)
    else:
        raise UsageError(f"there is no action {action!r}, but {', '.join(ACTIONS)}", COMMAND)


def _tops(
    pattern: str | None, arguments: argparse.Namespace, refused: list[str], *, config: bool
) -> "Iterator[tuple[str, Block]]":
    """The maps of functions that match a pattern, or else the maps whose files it names.

    Config space is read only if its registers are wanted, because it has the lists of capabilities.
    Maps of the functions that are wrong are added to `refused`.
    """
    # The other commands do not need this, and start faster without it.
    from barfs.machine.pciids import PATHS, PciIds  # noqa: PLC0415
    from barfs.report.listing import inspect_all  # noqa: PLC0415
    from barfs.report.selecting import select  # noqa: PLC0415

    pci, maps = _machine(arguments)
    functions = inspect_all(pci, PciIds(PATHS))
    try:
        addresses = [one.address for one in (select(functions, pattern) if pattern else functions)]
    except NoSuchNode:
        addresses = []
    for address in addresses:
        try:
            wrong = maps.found(address)
            if wrong is not None and wrong.refusal is not None:
                refused.append(f"the map {wrong.file} of {address} is refused: {wrong.refusal}")
            yield str(address), maps.top(address)
            if config:
                yield str(address), maps.config(address, capabilities=True)
        except DeviceGone:
            continue
    if pattern is None:
        for known in maps.in_physical_ranges():
            yield f"phys/{known.name}", maps.physical_top(known)
        used = {found.file for found in map(maps.found, addresses) if found}
        yield from _unused(maps.files, used)
    elif not addresses:
        yield _by_file(maps.files, pattern)


def _machine(arguments: argparse.Namespace) -> "tuple[AllFunctions, DeviceMaps]":
    """The functions of the machine that is asked for, and their maps."""
    from barfs.devmem import PhysicalMemory  # noqa: PLC0415
    from barfs.machine.functions import AllFunctions  # noqa: PLC0415
    from barfs.machine.recorded import source_at  # noqa: PLC0415
    from barfs.registers.devices import DeviceMaps  # noqa: PLC0415
    from barfs.registers.files import DIRECTORIES, MapFiles  # noqa: PLC0415

    for directory in arguments.registers or ():
        if not directory.is_dir():
            raise NoSuchNode(f"--registers {directory} is not a directory")
    machine = recorded(arguments, COMMAND)
    source = source_at(machine, arguments.sysfs or REAL_SYSFS, arguments.proc or REAL_PROC)
    pci = AllFunctions(source)
    files = MapFiles((*(arguments.registers or ()), *DIRECTORIES))
    return pci, DeviceMaps(pci, PhysicalMemory(source, Path("/dev/null")), files)


def _by_file(files: "MapFiles", pattern: str) -> "tuple[str, Block]":
    """The map whose file is named so."""
    found = files.find([with_colons(pattern), pattern])
    if found is None:
        raise NoSuchNode(f"no function and no map is {pattern!a}")
    if found.map is None:
        raise NoSuchNode(f"the map {found.file} is refused: {found.refusal}")
    return found.file.stem, found.map.outline()


def _unused(files: Any, used: set[Path]) -> "Iterator[tuple[str, Block]]":
    """The maps of devices that are not there."""
    for directory in files.directories:
        for file in sorted(directory.glob("*.json")):
            found = files.find([file.stem]) if file not in used else None
            if found is not None and found.file == file and found.map is not None:
                yield file.stem, found.map.outline()


def _list(pattern: str, name: str | None, arguments: argparse.Namespace) -> None:
    from fnmatch import fnmatchcase  # noqa: PLC0415

    from barfs.registers.maps import registers  # noqa: PLC0415

    refused: list[str] = []
    found = [
        (owner, register)
        for owner, top in _tops(pattern, arguments, refused, config=True)
        for register in registers(top)
        if name is None or fnmatchcase(register.path, name)
    ]
    if found:
        _print(found, arguments)
    if refused:
        raise NoSuchNode("; ".join(refused))
    if not found:
        raise NoSuchNode(f"{pattern}: no register is named {name!a}" if name else pattern)


def _print(found: "Sequence[tuple[str, Register]]", arguments: argparse.Namespace) -> None:
    """Print registers and whose they are, a line each."""
    if arguments.json:
        say(json.dumps([_as_object(*one) for one in found], indent=2))
        return
    owners = {owner for owner, _ in found}
    rows = []
    for owner, register in found:
        place = f"{register.place}@{register.offset:x}"
        width, access = str(8 * register.size), _access(register)
        row = [place, width, access, register.path, register.description.partition("\n")[0]]
        rows.append([owner, *row] if len(owners) > 1 else row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    say("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))


def _access(register: "Register") -> str:
    from barfs.registers.plans import effects_of_reading  # noqa: PLC0415

    access = "r" * register.readable + "w" * register.writable
    return f"{access or '-'}{'!' if effects_of_reading(register) else ''}"


def _as_object(
    owner: str, register: "Register", fields: "Sequence[Field] | None" = None
) -> dict[str, object]:
    """A register for JSON, with some of its fields or all. Offset and widths are in bytes. Bits
    count from 0.
    """
    from barfs.registers.texts import how_written  # noqa: PLC0415

    place = register.place
    fields = register.fields if fields is None else fields
    return {
        "owner": owner,
        "name": register.path,
        "space": place.space.value,
        "bar": place.bar,
        "offset": register.offset,
        "offset_from": None if register.where.base is None else register.where.base.path,
        "width": register.size,
        "access_width": register.step,
        "access": _access(register).rstrip("!"),
        "read_has_effect": _access(register).endswith("!"),
        "description": register.description,
        "fields": [_field_object(register, field) for field in fields],
        "writes": {field.name: how_written(register, field) for field in fields},
    }


def _field_object(register: "Register", field: "Field") -> dict[str, object]:
    del register
    return {
        "name": field.name,
        "lsb": field.lsb,
        "msb": field.msb,
        "access": field.access,
        "on_read": field.on_read,
        "on_write": field.on_write,
        "self_clearing": field.self_clearing,
        "reset": field.reset,
        "enum": dict(field.values),
        "description": field.description,
    }


def _show(name: str, arguments: argparse.Namespace) -> None:
    """Print the datasheets of a register or a field, from each map that has it."""
    from barfs.registers.texts import datasheet  # noqa: PLC0415

    found: dict[str, tuple[str, Register, list[Field]]] = {}
    refused: list[str] = []
    for one in _named(name, arguments, refused):
        found.setdefault(datasheet(*one[1:]), one)
    if not found:
        raise NoSuchNode("; ".join([f"no map has {name!a}", *refused]))
    if arguments.json:
        say(json.dumps([_as_object(*one) for one in found.values()], indent=2))
    else:
        say("\n".join(f"{one[0]} {text}" for text, one in found.items()).rstrip("\n"))


def _named(
    name: str, arguments: argparse.Namespace, refused: list[str]
) -> "Iterator[tuple[str, Register, list[Field]]]":
    """The registers of a name, whose they are, and their fields, or the one that is named."""
    from barfs.registers.maps import Register, find  # noqa: PLC0415

    path, dot, last = name.removeprefix("regs/").partition(".")
    for owner, top in _tops(None, arguments, refused, config=path.startswith("config/")):
        entry = find(top, path.removeprefix(f"{top.path}/") if top.path else path)
        if isinstance(entry, Register):
            fields = [field for field in entry.fields if not dot or field.name == last]
            if fields or not dot:
                yield owner, entry, fields


def _compile(files: Sequence[Path], arguments: argparse.Namespace) -> None:
    from barfs.registers.compiled import CompileError, Target, text  # noqa: PLC0415

    place = None if arguments.bar is None else f"bar{arguments.bar}"
    target = Target(arguments.subjects or (), place, arguments.offset or 0)
    try:
        content = _content(files, target, arguments)
    except ModuleNotFoundError as error:
        package = {"systemrdl": "systemrdl-compiler"}.get(error.name or "", error.name)
        raise CompileError(f"{error.name} is missing: pip install {package}") from error
    try:
        Path(arguments.output).write_text(text(content), encoding="utf-8")
    except OSError as error:
        raise CompileError(f"{arguments.output}: {error.strerror}") from error


def _content(files: Sequence[Path], target: Any, arguments: argparse.Namespace) -> Any:
    if any(file.suffix.lower() in {".svd", ".xml"} for file in files):
        from barfs.registers.svd import compile_file  # noqa: PLC0415

        if len(files) > 1:
            raise UsageError("of SVD files one is compiled at a time", COMMAND)
        return compile_file(files[0], target)
    from barfs.registers.systemrdl import compile_files  # noqa: PLC0415

    return compile_files(
        files,
        target,
        include=arguments.include or (),
        top=arguments.top,
        perl=bool(arguments.perl),
    )


COMMAND: Final = Command(
    name="regs",
    summary="list, show and compile maps of registers, without a mount",
    description="What maps give registers and fields names, which regs/ and decode/ have then.\n"
    "  list PATTERN [NAME]   registers of functions, or of a map; NAME takes * ? []\n"
    "  show NAME             a register or field: where, how wide, what accesses do to it\n"
    "  compile FILE...       make a map of SystemRDL 2.0 or CMSIS-SVD (.svd) files\n"
    "In a list, ! means that reading has an effect. No BAR is touched.",
    examples="  barfs regs list 8086:100e 'CTRL*'\n  barfs regs show STATUS.LU\n"
    "  barfs regs compile fpga.rdl --output 10ee:9038.json --bar 0 --for 10ee:9038",
    run=run,
    options=(
        *(JSON, OUTPUT, SUBJECT, BAR, OFFSET, INCLUDE, TOP, PERL),
        *(REGISTERS, SYSFS, PROC, MACHINE),
    ),
    arguments=(
        Argument("ACTION", f"{', '.join(ACTIONS)}"),
        Argument("WORD", "what the action takes", many=True),
    ),
)
