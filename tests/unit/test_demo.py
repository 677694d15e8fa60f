"""The simulated machine is what its users are told."""

from pathlib import Path

import pytest

from barfs import demo
from barfs.devmem import PhysicalMemory
from barfs.nodes import DIRECTORIES, ROOT, Kind, Tree
from barfs.pci import PciBus


@pytest.fixture
def tree(tmp_path):
    machine = demo.build(tmp_path)
    return Tree(PciBus(machine.sysfs), PhysicalMemory(machine.proc, machine.devmem))


def test_devices_and_their_bars(tree):
    found = {
        f"{address} {tree.pci.id(address)}": {
            index: (bar.size, bar.start >= 1 << 32, bar.prefetchable)
            for index, bar in tree.pci.bars(address).items()
        }
        for address in tree.pci.addresses()
    }
    ivshmem = {0: (0x100, False, False), 2: (1 << 20, True, True)}
    assert found == {
        "0000:00:03.0 8086:100e": {0: (128 << 10, False, False)},
        "0000:00:04.0 1af4:1110": ivshmem,
        "0000:00:05.0 1af4:1110": ivshmem,
        "0000:01:00.0 1b36:0010": {0: (16 << 10, True, False)},
    }


def test_the_nodename_is_at_its_address_in_system_ram(tree, tmp_path):
    with (tmp_path / "mem").open("rb") as file:
        file.seek(demo.NODENAME_ADDRESS)
        assert file.read(65) == b"lab".ljust(65, b"\0")
    assert tree.memory.is_ram(demo.NODENAME_ADDRESS, 65)


def test_memory_reaches_to_the_highest_address_and_takes_little_disk(tree, tmp_path):
    assert (tmp_path / "mem").stat().st_size == tree.memory.ranges()[-1].end + 1
    assert sum(path.lstat().st_blocks * 512 for path in tmp_path.rglob("*")) < 1 << 20


def listed(tree, directory=ROOT):
    for name, node in tree.entries(directory):
        yield name
        if node.kind in DIRECTORIES:
            yield from listed(tree, node)


def test_the_drawing_shows_every_listed_name_in_order_with_targets_and_sizes(tree):
    lines = list(demo.describe(tree))
    assert [line.rpartition("-- ")[2].split()[0] for line in lines] == list(listed(tree))
    assert {
        "|-- pci",
        "|   |   `-- config  0x100",
        "|   `-- 0000:01:00.0",
        "|       `-- config  0x1000",
        "|   `-- 800000000-8ffffffff  0x100000000",
        "|-- 1af4:1110.1 -> pci/0000:00:05.0",
        "`-- 1b36:0010 -> pci/0000:01:00.0",
    } <= set(lines)


def test_three_suggestions_that_name_what_is_there(tree, tmp_path):
    suggestions = demo.suggestions(tmp_path)
    assert len(suggestions) == 3
    for command in suggestions:
        (path,) = (word for word in command.split() if str(tmp_path) in word)
        node = ROOT
        for name in Path(path.removeprefix("of=")).relative_to(tmp_path).parts:
            node = tree.lookup(node, name)
            if node.kind is Kind.LINK:
                node = node._replace(kind=Kind.FUNCTION)
        assert tree.attributes(node).size > 0
