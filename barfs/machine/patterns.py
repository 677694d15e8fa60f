"""Patterns that mean PCI functions: PCI addresses or ids, with the wildcards of a shell.

| pattern | what it means |
|---|---|
| `0000:03:00.0` | a PCI address |
| `03:00.0` | the same in domain 0000, as lspci prints it |
| `00.0` | any PCI address that ends so |
| `1af4:1110` | vendor:device |
| `1af4` or `1af4:`, `:1110` | a vendor, a device of any vendor |
| `1af4:1110:1af4:1100` | both with the subsystem's vendor:device |
| `*` | every function |

Letters may be in either case, and `-` stands for `:`. A wildcard stands for characters inside one
field, between two colons, so no pattern ever means a part of a name. A field that is empty stands
for any. What no function could match is no pattern: most likely it is a typing error.
"""

import enum
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Self, TypeAlias

# The characters that one token of a pattern stands for. None: any number of any characters.
Token: TypeAlias = frozenset[str] | None

_HEX: Final = frozenset("0123456789abcdef")
_ALL: Final = _HEX | {"."}
_TOKEN: Final = re.compile(
    r"(?P<many>\*)|(?P<one>\?)|\[(?P<no>[!^])?(?P<set>\]?[^]]+|\])\]|(?P<same>[0-9a-f.])"
)

# How the fields of names are spelled (barfs.names): for each length a set for each character.
_ID: Final = ((_HEX,) * 4,)
_DOMAIN: Final = (*_ID, *((_HEX - {"0"}, *(_HEX,) * more) for more in range(4, 8)))
_BUS: Final = ((_HEX,) * 2,)
_DEVICE: Final = ((frozenset("01"), _HEX, frozenset("."), frozenset("01234567")),)


class Form(enum.IntEnum):
    """The kind of name that a pattern matches. Its value is the number of fields."""

    ID = 2  # 1af4:1110
    ADDRESS = 3  # 0000:00:04.0
    SUBSYSTEM = 4  # 1af4:1110:1af4:1100


_SPELLINGS: Final = {
    Form.ID: (_ID,) * 2,
    Form.ADDRESS: (_DOMAIN, _BUS, _DEVICE),
    Form.SUBSYSTEM: (_ID,) * 4,
}


def _members(text: str) -> frozenset[str]:
    """The characters that `[text]` stands for: each of them, and ranges."""
    ranges = re.findall(r"(.)-(.)|(.)", text, re.DOTALL)
    return frozenset(
        char
        for char in _ALL
        if any(low <= char <= high if low else char == single for low, high, single in ranges)
    )


def _tokens(field: str) -> Iterator[Token]:
    """The tokens of a field. ValueError if part of it is none."""
    at = 0
    while at < len(field):
        found = _TOKEN.match(field, at)
        if found is None:
            raise ValueError(field)
        at = found.end()
        if found["many"]:
            yield None
        elif found["one"]:
            yield _ALL
        elif found["set"]:
            members = _members(found["set"])
            yield _ALL - members if found["no"] else members
        else:
            yield frozenset(found["same"])


def _fits(tokens: Sequence[Token], text: Sequence[frozenset[str]]) -> bool:
    """Whether the tokens match a text. Each character of the text is any one of a set.

    It follows all possible matches at once, so that no pattern takes long.
    """

    def rest(states: set[int]) -> set[int]:
        """Those states, and the states that can be reached from them without a character."""
        for state in range(len(tokens)):
            if state in states and tokens[state] is None:
                states.add(state + 1)
        return states

    states = rest({0})
    for chars in text:
        after = set()
        for state in states - {len(tokens)}:
            token = tokens[state]
            if token is None:
                after.add(state)
            elif token & chars:
                after.add(state + 1)
        states = rest(after)
    return len(tokens) in states


def _fields(text: str) -> list[str]:
    """The parts of a pattern between `:`, or `-` outside of brackets; an empty one is any."""
    text = re.sub(r"\[[^]]*\]?|-", lambda found: ":" if found[0] == "-" else found[0], text)
    return [field or "*" for field in text.split(":")]


def _padded(number: str, digits: int) -> str:
    """A number of a PCI address in as many digits as names have."""
    return number.rjust(digits, "0") if re.fullmatch("[0-9a-f]+", number) else number


def _in_full(fields: list[str], form: Form | None) -> Iterator[list[str]]:
    """The fields of what a pattern may be short for; the first that fits the form is meant."""
    match fields:
        case [one]:
            yield [one, "*"]
            if "." in one or form is Form.ADDRESS:
                yield ["*", "*", _slot(one)]
        case [bus, slot]:
            yield fields
            yield ["0000", _padded(bus, 2), _slot(slot)]
        case [domain, bus, slot]:
            yield [_padded(domain, 4), _padded(bus, 2), _slot(slot)]
        case _:
            yield fields


