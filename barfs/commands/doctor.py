"""`barfs doctor`: what works on this machine, what does not, and how to mend it."""

import argparse
import sys
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.commands.ls import JSON
from barfs.commands.machines import recorded
from barfs.commands.output import look, say
from barfs.daemon.mountpoint import absolute
from barfs.daemon.settings import DEVMEM, MACHINE, PROC, SYSFS
from barfs.devmem import REAL_DEVMEM
from barfs.machine.source import REAL_PROC, REAL_SYSFS


def run(arguments: argparse.Namespace) -> None:
    """See the module. SystemExit with status 1 for trouble that counts."""
    # The other commands do not need this, and start faster without it.
    from barfs.report import doctor  # noqa: PLC0415

    found = doctor.findings(
        absolute(arguments.sysfs or REAL_SYSFS),
        absolute(arguments.proc or REAL_PROC),
        absolute(arguments.devmem or REAL_DEVMEM),
        arguments.pattern,
        machine=recorded(arguments, COMMAND),
    )
    say(doctor.as_json(found) if arguments.json else "\n".join(doctor.lines(found, look())))
    if doctor.is_hopeless(found, arguments.pattern):
        sys.exit(1)


COMMAND: Final = Command(
    name="doctor",
    summary="say what works on this machine, what does not, and how to mend it",
    description="Say what works on this machine, what does not, and how to mend it. The exit\n"
    "status is 1 if something keeps barfs from working; with PATTERN also if something\n"
    "keeps it from those functions. It reads command registers, and needs no mount.",
    examples="  sudo barfs doctor\n  sudo barfs doctor 1af4:1110",
    run=run,
    options=(JSON, SYSFS, PROC, DEVMEM, MACHINE),
    arguments=(
        Argument(
            "PATTERN",
            "only these functions, as for barfs ls",
            optional=True,
        ),
    ),
)
