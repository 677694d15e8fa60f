"""The command `barfs`: which commands there are, and how they end."""

import os
import signal
import sys
from typing import Final, NoReturn

from barfs.commands import demo, doctor, ls, mount, umount
from barfs.commands.command import parser_of
from barfs.daemon.mountpoint import MountError
from barfs.errors import BarfsError

# In the order of the usage.
COMMANDS: Final = (
    mount.COMMAND,
    umount.COMMAND,
    demo.COMMAND,
    ls.COMMAND,
    doctor.COMMAND,
)


def _run(words: list[str] | None) -> None:
    """Run a command; exit as by SIGPIPE, and as silently, if nobody reads its output any more."""
    broken = False
    arguments = parser_of(COMMANDS).parse_args(words)
    try:
        arguments.command.run(arguments)
        print(end="", flush=True)
    except* BrokenPipeError:  # in a group if it was a mount in the foreground that printed
        broken = True
    if broken:
        # Python writes what is left when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def main(words: list[str] | None = None) -> NoReturn:
    """The command `barfs`: exit status 0, 1 with one line on standard error, 2 for wrong usage."""
    try:
        _run(words)
    except (MountError, BarfsError) as error:
        print(f"barfs: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
