"""The sources of the engine, and copies of them with a mistake in them."""

from pathlib import Path

DIRECTORY = Path(__file__).parents[3] / "barfs/access"
SOURCE = DIRECTORY / "_mmio.c"


def with_mistake(directory, right, wrong):
    """The path of a copy of SOURCE, beside its headers, where `wrong` stands for `right`."""
    sources = {path.name: path.read_text() for path in DIRECTORY.glob("*.[ch]")}
    assert any(right in text for text in sources.values())
    for name, text in sources.items():
        (directory / name).write_text(text.replace(right, wrong))
    return directory / SOURCE.name
