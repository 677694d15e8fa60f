"""How a program ends that could not do what it should: a line, an exit status, no traceback."""

import errno
import signal
import sys
from typing import Final

from barfs.commands.command import UsageError
from barfs.commands.output import OutputError, complain
from barfs.daemon.mountpoint import MountError
from barfs.errors import BarfsError

# Errors that end a program with one line. A mount in the foreground raises groups.
FORESEEN: Final = (UsageError, OutputError, MountError, BarfsError, OSError, ExceptionGroup)


def ended_by(program: str, error: Exception, *, wrong_usage: int, failed: int) -> None:
    """Say what went wrong, one of FORESEEN, and exit. Raises what nobody has foreseen."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    match error:
        case UsageError():
            command = error.command
            name = f" {command.name}" if command else ""
            complain(f"{program}{name}: {error}")
            usage = command.usage if command else "barfs COMMAND ..."
            complain(f"usage: {usage} (see: barfs help{name})")
            sys.exit(wrong_usage)
        case OutputError() if error.number == errno.EPIPE:
            # Nobody reads the output any more, and that is no news to anybody.
            sys.exit(128 + signal.SIGPIPE)
        case MountError() | BarfsError() | OutputError():
            complain(f"{program}: {error}")
        case OSError():
            words = (error.strerror or str(error), error.filename and str(error.filename))
            complain(f"{program}: {': '.join(filter(None, words))}")
        case _:
            raise error
    sys.exit(failed)
