"""What a command is, and the parser that is made of commands and their options."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Final

import barfs
from barfs.daemon.options import Option

VERSION: Final = f"barfs {barfs.__version__}"


@dataclasses.dataclass(frozen=True)
class Argument:
    """A word of a command line that is no option."""

    name: str  # as the usage shows it; the attribute that holds it is the same in small letters
    help: str | None = None
    parse: Callable[[str], object] = str
    optional: bool = False  # None, then


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of barfs.

    `run` gets what was given: an attribute for each option and argument. It raises MountError or
    BarfsError if it could not be done.
    """

    name: str
    summary: str  # a line
    run: Callable[[argparse.Namespace], None]
    options: tuple[Option, ...] = ()
    exclusive: tuple[Option, ...] = ()  # at most one of these can be given
    arguments: tuple[Argument, ...] = ()
    description: str | None = None
    epilog: str | None = None

    @property
    def all_options(self) -> tuple[Option, ...]:
        """Those that exclude each other, too."""
        return (*self.exclusive, *self.options)


# Told of each argument of a parser, and what it was made of.
Added = Callable[[argparse.Action, Option | Argument], None]


def parser_of(
    commands: Iterable[Command], added: Added = lambda _action, _of: None
) -> argparse.ArgumentParser:
    """The parser of a whole command line. The command that was found is its `command`."""
    result = argparse.ArgumentParser(
        prog="barfs", description="PCI BARs and physical memory as files."
    )
    result.add_argument("--version", action="version", version=VERSION)
    choices = result.add_subparsers(required=True, metavar="COMMAND")
    for command in commands:
        one = choices.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=command.epilog,
        )
        one.set_defaults(command=command)
        group = one.add_mutually_exclusive_group() if command.exclusive else one
        for option in command.exclusive:
            added(_add_option(group, option), option)
        for option in command.options:
            added(_add_option(one, option), option)
        for argument in command.arguments:
            added(_add_argument(one, argument), argument)
    return result


def _add_option(parser: argparse._ActionsContainer, option: Option) -> argparse.Action:
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
        setattr(namespace, self.dest, (*(getattr(namespace, self.dest) or ()), *values))


def _add_argument(parser: argparse.ArgumentParser, argument: Argument) -> argparse.Action:
    return parser.add_argument(
        argument.name.lower(),
        metavar=argument.name,
        type=argument.parse,
        nargs="?" if argument.optional else None,
        help=argument.help,
    )
