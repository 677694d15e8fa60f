"""`barfs ls`: the machine's PCI functions, without a mount."""

import argparse
from functools import partial
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.commands.machines import recorded
from barfs.commands.output import look, say
from barfs.daemon.options import Option, pattern
from barfs.daemon.settings import MACHINE, SYSFS
from barfs.machine.patterns import Form
from barfs.machine.source import REAL_SYSFS

VERBOSE: Final = Option("-v --verbose", "the text of `info` of each")
JSON: Final = Option("--json", "a list of objects")
# As lspci has them.
SLOT: Final = Option(
    "-s",
    "only this PCI address, as lspci -s",
    takes="ADDRESS",
    parse=partial(pattern, form=Form.ADDRESS),
    name="slot",
)
DEVICE: Final = Option(
    "-d",
    "only this vendor:device, as lspci -d",
    takes="ID",
    parse=partial(pattern, form=Form.ID),
    name="device",
)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    # The other commands do not need this, and start faster without it.
    from barfs.report import listing  # noqa: PLC0415

    form: listing.Form = "json" if arguments.json else "text" if arguments.verbose else "table"
    patterns = filter(None, (arguments.slot, arguments.device))
    lines = list(
        listing.show(
            arguments.sysfs or REAL_SYSFS,
            arguments.pattern,
            form,
            patterns=patterns,
            look=look(),
            machine=recorded(arguments, COMMAND),
        )
    )
    if lines:
        say("\n".join(lines))


COMMAND: Final = Command(
    name="ls",
    summary="list this machine's PCI functions; needs no mount and no root",
    description="List PCI functions: address, id, name, driver, BARs and expansion ROM.\n"
    "No device is touched; -v and --json read command registers.",
    examples="  barfs ls\n  barfs ls 1af4:1110\n  barfs ls -v 00:03.0\n  barfs ls ethernet",
    run=run,
    exclusive=(VERBOSE, JSON),
    options=(SLOT, DEVICE, SYSFS, MACHINE),
    arguments=(
        Argument(
            "PATTERN",
            "a PCI address or vendor:device, with * ? []; a link's name; or any part of a name,"
            " class or driver",
            optional=True,
        ),
    ),
    hints={
        **dict.fromkeys(("-k", "-n", "-nn", "-D"), "ids, drivers and domains are always shown"),
        **dict.fromkeys(("-x", "-xxx", "-xxxx"), "config space is the file `config` of a mount"),
    },
)
