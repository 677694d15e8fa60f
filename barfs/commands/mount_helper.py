"""`mount.barfs`, which mount(8) runs for `mount -t barfs` and for lines of /etc/fstab.

usage: mount.barfs SPEC DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]

The long options of `barfs mount` are mount options of the same names, with `_` or `-`; they are
taken from its parser. Exit status as mount(8) has it: 0, 1 for wrong usage, 32 if it failed.
"""

import argparse
import re
import sys
from typing import Final, NoReturn

from barfs.commands import cli
from barfs.daemon.mountpoint import MountError
from barfs.errors import BarfsError

WRONG_USAGE: Final = 1
FAILED: Final = 32

# What only mount(8) and those who read /etc/fstab make something of; `user=NAME` is its too.
_FOR_OTHERS: Final = {
    *("defaults", "auto", "noauto", "nofail", "_netdev"),
    *("user", "nouser", "users", "nousers", "owner", "noowner", "nogroup"),
}
_FOR_OTHERS_FORM: Final = re.compile(r"[xX]-.*|comment=.*|user=.*|uhelper=.*|helper=.*")

# Options of the command that are none of the mount's.
_NOT_OPTIONS: Final = {"help", "foreground", "options"}


def split(text: str) -> list[str]:
    """A list of mount options: between commas, but for those in double quotes (mount(8))."""
    return [word.replace('"', "") for word in re.findall(r'(?:[^,"]|"[^"]*"?)+', text)]


def mount_parser() -> argparse.ArgumentParser:
    """The parser of `barfs mount`."""
    # argparse has no other way to ask.
    (commands,) = (
        action
        for action in cli.parser()._actions  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
    )
    found: argparse.ArgumentParser = commands.choices["mount"]
    return found


def long_options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """What may be given as a mount option, by name with dashes."""
    return {
        spelling[2:]: action
        for action in parser._actions  # noqa: SLF001
        for spelling in action.option_strings
        if spelling.startswith("--") and action.dest not in _NOT_OPTIONS
    }


def translate(options: list[str], known: dict[str, argparse.Action]) -> list[str]:
    """Mount options as arguments of `barfs mount`. ValueError for a value too many or too few."""
    arguments = []
    for option in options:
        name, equals, value = option.partition("=")
        dashed = name.replace("_", "-")
        if name in _FOR_OTHERS or _FOR_OTHERS_FORM.fullmatch(option):
            continue
        if dashed not in known:
            arguments += ["-o", option]
        elif known[dashed].nargs == 0 and equals:
            raise ValueError(f"the option {name} takes no value")
        elif known[dashed].nargs == 0:
            arguments.append(f"--{dashed}")
        elif not equals:
            raise ValueError(f"the option {name} needs a value")
        else:
            arguments.append(f"--{dashed}={value}")
    return arguments


def parser() -> argparse.ArgumentParser:
    """What mount(8) calls a helper with."""
    result = argparse.ArgumentParser(prog="mount.barfs", description="Run by mount -t barfs.")
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


def _mount(words: list[str] | None) -> None:
    given = parser().parse_args(words)
    if given.namespace is not None:
        raise ValueError("mount in another namespace with: nsenter --mount=NAMESPACE mount ...")
    options = [option for text in given.options for option in split(text)]
    arguments = translate(options, long_options(mount_parser()))
    # `mount -a` knows a mounted line of fstab by its source, among others.
    command = ["mount", "-o", f"fsname={given.spec}", *arguments, "--", given.directory]
    if given.verbose:
        print("mount.barfs: barfs", *command)
    parsed = cli.parser().parse_args(command)
    if not given.fake:
        parsed.run(parsed)


def main(words: list[str] | None = None) -> NoReturn:
    """The command `mount.barfs`; see the module."""
    try:
        _mount(words)
    except ValueError as error:
        print(f"mount.barfs: {error}", file=sys.stderr)
        sys.exit(WRONG_USAGE)
    except (MountError, BarfsError) as error:
        print(f"mount.barfs: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except SystemExit as ended:  # argparse has said what is wrong
        sys.exit(WRONG_USAGE if ended.code else 0)
    sys.exit(0)
