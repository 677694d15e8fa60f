"""`barfs mount`: this machine, on a directory."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.daemon.mountpoint import MountError
from barfs.daemon.options import Option
from barfs.daemon.settings import OPTIONS, Settings

log = logging.getLogger(__name__)

FOREGROUND: Final = Option("-f --foreground", "stay in the foreground, log to stderr")


def serve(
    settings: Settings,
    *,
    foreground: bool,
    ready: Callable[[], None],
    finish: Callable[[], None],
) -> None:
    """Serve in the foreground, or return once a background daemon answers. MountError.

    `ready` is called when the mount answers, and `finish` when there is none any more.
    """
    # Not needed by the other commands, so that they start faster.
    from barfs.daemon.serve import run_in_background, run_in_foreground  # noqa: PLC0415

    if foreground:
        try:
            run_in_foreground(settings, ready)
        finally:
            finish()
        return
    try:
        run_in_background(settings, finish)
    except MountError:
        finish()
        raise
    ready()


def run(arguments: argparse.Namespace) -> None:
    """See the module."""
    settings = Settings.of(arguments.mountpoint, vars(arguments))

    def ready() -> None:
        if arguments.foreground:
            log.info("mounted on %s", settings.mountpoint)

    serve(settings, foreground=bool(arguments.foreground), ready=ready, finish=lambda: None)


COMMAND: Final = Command(
    name="mount",
    summary="mount this machine",
    run=run,
    options=(FOREGROUND, *OPTIONS),
    arguments=(Argument("MOUNTPOINT", parse=Path),),
)
