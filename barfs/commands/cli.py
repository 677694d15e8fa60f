"""The command `barfs`: which commands there are, and how they end."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from barfs.commands import demo, doctor, ksym, log, ls, mount, mount_helper, regs, save, umount
from barfs.commands.command import VERSION, Command, UsageError, help_of, near, parse
from barfs.commands.ending import FORESEEN, ended_by
from barfs.commands.output import complain, say
from barfs.names import quoted

# In the order of the usage.
COMMANDS: Final = (
    mount.COMMAND,
    umount.COMMAND,
    demo.COMMAND,
    ls.COMMAND,
    doctor.COMMAND,
    ksym.COMMAND,
    log.COMMAND,
    regs.COMMAND,
    save.COMMAND,
)
_BY_NAME: Final = {name: one for one in COMMANDS for name in (one.name, *one.aliases)}

# What other programs call what barfs has, too.
_MEANT: Final = {
    "list": "ls",
    "lspci": "ls",
    "info": "ls -v",
    "show": "ls -v",
    "status": "doctor",
    "check": "doctor",
    "stop": "umount",
    "start": "mount",
}

WRONG_USAGE: Final = 2
FAILED: Final = 1


def overview() -> str:
    """What there is, and where to begin."""
    usages = [one.usage.replace("[OPTION]... ", "") for one in COMMANDS]
    width = max(map(len, usages))
    lines = [
        f"  {usage:{width}}  {one.summary}" for usage, one in zip(usages, COMMANDS, strict=True)
    ]
    return "\n".join(
        (
            "barfs: a machine's PCI BARs and physical memory as files.",
            "",
            "Begin with: barfs demo",
            "",
            *lines,
            "",
            "examples:",
            *(line for one in COMMANDS for line in one.examples.splitlines()[:1]),
            "",
            "`barfs help COMMAND` shows its options, `man barfs` all there is.",
        )
    )


def _find(word: str) -> Command:
    """The command that a word names. UsageError with what may have been meant."""
    if word in _BY_NAME:
        return _BY_NAME[word]
    # A directory `check` may be there by chance; a word that other programs have is meant.
    if "/" in word or (os.path.isdir(word) and word not in _MEANT):
        raise UsageError(f"{word!r} is no command; to mount there: barfs mount {quoted(word)}")
    if word.startswith("-"):
        raise UsageError(f"there is no option {word} before a command")
    meant = _MEANT.get(word.lower()) or near(word, [*_BY_NAME, "help"])
    hint = f"; did you mean: barfs {meant}?" if meant else ""
    raise UsageError(f"there is no command {word!r}{hint}")


def _run(words: Sequence[str]) -> None:
    """Do what the words of a command line say. UsageError, and what a command raises."""
    if not words:
        complain(overview())
        sys.exit(WRONG_USAGE)
    first, *rest = words
    if first in {"-V", "--version", "version"}:
        say(VERSION)
    elif first in {"-h", "--help", "help"}:
        say(help_of(_find(rest[0])) if rest else overview())
    elif mount_helper.is_call(words):
        mount_helper.main(words)
    else:
        command = _find(first)
        command.run(parse(command, rest))


def main(words: Sequence[str] | None = None) -> NoReturn:
    """The command `barfs`: exit status 0, 1 with one line on standard error, 2 for wrong usage."""
    try:
        _run(sys.argv[1:] if words is None else words)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except FORESEEN as error:
        ended_by("barfs", error, wrong_usage=WRONG_USAGE, failed=FAILED)
    sys.exit(0)
