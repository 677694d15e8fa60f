"""`barfs ksym`: the kernel's symbols, and where they lie, without a mount."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from barfs.commands.command import Argument, Command
from barfs.commands.ls import JSON
from barfs.commands.output import say
from barfs.daemon.settings import DEVMEM, PROC, SYSFS
from barfs.devmem import REAL_DEVMEM
from barfs.errors import NoSuchNode
from barfs.machine.source import REAL_PROC, REAL_SYSFS

if TYPE_CHECKING:
    from barfs.machine.symbols import Symbol


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    paths = (
        arguments.sysfs or REAL_SYSFS,
        arguments.proc or REAL_PROC,
        arguments.devmem or REAL_DEVMEM,
    )
    found = _located(*paths, arguments.pattern)
    if arguments.json:
        say(json.dumps([_as_object(*one) for one in found], indent=2))
    else:
        say("\n".join(_line(*one) for one in found))


def _line(symbol: "Symbol", physical: int | None) -> str:
    address = "-" if physical is None else f"{physical:x}"
    module = "" if symbol.module is None else f" [{symbol.module}]"
    return f"{address:>12}  {symbol.size:>8x}  {symbol.kind}  {symbol.name}{module}"


def _located(
    sysfs: Path, proc: Path, devmem: Path, pattern: str
) -> "list[tuple[Symbol, int | None]]":
    """The symbols that match a shell pattern, by virtual address, and where they lie.

    NoSuchNode if there are none, or the kernel shows no addresses. Touches no memory.
    """
    # The other commands do not need this, and start faster without it.
    from barfs.devmem import PhysicalMemory  # noqa: PLC0415
    from barfs.machine.kcore import CoreFile  # noqa: PLC0415
    from barfs.machine.source import source_of  # noqa: PLC0415
    from barfs.machine.symbols import Symbols  # noqa: PLC0415
    from barfs.spans.kernel import KernelMemory  # noqa: PLC0415

    symbols, core = Symbols(proc), CoreFile(proc)
    try:
        memory = KernelMemory(PhysicalMemory(source_of(sysfs, proc), devmem), symbols, core)
        found = list(memory.located(pattern))
    finally:
        symbols.close()
        core.close()
    if not found:
        raise NoSuchNode(f"nothing matches {pattern!a}")
    return found


def _as_object(symbol: "Symbol", physical: int | None) -> dict[str, object]:
    """A symbol for JSON. Addresses and size are integers. null means unknown, or none."""
    return {
        "name": symbol.name,
        "virtual": symbol.address,
        "physical": physical,
        "size": symbol.size or None,
        "kind": symbol.kind,
        "module": symbol.module,
    }


COMMAND: Final = Command(
    name="ksym",
    summary="list the kernel's symbols, and where they lie in memory; needs root",
    description="List the kernel's symbols that a pattern means: physical address and size in hex,"
    "\nkind as nm(1) has it, name. Each is a file of that name in the mount's ksym/.\n"
    "A dash stands for the address of a symbol outside of the kernel's image.\n"
    "No memory is touched.",
    examples="  barfs ksym init_uts_ns\n  barfs ksym 'init_*'\n  barfs ksym --json '*_lock'",
    run=run,
    options=(JSON, SYSFS, PROC, DEVMEM),
    arguments=(Argument("PATTERN", "a name, with * ? []; quote it for the shell"),),
)
