"""The functions that a word selects: `barfs ls PATTERN`, `barfs doctor PATTERN`."""

from collections.abc import Iterable
from typing import Any, Final

from barfs.errors import NoSuchNode
from barfs.machine.patterns import DevicePattern, Form
from barfs.names import LinkName, with_colons
from barfs.report import info
from barfs.report.info import Field, Function

# The fields in which a word is searched for, if it is no pattern.
_NAMES: Final[tuple[Field[Any], ...]] = (info.ADDRESS, info.ID, info.CLASS, info.DRIVER)


def select(functions: Iterable[Function], word: str) -> list[Function]:
    """The functions that a word selects, of all of a machine. NoSuchNode if there are none.

    It is a pattern (barfs.machine.patterns); or the name of a link, `1af4:1110.1`; or any part of
    the address, id, class or driver, or of their names, in either case of letters.
    """
    functions = list(functions)
    pattern = DevicePattern.parse(word)
    link = LinkName.parse(with_colons(word.lower()))
    if pattern is not None:
        found = matching(functions, pattern)
    elif link is not None:
        found = _linked(functions, link)
    elif word:
        found = [one for one in functions if word.lower() in _text(one)]
    else:
        raise NoSuchNode("the pattern is empty; leave it out to have all functions")
    if not found:
        raise NoSuchNode(f"nothing matches {word!a}")
    return found


def matching(functions: Iterable[Function], pattern: DevicePattern) -> list[Function]:
    """The functions that match a pattern."""
    return [one for one in functions if pattern.means(_Names(one), unknown=False)]


class _Names:
    """The name of a function in each form of pattern. None if it is unknown."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(self, form: Form) -> str | None:
        identity, subsystem = self._function[info.ID], self._function[info.SUBSYSTEM]
        if form is Form.ADDRESS:
            return str(self._function.address)
        if identity is None or form is Form.ID:
            return identity and str(identity.id)
        return subsystem and f"{identity.id}:{subsystem.id}"


def _linked(functions: Iterable[Function], link: LinkName) -> list[Function]:
    name = str(link.id) if link.subsystem is None else f"{link.id}:{link.subsystem}"
    pattern = DevicePattern.parse(name)
    found = [] if pattern is None else matching(functions, pattern)
    return found[link.instance : link.instance + 1]


def _text(function: Function) -> str:
    known = (one.text(function[one]) for one in _NAMES if function[one] is not None)
    return "\n".join(known).lower()
