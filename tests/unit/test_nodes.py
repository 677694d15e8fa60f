"""The tree: names, inode numbers and attributes."""

import errno
import itertools
import shutil

import pytest

from barfs import demo, nodes
from barfs.devmem import PhysicalMemory
from barfs.errors import DeviceGone, NoSuchAddress, NoSuchNode
from barfs.names import PciAddress
from barfs.nodes import PCI, PHYS, ROOT, InodeNumbers, Kind, Node, Tree
from barfs.pci import PciBus

FIRST = PciAddress(0, 0, 4, 0)
SECOND = PciAddress(0, 0, 5, 0)
NVME = PciAddress(0, 1, 0, 0)
ABSENT = PciAddress(0, 0, 2, 0)
FUNCTION = Node(Kind.FUNCTION, FIRST)


@pytest.fixture
def tree(tmp_path):
    machine = demo.build(tmp_path)
    return Tree(PciBus(machine.sysfs), PhysicalMemory(machine.proc, machine.devmem))


@pytest.fixture
def devices(tmp_path):
    return tmp_path / "sys/bus/pci/devices"


def walk(tree, directory=ROOT):
    for name, node in tree.entries(directory):
        yield directory, name, node
        if node.kind in nodes.DIRECTORIES:
            yield from walk(tree, node)


def phys(start, size):
    return Node(Kind.PHYS_FILE, start=start, size=size)


def check_numbers(inodes, given):
    numbers = list(map(inodes.number, given))
    assert list(map(inodes.number, given)) == numbers
    assert list(map(inodes.node, numbers)) == given
    assert len(set(numbers)) == len(given)


def test_numbers_round_trip_and_are_distinct_and_the_root_is_1(tree):
    places = itertools.product((0, 1, 0xFFFF, 0x10000, 0xFFFFFFFF), (0, 255), (0, 31), (0, 7))
    kinds = set(Kind) - nodes.FIXED_DIRECTORIES - {Kind.PHYS_FILE}
    computed = itertools.product(kinds, itertools.starmap(PciAddress, places))
    ranges = [phys(0, 4), phys(0, 8), phys(4, 4), phys((1 << 64) - 1, 1)]
    check_numbers(InodeNumbers(), [ROOT, PCI, PHYS, *itertools.starmap(Node, computed), *ranges])
    check_numbers(InodeNumbers(), [ROOT, *(node for *_, node in walk(tree))])
    assert InodeNumbers().number(ROOT) == 1


@pytest.mark.parametrize("number", [0, 0xFF, 1 << 62, (1 << 62) + 5])
def test_a_number_that_was_never_given_out_is_no_node(number):
    with pytest.raises(NoSuchNode):
        InodeNumbers().node(number)


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_range_is_kept_while_the_kernel_knows_it_and_its_number_never_reused(times):
    inodes = InodeNumbers()
    number = inodes.number(phys(0, 4))
    for _ in range(times):
        inodes.remember(number)
    if times:
        inodes.forget(number, times - 1)
        inodes.settle(number)
        assert inodes.node(number) == phys(0, 4)
        inodes.forget(number, 1)
    else:
        inodes.settle(number)
    assert len(inodes) == 0
    with pytest.raises(NoSuchNode):
        inodes.node(number)
    assert number not in {inodes.number(phys(0, 4)), inodes.number(phys(8, 4))}


def test_every_listed_name_is_found_as_it_was_listed(tree):
    listed = list(walk(tree))
    assert len(listed) == 31
    assert all(tree.lookup(parent, name) == node for parent, name, node in listed)


@pytest.mark.parametrize(
    ("parent", "name", "node"),
    [
        (ROOT, "1af4:1110:1af4:1100", Node(Kind.LINK, FIRST)),
        (ROOT, "1af4:1110:1af4:1100.1", Node(Kind.LINK, SECOND)),
        (PHYS, "1e102c5", phys(0x1E102C5, 0x61CFD3B)),
        (PHYS, "0x1E102C5+4", phys(0x1E102C5, 4)),
        (PHYS, "fff-1000", phys(0xFFF, 2)),
    ],
)
def test_names_that_are_not_listed(tree, parent, name, node):
    assert tree.lookup(parent, name) == node


