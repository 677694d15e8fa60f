"""`barfs mount`: this machine, on a directory."""

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from barfs.commands.command import Argument, Command
from barfs.commands.output import complain, is_terminal, say
from barfs.daemon.interruption import all_or_nothing
from barfs.daemon.mountpoint import hides_something
from barfs.daemon.options import Option
from barfs.daemon.settings import OPTIONS, Settings
from barfs.machine.patterns import DevicePattern
from barfs.names import quoted

log = logging.getLogger(__name__)

FOREGROUND: Final = Option("-f --foreground", "stay in the foreground, log to stderr")


# What people type who know other programs.
HINTS: Final = {
    **dict.fromkeys(("-ro", "-r", "--ro", "--readonly"), "did you mean --read-only?"),
    "-rw": "a mount can be written to without it",
    "-t": "did you mean: mount -t barfs?",
}


def serve(
    settings: Settings,
    *,
    foreground: bool,
    ready: Callable[[], None],
    finish: Callable[[], None],
) -> None:
    """Serve in the foreground, or return once a background daemon answers. MountError.

    `ready` is called when the mount answers; there is no mount if it raises something. `finish` is
    called when there is no mount any more.
    """
    # The other commands do not need this, and start faster without it.
    from barfs.daemon.background import run_in_background  # noqa: PLC0415
    from barfs.daemon.serve import run_in_foreground  # noqa: PLC0415

    if foreground:
        try:
            run_in_foreground(settings, ready)
        finally:
            finish()
        return
    try:
        run_in_background(settings, ready, finish)
    except BaseException:
        finish()
        raise


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    settings = Settings.of(arguments.mountpoint, vars(arguments))
    foreground = bool(arguments.foreground)
    notes = list(notes_on(settings))

    def ready() -> None:
        tell(notes, foreground=foreground)
        if foreground:
            log.info("mounted on %s", settings.mountpoint)
        elif is_terminal():
            say(_how_to_go_on(settings.mountpoint))

    with all_or_nothing():
        serve(settings, foreground=foreground, ready=ready, finish=lambda: None)


def notes_on(settings: Settings) -> Iterator[str]:
    """Notes on options that work, but were most likely not meant. Reads sysfs."""
    # The other commands do not need this, and start faster without it.
    from barfs.machine.functions import AllFunctions  # noqa: PLC0415
    from barfs.machine.recorded import source_at  # noqa: PLC0415

    patterns = [
        (option, value)
        for option in OPTIONS
        for value in (getattr(settings, option.name) if option.repeated else ())
        if isinstance(value, DevicePattern)
    ]
    if patterns:
        pci = AllFunctions(source_at(settings.machine, settings.sysfs))
        for option, value in patterns:
            names = (partial(pci.name, address) for address in pci.addresses())
            if not any(value.means(name, unknown=False) for name in names):
                yield f"{option.spelled} {value} matches none of the functions that are there now"
    if hides_something(settings.mountpoint):
        yield f"{settings.mountpoint} is not empty: what is in it is hidden until barfs umount"


def tell(notes: Iterable[str], *, foreground: bool) -> None:
    """Tell the user who mounts."""
    for note in notes:
        if foreground:
            log.warning("%s", note)
        else:
            complain(f"barfs: {note}")


def _how_to_go_on(mountpoint: Path) -> str:
    """A line for who mounted."""
    where = quoted(mountpoint)
    # Only the user who mounted sees anything, and with sudo that user is root.
    sudo = "sudo " if "SUDO_USER" in os.environ else ""
    # A shell that stands in the directory still sees what the mount hides.
    back = f"cd {where}; " if Path.cwd() == mountpoint else ""
    look, end = f"{back}{sudo}ls {where}", f"{sudo}barfs umount {where}"
    return f"mounted on {where}; look with: {look}   end with: {end}"


COMMAND: Final = Command(
    name="mount",
    summary="mount this machine; needs root",
    description="Mount this machine's PCI BARs and physical memory on a directory, go to the\n"
    "background, and return when the mount answers. It needs root.",
    examples="  sudo barfs mount /mnt/bars\n"
    "  sudo barfs mount --read-only --no-phys /mnt/bars\n"
    "  sudo barfs mount -o allow_other --group lab --mode 660 --allow-device '1af4:*' /mnt/bars",
    run=run,
    options=(FOREGROUND, *OPTIONS),
    arguments=(Argument("MOUNTPOINT", "a directory", parse=Path),),
    hints=HINTS,
)
