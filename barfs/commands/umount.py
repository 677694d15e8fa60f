"""`barfs umount`: the end of a mount, live or dead."""

import argparse
from pathlib import Path
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.daemon.mountpoint import unmount
from barfs.daemon.options import Option

QUIET: Final = Option("-q --quiet", "it is no error if nothing is mounted")

DEAD: Final = Option("--dead", "only if its daemon is gone")


def run(arguments: argparse.Namespace) -> None:
    """See the module."""
    mountpoint: Path = arguments.mountpoint.absolute()
    unmount(mountpoint, quiet=bool(arguments.quiet), dead=bool(arguments.dead))


COMMAND: Final = Command(
    name="umount",
    summary="unmount",
    run=run,
    options=(QUIET, DEAD),
    arguments=(Argument("MOUNTPOINT", parse=Path),),
)
