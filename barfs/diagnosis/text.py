"""What is said in one line stays in it, and commands no terminal."""


def printable(line: str) -> str:
    """A line in which a replacement stands for what could end it, or command a terminal.

    Names of drivers and paths may have anything in them.
    """
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line
    )
