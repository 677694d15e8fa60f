"""What compilers of maps share: their target, their errors, and the file that they write."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from barfs.errors import BarfsError, MapRefused
from barfs.registers.checks import FORMAT, check

# A register, block or field, as in a map.
Item = dict[str, Any]


class CompileError(BarfsError):
    """A description is wrong. Each line of the message names a file and a line in it."""


@dataclass(frozen=True)
class Target:
    """Facts that a description of registers can't tell itself. `place` is as in a map."""

    subjects: Sequence[str] = ()
    place: str | None = None
    offset: int = 0


def numbered(value: str) -> int:
    """A number, decimal or 0x. Raises ValueError."""
    return int(value, 0)


def sources(files: Iterable[Path]) -> list[Mapping[str, str]]:
    """The names and hashes of files."""
    return [
        {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in files
    ]


def without_defaults(item: Item, **defaults: Any) -> Item:
    """An item without the properties that have their defaults."""
    return {
        key: value
        for key, value in item.items()
        if value not in (None, "") and (key not in defaults or defaults[key] != value)
    }


def assemble(
    target: Target,
    subjects: Sequence[str],
    parts: Sequence[Item],
    files: Iterable[Path],
    **more: Any,
) -> Item:
    """A whole map. CompileError if anything in it is missing or wrong."""
    content = {
        "format": FORMAT,
        "for": list(target.subjects or subjects),
        **{key: value for key, value in more.items() if value},
        "source": sources(files),
        "parts": list(parts),
    }
    if not content["for"]:
        raise CompileError("nothing says what device this is for: --for 10ee:9038")
    try:
        check(content)
    except MapRefused as error:
        raise CompileError(str(error)) from error
    return content


def text(content: Item) -> str:
    """A map as the contents of a file. Each register and block of its parts has a line."""
    top = [f"{_json(key)}: {_json(value)}" for key, value in content.items() if key != "parts"]
    parts = []
    for part in content["parts"]:
        head = [f"{_json(key)}: {_json(part[key])}" for key in part if key != "registers"]
        items = ",\n".join(f"  {_json(item)}" for item in part["registers"])
        parts.append(f' {{{", ".join(head)}, "registers": [\n{items}\n ]}}')
    return "{" + ",\n".join([*top, '"parts": [\n' + ",\n".join(parts) + "\n]"]) + "}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
