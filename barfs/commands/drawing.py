"""What `barfs demo` shows of the machine that it has mounted: its tree, and what to try."""

from collections.abc import Iterator
from pathlib import Path

from barfs.machine.simulated import NODENAME_ADDRESS
from barfs.nodes import DIRECTORIES, ROOT, VIEWS, Kind, Node, Tree


def draw(tree: Tree, node: Node = ROOT, prefix: str = "") -> Iterator[str]:
    """The lines of a drawn tree: names, where links point to, sizes in bytes. Touches no device.

    The directories that show the same files in another way are named in one line.
    """
    entries = [(name, child) for name, child in tree.entries(node) if name not in VIEWS]
    if node.kind in {Kind.FUNCTION, Kind.PHYS}:
        yield f"{prefix}|-- {'/ '.join(VIEWS)}/"
    for name, child in entries:
        last = name == entries[-1][0]
        text = name
        if child.kind is Kind.LINK:
            text += f" -> {tree.target(child)}"
        elif child.kind not in DIRECTORIES and child.kind not in {Kind.INFO, Kind.STATUS}:
            text += f"  {tree.attributes(child).size:#x}"
        yield f"{prefix}{'`-- ' if last else '|-- '}{text}"
        if child.kind in DIRECTORIES:
            yield from draw(tree, child, prefix + ("    " if last else "|   "))


def suggestions(mountpoint: Path, tree: Tree) -> Iterator[str]:
    """Three commands to try; fewer if the tree does not have what they are about."""
    commands = [
        ("1af4:1110", "printf 'Dunia,vipi?\\r' | dd of={}/bar2 bs=1"),
        ("1af4:1110", "hd -n 32 {}/bar2"),
        ("phys", f"printf 'NinjaNinja\\0' | dd of={{}}/{NODENAME_ADDRESS:x} conv=notrunc"),
    ]
    names = {name for name, _ in tree.entries(ROOT)}
    for name, command in commands:
        if name in names:
            yield command.format(mountpoint / name)
