"""The parts of docs/performance.md that are made by programs."""

import re
from pathlib import Path


def marks(part: str) -> tuple[str, str]:
    """What a part of the page stands between."""
    return f"<!-- {part}: made by bench -->\n", f"<!-- {part}: end -->\n"


def renew(page: Path, part: str, text: str) -> None:
    """Put `text` in the place of a part; ValueError if the page has not just one place for it."""
    begin, end = marks(part)
    pattern = re.escape(begin) + ".*" + re.escape(end)
    new, count = re.subn(
        pattern, lambda _: f"{begin}\n{text}\n{end}", page.read_text(), flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(
            f"{page} has no place for {part} between {begin.strip()} and {end.strip()}"
        )
    page.write_text(new)
