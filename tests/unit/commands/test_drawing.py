"""What `barfs demo` shows is what is there."""

import itertools
from pathlib import Path

import pytest
from machines import ROOT, machine_of, tree_of

from barfs.commands import drawing
from barfs.machine import simulated
from barfs.names import VIEWS
from barfs.nodes import Type
from barfs.tree.functions import FUNCTION


@pytest.fixture
def machine(tmp_path):
    return machine_of(simulated.build(tmp_path))


@pytest.fixture
def tree(machine):
    return tree_of(machine)


def listed(tree, directory=ROOT):
    for name, node in tree.entries(directory):
        if name in VIEWS:
            continue
        yield name
        if node.kind.type is Type.DIRECTORY and name not in drawing.FOLDED:
            yield from listed(tree, node)


def test_the_drawing_shows_every_listed_name_in_order_with_targets_and_sizes(tree, machine):
    lines = list(drawing.draw(tree))
    names = [line.rpartition("-- ")[2] for line in lines]
    views = "u8/ u16/ u32/ u64/ x8/ x16/ x32/ x64/ mem/"
    assert [name.split()[0].rstrip("/") for name in names if name != views] == list(listed(tree))
    above = [name for name, after in itertools.pairwise(names) if after == views]
    assert above == [*map(str, machine.pci.addresses()), "phys"]
    assert {
        "|-- pci",
        f"|   |   |-- {views}",
        "|   |   |-- bar1  0x40",
        "|   |   |-- config  0x100",
        "|   |   |-- rom  0x10000",
        "|   |   |-- info",
        "|   |   |-- regs/",
        "|   |   |-- decode/",
        f"|   |   `-- sysfs -> {machine.source.sysfs}/bus/pci/devices/0000:00:03.0",
        "|   `-- 0000:01:00.0",
        "|       |-- config  0x1000",
        f"|   |-- {views}",
        "|   |-- 800000000-8ffffffff  0x100000000",
        "|   `-- regs/",
        "|-- status",
        "|-- 1af4:1110.1 -> pci/0000:00:05.0",
        "`-- 1b36:0010 -> pci/0000:01:00.0",
    } <= set(lines)


def test_three_suggestions_that_name_what_is_there(tree, tmp_path):
    suggestions = list(drawing.suggestions(tmp_path, tree))
    assert len(suggestions) == 3
    for command in suggestions:
        (path,) = (word for word in command.split() if str(tmp_path) in word)
        node = ROOT
        for name in Path(path.removeprefix("of=")).relative_to(tmp_path).parts:
            node = tree.lookup(node, name)
            if node.kind.type is Type.LINK:
                node = node._replace(kind=FUNCTION)
        assert tree.attributes(node).size > 0
