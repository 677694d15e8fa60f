"""What `barfs demo` shows of the machine that it has mounted: its tree, and what to try."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from barfs.machine.simulated import NODENAME_ADDRESS
from barfs.names import VIEWS, quoted
from barfs.nodes import Node, Tree, Type

# Directories that would fill the screen.
FOLDED: Final = ("regs", "decode")


def draw(tree: Tree, directory: Node | None = None, prefix: str = "") -> Iterator[str]:
    """The lines of a drawn tree: names, targets of links, sizes in bytes. Touches no device.

    The directories that show the same files in another way are named in one line.
    """
    listed = list(tree.entries(directory or tree.root))
    entries = [(name, node) for name, node in listed if name not in VIEWS]
    if len(entries) < len(listed):
        yield f"{prefix}|-- {'/ '.join(VIEWS)}/"
    for name, node in entries:
        last = name == entries[-1][0]
        text = f"{name}/" if name in FOLDED else name
        if node.kind.type is Type.LINK:
            text += f" -> {tree.target(node)}"
        elif node.kind.type is Type.FILE:
            size = tree.attributes(node).size
            text += f"  {size:#x}" if size or node.kind.grows else ""
        yield f"{prefix}{'`-- ' if last else '|-- '}{text}"
        if name in FOLDED:
            continue
        if node.kind.type is Type.DIRECTORY:
            yield from draw(tree, node, prefix + ("    " if last else "|   "))


def suggestions(mountpoint: Path, tree: Tree) -> Iterator[str]:
    """Three commands to try. There are fewer if the tree lacks the files for them."""
    commands = [
        ("1af4:1110", "printf 'Dunia,vipi?\\r' | dd of={}/bar2 bs=1"),
        ("1af4:1110", "hd -n 32 {}/bar2"),
        ("phys", f"printf 'NinjaNinja\\0' | dd of={{}}/{NODENAME_ADDRESS:x} conv=notrunc"),
    ]
    names = {name for name, _ in tree.entries(tree.root)}
    for name, command in commands:
        if name in names:
            yield command.format(quoted(mountpoint / name))
