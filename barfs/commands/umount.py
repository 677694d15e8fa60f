"""`barfs umount`: the end of a mount, live or dead."""

import argparse
import os
from pathlib import Path
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.daemon.mountpoint import absolute, unmount
from barfs.daemon.options import Option

QUIET: Final = Option("-q --quiet", "it is no error if nothing is mounted")

DEAD: Final = Option("--dead", "only if its daemon is gone")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    mountpoint = absolute(arguments.mountpoint)
    os.chdir("/")  # a mount is busy while this process is in it
    unmount(mountpoint, quiet=bool(arguments.quiet), dead=bool(arguments.dead))


COMMAND: Final = Command(
    name="umount",
    summary="unmount; also what a dead daemon has left",
    description="Unmount. What a dead daemon has left is cleared also if it is in use.",
    examples="  sudo barfs umount /mnt/bars",
    run=run,
    options=(QUIET, DEAD),
    arguments=(Argument("MOUNTPOINT", "where it is mounted", parse=Path),),
    aliases=("unmount",),
    hints=dict.fromkeys(
        ("-f", "--force", "-l", "--lazy", "-z"), "a dead mount is cleared without it, also if busy"
    ),
)
