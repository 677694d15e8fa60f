"""Text for one line of output: it can't end the line, and can't command a terminal."""


def printable(line: str) -> str:
    """Replace every character that could end a line or command a terminal.

    Names of drivers and paths may have any characters.
    """
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line
    )
