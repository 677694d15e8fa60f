"""Options as data: what a user may set, said once.

The parser, `mount.barfs`, the completion scripts and the tests of the documents all read it from
here. To add

- an option of `barfs mount`: a field `Annotated[TYPE, Option(...)]` of Settings
  (barfs.daemon.settings). `barfs demo` and mount(8) have it then, too;
- an option of another command: one `Option` in the `options` of its COMMAND;
- a command: one module in barfs/commands with a COMMAND, and one line in barfs/commands/cli.py.

Then the tests ask for it in the documents, and `make generated` makes the completion scripts again.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from barfs.machine.patterns import BarPattern, DevicePattern, Form
from barfs.names import LinkName, with_colons
from barfs.requests.policy import parse_mode


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a command. It is None where it was not given.

    `parse` makes the value of a word, and raises ValueError that says what is wrong with it.
    """

    spelled: str  # `-f --foreground`: all its spellings
    help: str
    takes: str | None = None  # the value's name in the usage; None if it takes no value
    choices: tuple[str, ...] = ()  # all possible values
    parse: Callable[[str], object] = str
    repeated: bool = False  # a tuple of values, one for each use
    separator: str | None = None  # between several values in one use
    given: object = True  # the value of an option that takes none
    name: str = ""  # the attribute for the value; by default the last spelling says it

    @property
    def spellings(self) -> list[str]:
        """All spellings, short ones first."""
        return self.spelled.split()

    @property
    def takes_value(self) -> bool:
        """Whether a value follows it."""
        return self.takes is not None or bool(self.choices)

    @property
    def long_name(self) -> str | None:
        """`bars-via`, without the dashes. None if all spellings are short."""
        last = self.spellings[-1]
        return last[2:] if last.startswith("--") else None

    @property
    def destination(self) -> str:
        """The attribute that holds the value."""
        return self.name or self.spellings[-1].lstrip("-").replace("-", "_")


def options_of(settings: Any) -> Iterator[Option]:
    """The options that annotate fields of a dataclass, each named as its field."""
    for field in dataclasses.fields(settings):
        for note in getattr(field.type, "__metadata__", ()):
            if isinstance(note, Option):
                yield dataclasses.replace(note, name=field.name)


def share_mode(text: str) -> int:
    """The value of --mode."""
    found = parse_mode(text)
    if found is None:
        raise ValueError(
            f"{text!a} is not of the form 6xx, of 0, 2 (write), 4 (read) and 6: 660, 640, 666"
        )
    return found


def bar_pattern(text: str) -> BarPattern:
    """The value of an option that names BARs."""
    found = BarPattern.parse(text)
    if found is not None:
        return found
    device, _, bar = text.partition("/")
    pattern(device)
    raise ValueError(f"{bar!a} is none of bar0 to bar5")


def pattern_or_directory(text: str) -> BarPattern | Path:
    """The value of --registers: BARs, or a directory with maps.

    What has the form of a pattern is one. A directory of such a name takes ./ in front.
    """
    found = BarPattern.parse(text)
    path = Path(text).absolute()
    if found is None:
        return path
    if path.is_dir():
        raise ValueError(f"{text!a} may be a device or the directory: put ./ in front of that")
    return found


def pattern(text: str, form: Form | None = None) -> DevicePattern:
    """The value of an option that names PCI functions, in a form of pattern or in any."""
    found = DevicePattern.parse(text, form)
    if found is not None:
        return found
    what = f"{text!a} can match no function"
    link = LinkName.parse(with_colons(text.lower()))
    if link is not None and link.instance:
        raise ValueError(f"{what}: .{link.instance} counts links, so say its PCI address")
    takes = {
        Form.ADDRESS: "0000:03:00.0, 03:00.0 or 00.0",
        Form.ID: "1af4:1110, 1af4: or :1110",
    }.get(form or Form.SUBSYSTEM, "0000:03:00.0, 03:00.0, 1af4:1110 or 1af4:1110:1af4:1100")
    raise ValueError(f"{what}: it takes {takes}, with * ? [] inside the fields")
