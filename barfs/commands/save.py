"""`barfs save`: a machine's facts in a tar, and what somebody asks for of its BARs."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from barfs.commands.command import Argument, Command, UsageError
from barfs.commands.output import complain, say
from barfs.daemon.mountpoint import absolute
from barfs.daemon.options import Option
from barfs.daemon.settings import DEVMEM, PROC, SYSFS
from barfs.devmem import REAL_DEVMEM
from barfs.machine.source import REAL_PROC, REAL_SYSFS
from barfs.names import quoted

if TYPE_CHECKING:
    from barfs.saving.wishes import Wish


def _wish(text: str) -> "Wish":
    from barfs.saving.wishes import Wish  # noqa: PLC0415

    return Wish.parse(text)


OUTPUT: Final = Option("-o --output", "the tar to write", takes="FILE", parse=Path)
READ: Final = Option(
    "--read",
    "read this BAR, or this part of it, too: 1af4:1110/bar0@0-ff:u32; may be repeated",
    takes="DEVICE/BAR",
    parse=_wish,
    repeated=True,
)
REGISTERS: Final = Option(
    "--registers", "read all registers of maps that can be read without an effect"
)
REDACT: Final = Option("--redact", "leave out serial numbers, and memory that is no device's")

# How often a line at a terminal says how far it is, in seconds.
_OFTEN: Final = 0.1


class _Progress:
    """Tells who waits: lines, and at a terminal how far it is."""

    def __init__(self) -> None:
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._said = 0.0
        self._place = ""
        self._size = 0

    def line(self, text: str) -> None:
        """Print a line."""
        complain(f"barfs: {text}")

    def at(self, index: int, count: int) -> None:
        """Show which function it is, of how many."""
        self._place = f"{index}/{count} functions"
        self._show()

    def read(self, size: int) -> None:
        """Show how many bytes of BARs have been read."""
        self._size = size
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if self._shown and now - self._said >= _OFTEN:
            self._said = now
            sys.stderr.write(f"\r{self._place}, {self._size >> 10} KiB of BARs\x1b[K")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line at the terminal away."""
        if self._said:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def run(arguments: argparse.Namespace) -> None:
    """See the module. SystemExit with status 1 if something that was asked for was refused."""
    if arguments.output is None:
        raise UsageError("it takes --output FILE", COMMAND)
    # The other commands do not need this, and start faster without it.
    from barfs.report.doctor import machine_at  # noqa: PLC0415
    from barfs.saving.save import Asked, save  # noqa: PLC0415

    path = absolute(arguments.output)
    asked = Asked(
        patterns=arguments.pattern,
        wishes=arguments.read or (),
        registers=bool(arguments.registers),
        redact=bool(arguments.redact),
    )
    progress = _Progress()
    places = (
        absolute(arguments.sysfs or REAL_SYSFS),
        absolute(arguments.proc or REAL_PROC),
        absolute(arguments.devmem or REAL_DEVMEM),
    )
    with machine_at(*places) as machine:
        done = save(machine, path, asked, progress)
    progress.end()
    for refused in done.refused:
        complain(f"barfs: not saved: {refused}")
    name = quoted(arguments.output)
    say(
        f"{name}: {done.functions} function{'s'[: done.functions != 1]},"
        f" {done.read:#x} bytes of BARs;"
        f" look with: barfs ls --machine {name}"
    )
    if done.refused:
        sys.exit(1)


COMMAND: Final = Command(
    name="save",
    summary="save what is known of this machine, and chosen BARs, in a tar",
    description="Save what barfs reads of sysfs and /proc, config space of functions that are\n"
    "awake, and what doctor finds, for `barfs mount --machine`. No BAR is read that --read or\n"
    "--registers does not name. What is refused is said in the tar, too.",
    examples="  sudo barfs save -o lab7.tar\n"
    "  sudo barfs save -o nic.tar 8086:100e --registers\n"
    "  sudo barfs save -o card.tar 1af4:1110 --read 1af4:1110/bar0@0-ff:u32",
    run=run,
    options=(OUTPUT, READ, REGISTERS, REDACT, SYSFS, PROC, DEVMEM),
    arguments=(
        Argument(
            "PATTERN", "only these functions, and the bridges above them", optional=True, many=True
        ),
    ),
)
