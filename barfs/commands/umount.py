"""`barfs umount`: the end of a mount, live or dead."""

import argparse
from pathlib import Path
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.daemon.mountpoint import unmount
from barfs.daemon.options import Option

QUIET: Final = Option("-q --quiet", "it is no error if nothing is mounted")


def run(arguments: argparse.Namespace) -> None:
    """See the module."""
    unmount(arguments.mountpoint.absolute(), quiet=bool(arguments.quiet))


COMMAND: Final = Command(
    name="umount",
    summary="unmount",
    run=run,
    options=(QUIET,),
    arguments=(Argument("MOUNTPOINT", parse=Path),),
)
