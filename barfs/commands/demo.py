"""`barfs demo`: a simulated machine, for as long as it is mounted."""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.commands.mount import FOREGROUND, HINTS, serve
from barfs.commands.output import say
from barfs.daemon.interruption import all_or_nothing
from barfs.daemon.settings import OPTIONS, Settings
from barfs.names import quoted


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    # The other commands do not need this, and start faster without it.
    import tempfile  # noqa: PLC0415

    with all_or_nothing():
        directory = Path(tempfile.mkdtemp(prefix="barfs-demo-"))

        def finish() -> None:
            shutil.rmtree(directory, ignore_errors=True)

        try:
            settings = _settings(arguments, directory)
        except BaseException:
            finish()
            raise
        foreground = bool(arguments.foreground)
        serve(
            settings,
            foreground=foreground,
            ready=lambda: say("\n".join(_shown(settings, foreground=foreground))),
            finish=finish,
        )


def _settings(arguments: argparse.Namespace, directory: Path) -> Settings:
    """The options for a simulated machine, which is made here in an empty directory."""
    from barfs.machine import simulated  # noqa: PLC0415

    machine = simulated.build(directory)
    mountpoint = arguments.mountpoint
    if mountpoint is None:
        mountpoint = directory / "mnt"
        mountpoint.mkdir()
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    return Settings.of(mountpoint, {**vars(machine), **given})


def _shown(settings: Settings, *, foreground: bool) -> Iterator[str]:
    """Show what is mounted, what to try, and how to end it."""
    from barfs.commands import drawing  # noqa: PLC0415
    from barfs.daemon.serve import machine_of, tree_of  # noqa: PLC0415
    from barfs.journal.records import Journal  # noqa: PLC0415

    where = settings.mountpoint
    tree = tree_of(settings, machine_of(settings), Journal())
    yield f"A simulated machine is mounted on {where}"
    yield ""
    yield str(where)
    yield from drawing.draw(tree)
    yield ""
    yield "Try:"
    yield from (f"  {command}" for command in drawing.suggestions(where, tree))
    yield ""
    yield f"To end it, {'press Ctrl-C, or' if foreground else 'run'}: barfs umount {quoted(where)}"


COMMAND: Final = Command(
    name="demo",
    summary="mount a simulated machine, made of plain files; needs no root",
    description="Mount a simulated machine made of plain files, by default on a new temporary\n"
    "directory. It touches no hardware, needs no root, and is gone when it is unmounted.",
    examples="  barfs demo\n  barfs demo --log-reads bars",
    run=run,
    options=(FOREGROUND, *OPTIONS),
    arguments=(
        Argument(
            "MOUNTPOINT",
            "a directory; by default a new temporary one",
            parse=Path,
            optional=True,
        ),
    ),
    hints=HINTS,
)
