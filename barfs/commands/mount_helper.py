"""`mount.barfs`, which mount(8) runs for `mount -t barfs` and for lines of /etc/fstab.

usage: mount.barfs SPEC DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]

The long options of `barfs mount` are mount options of the same names, with `_` or `-`; they are
those of Settings (barfs.daemon.settings). Exit status as mount(8) has it: 0, 1 for wrong usage, 32
if it failed.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

from barfs.commands import mount
from barfs.commands.command import VERSION, UsageError, parse
from barfs.commands.ending import FORESEEN, ended_by
from barfs.commands.output import complain, say
from barfs.daemon.mountpoint import MountError
from barfs.daemon.options import Option
from barfs.daemon.settings import OPTIONS

WRONG_USAGE: Final = 1
FAILED: Final = 32

# Options that only mount(8) and readers of /etc/fstab use. `user=NAME` is one, too.
_FOR_OTHERS: Final = {
    *("defaults", "auto", "noauto", "nofail", "_netdev"),
    *("user", "nouser", "users", "nousers", "owner", "noowner", "nogroup"),
}
_FOR_OTHERS_FORM: Final = re.compile(r"[xX]-.*|comment=.*|user=.*|uhelper=.*|helper=.*")


def split(text: str) -> list[str]:
    """The mount options in a list. Commas separate them, but not in double quotes (mount(8))."""
    return [word.replace('"', "") for word in re.findall(r'(?:[^,"]|"[^"]*"?)+', text)]


def long_options(options: Iterable[Option] = OPTIONS) -> dict[str, Option]:
    """The options that may be given as mount options, by their names with dashes."""
    return {option.long_name: option for option in options if option.long_name is not None}


def translate(options: list[str], known: dict[str, Option]) -> list[str]:
    """Mount options as arguments of `barfs mount`. ValueError for a wrong number of values."""
    arguments = []
    for option in options:
        name, equals, value = option.partition("=")
        dashed = name.replace("_", "-")
        if name in _FOR_OTHERS or _FOR_OTHERS_FORM.fullmatch(option):
            continue
        if dashed not in known:
            arguments += ["-o", option]
        elif not known[dashed].takes_value and equals:
            raise ValueError(f"the option {name} takes no value")
        elif not known[dashed].takes_value:
            arguments.append(f"--{dashed}")
        elif not equals:
            raise ValueError(f"the option {name} needs a value")
        else:
            arguments.append(f"--{dashed}={value}")
    return arguments


def is_call(words: Sequence[str]) -> bool:
    """Whether mount.fuse3(8) has called. It runs the program that a type `fuse.barfs` names."""
    return len(words) == 4 and words[2] == "-o" and os.path.isdir(words[1])


def parser() -> argparse.ArgumentParser:
    """The arguments that mount(8) gives a helper."""
    result = argparse.ArgumentParser(
        prog="mount.barfs", description="Run by mount -t barfs.", allow_abbrev=False
    )
    result.add_argument("--version", action="version", version=VERSION)
    result.add_argument("spec", metavar="SPEC", help="any word; shown as the mount's source")
    result.add_argument("directory", metavar="DIR")
    result.add_argument("-s", dest="sloppy", action="store_true", help="no effect")
    result.add_argument("-f", dest="fake", action="store_true", help="do nothing")
    result.add_argument("-n", dest="no_mtab", action="store_true", help="no effect")
    result.add_argument("-v", dest="verbose", action="store_true", help="show the command")
    result.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="refused")
    result.add_argument("-t", dest="type", metavar="TYPE", help="no effect")
    result.add_argument("-o", dest="options", metavar="OPTIONS", action="append", default=[])
    return result


def _mount(words: Sequence[str] | None) -> None:
    given = parser().parse_args(words)
    if given.namespace is not None:
        raise ValueError("mount in another namespace with: nsenter --mount=NAMESPACE mount ...")
    options = [option for text in given.options for option in split(text)]
    if "remount" in options:
        raise MountError(
            f"{given.directory} can't be remounted; -o remount,bind,ro makes it read-only, and for"
            " anything else unmount it, and mount it again with the options"
        )
    # `mount -a` recognizes a mounted line of fstab by its source, too.
    arguments = ["-o", f"fsname={given.spec}", *translate(options, long_options())]
    arguments += ["--", given.directory]
    if given.verbose:
        say(f"mount.barfs: barfs mount {' '.join(arguments)}")
    parsed = parse(mount.COMMAND, arguments)
    if not given.fake:
        mount.run(parsed)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """The command `mount.barfs`; see the module."""
    try:
        _mount(words)
    except (ValueError, UsageError) as error:
        complain(f"mount.barfs: {error}")
        sys.exit(WRONG_USAGE)
    except KeyboardInterrupt:
        sys.exit(FAILED)
    except SystemExit as ended:  # argparse has told what is wrong
        sys.exit(WRONG_USAGE if ended.code else 0)
    except FORESEEN as error:
        ended_by("mount.barfs", error, wrong_usage=WRONG_USAGE, failed=FAILED)
    sys.exit(0)
