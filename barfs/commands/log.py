"""`barfs log`: print who read and wrote what through a mount, for people."""

import argparse
import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from barfs.commands.command import Argument, Command, UsageError
from barfs.commands.output import look, say
from barfs.daemon.mountpoint import (
    BARFS_TYPE,
    Mounted,
    MountError,
    State,
    absolute,
    is_in_barfs,
    mount_table,
    resolve,
    state,
    unmount_command,
)
from barfs.daemon.options import Option
from barfs.machine.patterns import DevicePattern, Form
from barfs.names import PciAddress, quoted

FOLLOW: Final = Option("-f --follow", "go on with what is added, until Ctrl-C or the mount's end")

# How often it looks for more lines, in seconds.
_INTERVAL: Final = 0.2

_PIECE: Final = 1 << 20


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    words = [word for word in (arguments.mountpoint, arguments.pattern) if word is not None]
    table = mount_table()
    places = [word for word in words if _is_path(word, table)]
    patterns = [word for word in words if word not in places]
    if len(places) > 1 or len(patterns) > 1:
        raise UsageError(
            "it takes at most one MOUNTPOINT, which has a / or is a directory, and one PATTERN",
            COMMAND,
        )
    path = log_of(Path(places[0]) if places else None)
    _print(path, patterns[0] if patterns else None, follow=bool(arguments.follow))


def _is_path(word: str, table: dict[str, Mounted]) -> bool:
    """Whether a word is a path, not a pattern. It looks nothing up in a barfs mount, since each
    name that is not there would be a line in the log of that mount.
    """
    if "/" in word or word in {".", ".."}:
        return True
    where = resolve(absolute(Path(word)), table)
    return where in table or (not is_in_barfs(where, table) and os.path.exists(where))


def log_of(place: Path | None) -> Path:
    """The `log` of a mount, or a file that --log has written. A `place` of None: the only mount.

    MountError if there is no such mount, or if it does not answer.
    """
    table = mount_table()
    if place is None:
        found = [where for where, mounted in table.items() if mounted.kind == BARFS_TYPE]
        if not found:
            raise MountError("there is no barfs mount; make one with: barfs mount, or barfs demo")
        if len(found) > 1:
            which = ", or ".join(f"barfs log {quoted(where)}" for where in sorted(found))
            raise MountError(f"there are {len(found)} barfs mounts; say which: {which}")
        where = found[0]
    else:
        where = resolve(absolute(place), table)
    mounted = table.get(where)
    if mounted is None or mounted.kind != BARFS_TYPE:
        if is_in_barfs(where, table):
            raise MountError(f"{place} is a file of a barfs mount; give the mount itself")
        if os.path.isfile(where):
            return Path(where)
        raise MountError(f"{place} is not a barfs mount, nor a file that --log has written")
    how = state(where, mounted)
    if how is State.DEAD:
        raise MountError(
            f"{where} holds a dead mount: its daemon is gone, and its log with it; clear it with:"
            f" {unmount_command(where, mounted)}"
        )
    if how is not State.LIVE:
        raise MountError(f"the mount on {where} does not answer: {how.value}")
    return Path(where, "log")


def _gap(missing: int) -> str:
    """What stands in the place of lines that are lost."""
    what = "1 line is" if missing == 1 else f"{missing} lines are"
    return f"... {what} no longer kept ..."


def _print(path: Path, pattern: str | None, *, follow: bool) -> None:
    """Print the lines of a log, and with `follow` also new ones. MountError if it can't be read."""
    # The other commands do not need this, and start faster without it.
    from barfs.report import history  # noqa: PLC0415

    as_seen = look()
    wanted = _filter(path, pattern)
    try:
        with _opened(path) as fd:
            number = 0
            for records in _records(path, _pieces(fd, follow=follow)):
                shown = []
                for record in records:
                    missing = record.get("n", 0) - number - 1
                    if number and missing > 0:
                        shown.append(_gap(missing))
                    number = record.get("n", 0)
                    text = history.sentence(record, as_seen)
                    if wanted(record, text):
                        shown.append(text)
                if shown:
                    say("\n".join(shown))
    except PermissionError:
        raise MountError(f"{path} is for whoever mounted; try: sudo barfs log") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a log. OSError if it does not open."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):  # the mount has ended
            os.close(fd)


def _records(path: Path, pieces: Iterator[list[bytes]]) -> Iterator[list[dict[str, Any]]]:
    """The records of a log, some at a time. MountError if the file is something else."""
    from barfs.report import history  # noqa: PLC0415

    known = False
    for lines in pieces:
        records = list(filter(None, map(history.parse, lines)))
        known = known or bool(records)
        if lines and not known:
            raise MountError(f"{path} is no log of barfs")
        yield records


def _pieces(fd: int, *, follow: bool) -> Iterator[list[bytes]]:
    """The lines of a log, as many at a time as there are. With `follow` it goes on until the mount
    ends.
    """
    rest = b""
    while True:
        try:
            piece = os.read(fd, _PIECE)
        except OSError as error:
            if error.errno in {errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV}:
                return
            raise
        if not piece and not follow:
            if rest:  # the last line is torn
                yield [rest]
            return
        if not piece:
            time.sleep(_INTERVAL)
            continue
        *lines, rest = (rest + piece).split(b"\n")
        yield lines


def _filter(path: Path, pattern: str | None) -> Callable[[dict[str, Any], str], bool]:
    """A function that tells whether a record, with its text, is wanted."""
    if pattern is None:
        return lambda _record, _text: True
    devices = DevicePattern.parse(pattern)
    if devices is None:
        word = pattern.lower()
        return lambda _record, text: word in text.lower()
    if devices.form is Form.ADDRESS:
        return lambda record, _text: devices.matches(record.get("device") or "")
    found = set(_addresses(path.parent, devices))
    return lambda record, _text: record.get("device") in found


def _addresses(mount: Path, pattern: DevicePattern) -> Iterator[str]:
    """The PCI addresses of the functions in a mount that match a pattern of ids now.

    The ids are read in sysfs, where the mount's links lead. MountError if there is no mount.
    """
    from barfs.machine.functions import AllFunctions  # noqa: PLC0415
    from barfs.machine.source import source_of  # noqa: PLC0415

    try:
        listed = os.listdir(mount / "pci")
    except OSError:
        raise MountError(f"{pattern}: without its mount, a log knows PCI addresses only") from None
    for name in listed:
        address = PciAddress.parse(name)
        try:
            directory = Path(os.readlink(mount / "pci" / name / "sysfs"))
        except OSError:  # it has gone
            continue
        # <sysfs>/bus/pci/devices/<address>
        pci = AllFunctions(source_of(directory.parents[3]))
        if address is not None and pattern.means(partial(pci.name, address), unknown=False):
            yield name


COMMAND: Final = Command(
    name="log",
    summary="who read and wrote what, and why something was refused",
    description="Print the log of a mount so that it can be read: when, who, what, and why\n"
    "something was refused. Reads are in it if the mount was made with --log-reads.",
    examples="  sudo barfs log\n"
    "  sudo barfs log -f\n"
    "  sudo barfs log /mnt/bars 1af4:1110\n"
    "  sudo barfs log refused",
    run=run,
    options=(FOLLOW,),
    arguments=(
        Argument(
            "MOUNTPOINT",
            "a mount, or a file that --log has written; by default the only mount there is",
            optional=True,
        ),
        Argument(
            "PATTERN",
            "only what concerns these functions, as for barfs ls; or lines with this in them",
            optional=True,
        ),
    ),
)
