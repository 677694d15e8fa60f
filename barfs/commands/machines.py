"""Which machine a command is about: the one that its options name."""

import argparse
from pathlib import Path

from barfs.commands.command import Command, UsageError


def recorded(arguments: argparse.Namespace, command: Command) -> Path | None:
    """The recorded machine that --machine names. UsageError if other options name one, too."""
    machine: Path | None = arguments.machine
    for name in ("sysfs", "proc", "devmem"):
        if machine is not None and getattr(arguments, name, None) is not None:
            raise UsageError(f"--machine says all of a machine; leave --{name} out", command)
    return machine
