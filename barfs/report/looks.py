"""How text looks to whoever reads it: at a terminal, or through a pipe.

At a terminal a table has a heading and fits the width, and colour helps to find what matters.
Through a pipe everything is whole and plain.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

# Between two columns.
GAP: Final = "  "

_STYLES: Final = {"heading": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Look(NamedTuple):
    """How to show text. `width` is that of the terminal in columns, None if there is none."""

    width: int | None = None
    colour: bool = False

    def paint(self, text: str, style: str) -> str:
        """The text in a style of _STYLES, if there is colour."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.colour else text


PLAIN: Final = Look()


def cut(text: str, width: int) -> str:
    """A text in at most so many columns. Dots show that it was cut."""
    return text if len(text) <= width else f"{text[: max(width - 2, 0)]}.."


def wrap(words: Iterable[str], width: int) -> list[str]:
    """Lines of words, with gaps between them. A word that is too long is broken at blanks."""
    lines = [""]
    for word in words:
        joined = f"{lines[-1]}{GAP}{word}" if lines[-1] else word
        if len(joined) <= width:
            lines[-1] = joined
            continue
        lines += textwrap.wrap(word, max(width, 1), break_long_words=False, break_on_hyphens=False)
    return lines if lines[0] or len(lines) == 1 else lines[1:]


def columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column of a table."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A row of a table."""
    return GAP.join(map(str.ljust, cells, widths)).rstrip()


def paragraph(text: str, indent: int, look: Look) -> Iterator[str]:
    """The lines of a text. Each begins after `indent` columns, and the first is there already."""
    if look.width is None or look.width - indent < 20:
        yield text
        return
    lines = textwrap.wrap(text, look.width - indent, break_long_words=False, break_on_hyphens=False)
    yield from (f"{' ' * indent if number else ''}{one}" for number, one in enumerate(lines))
