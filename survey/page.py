"""The tables of docs/tools.md."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from survey.lab import Result
from survey.tools import TOOLS, Tool
from survey.verdicts import described

Row = list[str]
HEADS: Final = {
    "show": ["asked to show 4 bytes at 8", "it reads", "verdict", "measured with"],
    "change": [
        "asked to change the byte at 9",
        "it reads",
        "it writes",
        "verdict",
        "measured with",
    ],
}


def version(package: str) -> str | None:
    """The upstream version of a Debian package; None if it is not installed."""
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    state, _, full = done.stdout.partition(" ")
    if state != "installed":
        return None
    return re.split(r"[-+~]", re.sub(r"^\d+:", "", full))[0]


def kernel() -> str:
    """The kernel's version, as `6.12`. What sendfile and mappings read depends on it."""
    return ".".join(os.uname().release.split(".")[:2])


def measured_on(text: str) -> str:
    """The kernel that a page's rows were measured on; ValueError if it does not say."""
    found = re.findall(r"^Measured on Linux ([0-9.]+)\.$", text, re.MULTILINE)
    if len(found) != 1:
        raise ValueError("it is not said once on which kernel this was measured")
    return str(found[0])


def row(part: str, tool: Tool, result: Result) -> Row:
    """The cells for what a tool did."""
    requests = [described(result.reads)]
    if part == "change":
        requests.append(described(result.writes))
    name = re.sub(r"(-(dev|base|minimal|nox|tools|headless|jdk|17))+$", "", tool.package)
    return [tool.name, *requests, result.verdict, f"{name} {version(tool.package)}"]


def line(cells: Sequence[str]) -> str:
    """A row in Markdown."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def marks(part: str) -> tuple[str, str]:
    """What a table stands between."""
    return f"<!-- {part}: made by survey -->\n", f"<!-- {part}: end -->\n"


def rows(text: str, part: str) -> dict[str, Row]:
    """A table's rows in a page, by what was run; ValueError if the page has not just one place."""
    begin, end = marks(part)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"there is no one place between {begin.strip()} and {end.strip()}")
    lines = text.partition(begin)[2].partition(end)[0].strip().splitlines()
    found = {}
    for one in lines[2:]:
        cells = [cell.replace(r"\|", "|") for cell in re.split(r" (?<!\\)\| ", one[2:-2])]
        found[cells[0]] = cells
    return found


def renewed(text: str, part: str, fresh: Mapping[str, Row]) -> str:
    """The page with fresh rows in a table, and the old ones of what was not run."""
    have = {**rows(text, part), **fresh}
    head = HEADS[part]
    table = [head, ["---"] * len(head)]
    table += [have[tool.name] for tool in TOOLS[part] if tool.name in have]
    begin, end = marks(part)
    before, _, rest = text.partition(begin)
    lines = "\n".join(map(line, table))
    return f"{before}{begin}\n{lines}\n\n{end}{rest.partition(end)[2]}"


def renew(page: Path, fresh: Mapping[str, Mapping[str, Row]]) -> None:
    """Put what was measured into a page."""
    text = page.read_text()
    for part in TOOLS:
        text = renewed(text, part, fresh[part])
    before, now = (f"Measured on Linux {one}." for one in (measured_on(text), kernel()))
    page.write_text(text.replace(before, now))
