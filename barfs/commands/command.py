"""What a command is, and how its words are read: by a parser that is made of its options."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import barfs
from barfs.commands.output import say
from barfs.daemon.options import Option

VERSION: Final = f"barfs {barfs.__version__}"


class UsageError(Exception):
    """The words of a command line are not what it takes; the message is a line.

    `command` is the one whose words they are; None: none was found.
    """

    def __init__(self, message: str, command: "Command | None" = None) -> None:
        super().__init__(message)
        self.command = command


@dataclasses.dataclass(frozen=True)
class Argument:
    """A word of a command line that is no option."""

    name: str  # as the usage shows it; the attribute that holds it is the same in small letters
    help: str
    parse: Callable[[str], object] = str
    optional: bool = False  # None, then
    many: bool = False  # any number of words, as a list

    @property
    def usage(self) -> str:
        """`MOUNTPOINT`, `[PATTERN]`, `FILE...`."""
        name = f"{self.name}..." if self.many else self.name
        return f"[{name}]" if self.optional else name


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of barfs.

    `run` gets what was given: an attribute for each option and argument. It raises MountError,
    BarfsError or OSError if it could not be done.
    """

    name: str
    summary: str  # a line
    description: str
    examples: str
    run: Callable[[argparse.Namespace], None]
    options: tuple[Option, ...] = ()
    exclusive: tuple[Option, ...] = ()  # at most one of these can be given
    arguments: tuple[Argument, ...] = ()
    aliases: tuple[str, ...] = ()
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)  # for options it has not

    @property
    def all_options(self) -> tuple[Option, ...]:
        """Those that exclude each other, too."""
        return (*self.exclusive, *self.options)

    @property
    def usage(self) -> str:
        """`barfs mount [OPTION]... MOUNTPOINT`."""
        words = ["barfs", self.name, *(["[OPTION]..."] if self.all_options else [])]
        words += [one.usage for one in self.arguments]
        return " ".join(words)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class _Help(argparse.Action):
    """Prints the help, and nothing is done."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        say(parser.format_help().rstrip("\n"))
        parser.exit(0)


# Told of each argument of a parser, and what it was made of.
Added = Callable[[argparse.Action, Option | Argument], None]


def fill(
    parser: argparse.ArgumentParser,
    command: Command,
    added: Added = lambda _action, _of: None,
) -> None:
    """Have a parser take the options and arguments of a command."""
    group = parser.add_mutually_exclusive_group() if command.exclusive else parser
    for option in command.exclusive:
        added(_add_option(group, option), option)
    for option in command.options:
        added(_add_option(parser, option), option)
    for argument in command.arguments:
        added(_add_argument(parser, argument), argument)


def _parser(command: Command) -> _Parser:
    parser = _Parser(
        prog=f"barfs {command.name}",
        usage=command.usage,
        description=command.description,
        epilog=f"examples:\n{command.examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action=_Help, nargs=0, help="show this and exit")
    fill(parser, command)
    return parser


def parse(command: Command, words: Sequence[str]) -> argparse.Namespace:
    """The words after a command's name. UsageError; SystemExit once it has printed its help."""
    try:
        parser = _parser(command)
        # Words of which there may be any number are taken wherever they stand.
        many = any(one.many for one in command.arguments)
        known = parser.parse_known_intermixed_args if many else parser.parse_known_args
        found, left = known(words)
    except UsageError as error:
        raise UsageError(str(error), command) from None
    if left:
        raise UsageError(_unknown(command, left), command)
    return found


def help_of(command: Command) -> str:
    """The text of `barfs COMMAND --help`."""
    return _parser(command).format_help().rstrip("\n")


def _unknown(command: Command, left: Sequence[str]) -> str:
    """What is wrong with words that are left."""
    for word in left:
        if word.startswith("-") and word != "--":
            return f"there is no option {word}{_instead_of(command, word)}"
    takes = [f"{'at most ' if one.optional else ''}one {one.name}" for one in command.arguments]
    return f"{left[0]!r} is a word too many; it takes {' and '.join(takes) or 'none'}"


def _instead_of(command: Command, word: str) -> str:
    name = word.partition("=")[0]
    if name in command.hints:
        return f"; {command.hints[name]}"
    known = [spelling for option in command.all_options for spelling in option.spellings]
    meant = near(name, known) if name.startswith("--") else None
    return f"; did you mean {meant}?" if meant else ""


def near(word: str, known: Sequence[str]) -> str | None:
    """The one that was most likely meant; None if none is near."""
    # Not needed unless something is wrong, so that commands start faster.
    import difflib  # noqa: PLC0415

    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return found[0] if found else None


def _add_option(parser: argparse._ActionsContainer, option: Option) -> argparse.Action:
    if not option.takes_value and option.repeated:
        return parser.add_argument(
            *option.spellings,
            dest=option.destination,
            action=_Extend,
            nargs=0,
            const=option.given,
            help=option.help,
        )
    if not option.takes_value:
        return parser.add_argument(
            *option.spellings,
            dest=option.destination,
            action="store_const",
            const=option.given,
            help=option.help,
        )

    def value(text: str) -> object:
        words = [text] if option.separator is None else text.split(option.separator)
        try:
            values = tuple(option.parse(word) for word in words if word or not option.separator)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return values if option.repeated else values[0]

    return parser.add_argument(
        *option.spellings,
        dest=option.destination,
        action=_Extend if option.repeated else "store",
        metavar=option.takes,
        type=value,
        choices=option.choices or None,
        help=option.help,
    )


class _Extend(argparse.Action):
    """Adds the values of one use to those of the uses before."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - its signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        more = self.const if self.nargs == 0 else values
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest) or ()), *more))


def _add_argument(parser: argparse.ArgumentParser, argument: Argument) -> argparse.Action:
    return parser.add_argument(
        argument.name.lower(),
        metavar=argument.name,
        type=argument.parse,
        nargs="*" if argument.many else "?" if argument.optional else None,
        help=argument.help,
    )
