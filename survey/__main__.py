"""Run the tools, print what they did, and with --write renew the tables of docs/tools.md.

usage: .venv/bin/python -m survey [--write] [WORD...]

Only tools whose name or command has one of the words are run. Tools that are not installed are left
out, and their rows stay in the page as they are. It needs root, to mount.
"""

import argparse
from pathlib import Path
from typing import Final

from survey import page
from survey.lab import lab
from survey.tools import TOOLS

PAGE: Final = Path(__file__).parents[1] / "docs/tools.md"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="survey", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="renew the tables of docs/tools.md")
    parser.add_argument("words", metavar="WORD", nargs="*")
    arguments = parser.parse_args()
    fresh: dict[str, dict[str, page.Row]] = {}
    with lab() as mounted:
        for part, tools in TOOLS.items():
            fresh[part] = {}
            for tool in tools:
                text = f"{tool.name} {tool.command}"
                if arguments.words and not any(word in text for word in arguments.words):
                    continue
                if page.version(tool.package) is None:
                    continue
                result = mounted.run(part, tool)
                fresh[part][tool.name] = row = page.row(part, tool, result)
                print(page.line(row), flush=True)
                if result.said:
                    print(f"    {result.said}", flush=True)
    if arguments.write:
        page.renew(PAGE, fresh)


if __name__ == "__main__":
    main()
