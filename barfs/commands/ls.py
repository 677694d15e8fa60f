"""`barfs ls`: the machine's PCI functions, without a mount."""

import argparse
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.daemon.options import Option
from barfs.daemon.settings import SYSFS
from barfs.machine.source import REAL_SYSFS

VERBOSE: Final = Option("-v --verbose", "the text of `info` of each")
JSON: Final = Option("--json", "a list of objects")


def run(arguments: argparse.Namespace) -> None:
    """See the module."""
    # Not needed by the other commands, so that they start faster.
    from barfs.report import listing  # noqa: PLC0415

    form: listing.Form = "json" if arguments.json else "text" if arguments.verbose else "table"
    for line in listing.show(arguments.sysfs or REAL_SYSFS, arguments.pattern, form):
        print(line)


COMMAND: Final = Command(
    name="ls",
    summary="list this machine's PCI functions, without a mount",
    description="List PCI functions: address, id, name, driver, BARs and expansion ROM.",
    run=run,
    exclusive=(VERBOSE, JSON),
    options=(SYSFS,),
    arguments=(
        Argument(
            "PATTERN",
            "a PCI address, vendor:device as links are named, or any part of a name",
            optional=True,
        ),
    ),
)