def _slot(text: str) -> str:
    """device.function, as names have it; without a function it is all of the device's."""
    device, dot, function = text.partition(".")
    if not dot:
        return text if "*" in text else f"{_padded(device, 2)}.*"
    return f"{_padded(device, 2) if device else '*'}.{function or '*'}"


class DevicePattern(NamedTuple):
    """`1af4:1110`, `1af4:*`, `1af4:1110:1af4:1100`, `0000:03:00.?`, `03:00.0`."""

    text: str
    fields: tuple[tuple[Token, ...], ...]

    def __str__(self) -> str:
        return self.text

    @property
    def form(self) -> Form:
        """The kind of name that it matches."""
        return Form(len(self.fields))

    @classmethod
    def parse(cls, text: str, form: Form | None = None) -> Self | None:
        """A pattern of this form, or of any; None if no function could match it."""
        if not text.strip(":-"):
            return None
        if text == "*":
            return cls(text, ((None,),) * Form.ADDRESS)
        for parts in _in_full(_fields(text.lower()), form):
            found = cls._of(text, parts)
            if found is not None and form in (None, found.form):
                return found
        return None

    @classmethod
    def _of(cls, text: str, parts: Sequence[str]) -> Self | None:
        """A pattern with all its fields; None if no function could match it."""
        try:
            spellings = _SPELLINGS[Form(len(parts))]
            fields = tuple(tuple(_tokens(part)) for part in parts)
        except ValueError:
            return None
        for field, spelling in zip(fields, spellings, strict=True):
            if not any(_fits(field, way) for way in spelling):
                return None
        return cls(text, fields)

    def matches(self, name: str) -> bool:
        """Whether it matches a name of its form, spelled as in barfs.names."""
        parts = name.split(":")
        return len(parts) == len(self.fields) and all(
            _fits(field, [frozenset(char) for char in part])
            for field, part in zip(self.fields, parts, strict=True)
        )

    def means(self, name: Callable[[Form], str | None], *, unknown: bool) -> bool:
        """Whether it matches a function by its `name`. `unknown` if the name can't be told."""
        found = name(self.form)
        return unknown if found is None else self.matches(found)


class BarPattern(NamedTuple):
    """`1af4:1110`, `1af4:1110/bar2`: one of a function's BARs, or all of them."""

    device: DevicePattern
    bar: int | None = None

    def __str__(self) -> str:
        return f"{self.device}" if self.bar is None else f"{self.device}/bar{self.bar}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """A pattern, with `/bar0` to `/bar5` behind it or not; None if it can match nothing."""
        device, slash, bar = text.partition("/")
        pattern = DevicePattern.parse(device)
        if pattern is None or (slash and re.fullmatch("bar[0-5]", bar) is None):
            return None
        return cls(pattern, int(bar[3:]) if slash else None)

    def means(self, name: Callable[[Form], str | None], index: int, *, unknown: bool) -> bool:
        """Whether it matches a BAR of a function; see DevicePattern."""
        return self.bar in {None, index} and self.device.means(name, unknown=unknown)


class Rules(NamedTuple):
    """Which functions a mount has, and which of them may only be read. Without `allow` it has all.

    `memory` and `registers` say how BARs are read, whatever they look like. A BAR that both of
    them name is read as registers.

    `name` gives the name of a function in each form, None if that can't be told. A function whose
    name can't be told is not allowed, and may only be read.
    """

    allow: tuple[DevicePattern, ...] = ()
    read_only: tuple[DevicePattern, ...] = ()
    memory: tuple[BarPattern, ...] = ()
    registers: tuple[BarPattern, ...] = ()

    def is_memory(self, name: Callable[[Form], str | None], index: int) -> bool | None:
        """Whether a function's BAR is memory, if a rule says so or that it is not."""
        if any(one.means(name, index, unknown=True) for one in self.registers):
            return False
        return any(one.means(name, index, unknown=False) for one in self.memory) or None

    def allows(self, name: Callable[[Form], str | None]) -> bool:
        """Whether the mount has a function."""
        return not self.allow or any(one.means(name, unknown=False) for one in self.allow)

    def protects(self, name: Callable[[Form], str | None]) -> bool:
        """Whether a function may only be read."""
        return any(one.means(name, unknown=True) for one in self.read_only)


NO_RULES: Final = Rules()