@pytest.mark.parametrize(
    ("parent", "names"),
    [
        (ROOT, ["", "x", "1af4:1111", "1af4:1110.2", "1AF4:1110", "1af4:1110:1af4:1101"]),
        (PCI, ["", "0000:00:06.0", "0000:00:04", "1af4:1110", "\udcff"]),
        (PHYS, ["", "x", "20-10", "10+0", "-1", "10000000000000000"]),
        (FUNCTION, ["", "bar1", "bar6", "BAR0", "config\n", "vendor"]),
        *((Node(Kind.FUNCTION, ABSENT), ["bar0", "config"]), (Node(Kind.CONFIG, FIRST), ["x"])),
    ],
)
def test_no_such_name(tree, parent, names):
    for name in names:
        with pytest.raises(NoSuchNode) as caught:
            tree.lookup(parent, name)
        assert caught.value.errno == errno.ENOENT
        assert str(caught.value).isascii()
    with pytest.raises(NoSuchAddress):
        tree.lookup(PHYS, "8000000")


def instances(tree):
    listed = dict(tree.entries(ROOT))
    assert all(tree.lookup(ROOT, name) == node for name, node in listed.items())
    return {name: node.address for name, node in listed.items() if name.startswith("1af4:1110")}


def test_instances_are_in_address_order_as_devices_come_and_go(tree, devices):
    new = devices / str(ABSENT)
    assert instances(tree) == {"1af4:1110": FIRST, "1af4:1110.1": SECOND}
    shutil.copytree(devices / str(FIRST), new)
    assert instances(tree) == {"1af4:1110": ABSENT, "1af4:1110.1": FIRST, "1af4:1110.2": SECOND}
    (new / "subsystem_device").write_text("0x1101\n")
    assert tree.lookup(ROOT, "1af4:1110:1af4:1100.1").function == SECOND
    (new / "vendor").write_text("garbage")
    assert instances(tree) == {"1af4:1110": FIRST, "1af4:1110.1": SECOND}
    shutil.rmtree(devices / str(FIRST))
    assert instances(tree) == {"1af4:1110": SECOND}


@pytest.mark.parametrize(("directory", "first"), [(ROOT, "8086:100e"), (PCI, "0000:00:03.0")])
def test_what_vanishes_during_a_listing_is_left_out(tree, devices, directory, first):
    listing = tree.entries(directory)
    assert first in (name for name, _ in listing)
    shutil.rmtree(devices / str(FIRST))
    assert [node.function for _, node in listing] == [SECOND, NVME]


@pytest.mark.parametrize(
    ("node", "size", "blksize", "path"),
    [
        *((ROOT, 0, 4096, "/"), (PCI, 0, 4096, "pci"), (PHYS, 0, 4096, "phys")),
        (FUNCTION, 0, 4096, "pci/0000:00:04.0"),
        (Node(Kind.LINK, FIRST), len("pci/0000:00:04.0"), 4096, "pci/0000:00:04.0"),
        (Node(Kind.BAR0, FIRST), 0x100, 4, "pci/0000:00:04.0/bar0"),
        (Node(Kind.BAR2, FIRST), 1 << 20, 1 << 20, "pci/0000:00:04.0/bar2"),
        (Node(Kind.CONFIG, FIRST), 256, 4, "pci/0000:00:04.0/config"),
        (Node(Kind.CONFIG, NVME), 4096, 4, "pci/0000:01:00.0/config"),
        (phys(0x1003, 1), 1, 1 << 20, "phys/00001003-00001003"),
        (phys(0xFFF, 2), 2, 4, "phys/00000fff-00001000"),
        (phys(0x800000000, 1 << 32), 1 << 32, 4, "phys/800000000-8ffffffff"),
    ],
)
def test_size_blksize_and_path(tree, node, size, blksize, path):
    assert tree.attributes(node) == (size, blksize)
    assert node.path == path


def test_what_is_not_there_is_empty_and_has_no_attributes(tree):
    assert list(tree.entries(Node(Kind.FUNCTION, ABSENT))) == []
    for kind in (Kind.FUNCTION, Kind.CONFIG, Kind.BAR0):
        with pytest.raises(DeviceGone, match=r"0000:00:02\.0"):
            tree.attributes(Node(kind, ABSENT))
