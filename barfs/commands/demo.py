"""`barfs demo`: a simulated machine, for as long as it is mounted."""

import argparse
import shutil
from pathlib import Path
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.commands.mount import FOREGROUND, serve
from barfs.daemon.settings import OPTIONS, Settings


def run(arguments: argparse.Namespace) -> None:
    """See the module."""
    # Not needed by the other commands, so that they start faster.
    import tempfile  # noqa: PLC0415

    from barfs.machine import simulated  # noqa: PLC0415

    directory = Path(tempfile.mkdtemp(prefix="barfs-demo-"))

    def finish() -> None:
        shutil.rmtree(directory, ignore_errors=True)

    try:
        machine = simulated.build(directory)
        mountpoint = arguments.mountpoint
        if mountpoint is None:
            mountpoint = directory / "mnt"
            mountpoint.mkdir()
        given = {name: value for name, value in vars(arguments).items() if value is not None}
        settings = Settings.of(mountpoint, {**vars(machine), **given})
    except BaseException:
        finish()
        raise
    foreground = bool(arguments.foreground)
    serve(
        settings,
        foreground=foreground,
        ready=lambda: _show(settings, foreground=foreground),
        finish=finish,
    )


def _show(settings: Settings, *, foreground: bool) -> None:
    """What is mounted, what to try, and how to end it."""
    from barfs.commands import drawing  # noqa: PLC0415
    from barfs.daemon.serve import machine_of, tree_of  # noqa: PLC0415
    from barfs.journal.records import Journal  # noqa: PLC0415

    where = settings.mountpoint
    _say(f"A simulated machine is mounted on {where}\n\n{where}")
    tree = tree_of(settings, machine_of(settings), Journal())
    for line in drawing.draw(tree):
        _say(line)
    _say("\nTry:")
    for command in drawing.suggestions(where, tree):
        _say(f"  {command}")
    how = "press Ctrl-C, or" if foreground else "run"
    _say(f"\nTo end it, {how}: barfs umount {where}")


def _say(text: str) -> None:
    print(text, flush=True)


COMMAND: Final = Command(
    name="demo",
    summary="mount a simulated machine",
    run=run,
    options=(FOREGROUND, *OPTIONS),
    arguments=(
        Argument(
            "MOUNTPOINT",
            "by default a new temporary directory",
            parse=Path,
            optional=True,
        ),
    ),
)
