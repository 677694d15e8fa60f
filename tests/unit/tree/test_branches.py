"""The tree of a machine: names, attributes, who may write."""

import dataclasses
import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest
from machines import PCI, PHYS, ROOT, machine_of, tree_of, walk

from barfs.errors import BarfsError, DeviceGone, NoSuchAddress, NoSuchNode
from barfs.machine import simulated
from barfs.machine.patterns import DevicePattern, Rules
from barfs.names import VIEWS, PciAddress, ViewKind
from barfs.nodes import InodeNumbers, Node
from barfs.tree.bars import BAR
from barfs.tree.config import CONFIG
from barfs.tree.functions import FUNCTION
from barfs.tree.functions import PCI as PCI_KIND
from barfs.tree.info import INFO
from barfs.tree.links import ALIAS, LINK
from barfs.tree.physical import PHYS as PHYS_KIND
from barfs.tree.physical import RANGE
from barfs.tree.registers import CONFIG_REGISTER, PHYS_REGISTER, REGISTER
from barfs.tree.rom import ROM
from barfs.tree.status import STATUS
from barfs.tree.sysfs import SYSFS

E1000 = PciAddress(0, 0, 3, 0)
FIRST = PciAddress(0, 0, 4, 0)
SECOND = PciAddress(0, 0, 5, 0)
NVME = PciAddress(0, 1, 0, 0)
ABSENT = PciAddress(0, 0, 2, 0)
DIRECTORY = Node(FUNCTION, FIRST)
WIDE = [name for name in VIEWS if name != "mem"]

REGISTERS = {REGISTER, CONFIG_REGISTER, PHYS_REGISTER}  # what each may the maps say


@pytest.fixture
def tree(tmp_path):
    return tree_of(machine_of(simulated.build(tmp_path)))


@pytest.fixture
def devices(tmp_path):
    return tmp_path / "sys/bus/pci/devices"


def phys(start, size, view=ViewKind.RAW):
    return Node(RANGE, view=view, start=start, size=size)


def window(start, size, *, bar=0, address=FIRST, view=ViewKind.RAW):
    return Node(BAR, address, bar, view, start, size)


def test_the_numbers_of_a_machine_have_32_bits_and_that_of_the_root_is_1(tree):
    inodes = InodeNumbers(tree.kinds)
    nodes = [ROOT, *(node for *_, node in walk(tree))]
    numbers = list(map(inodes.number, nodes))
    assert numbers[0] == 1
    assert len(set(numbers)) == len(nodes)
    assert max(numbers) < 1 << 32
    assert list(map(inodes.node, numbers)) == nodes


def test_every_listed_name_is_found_as_it_was_listed(tree):
    listed = list(walk(tree))
    assert {ROOT.kind, ALIAS, *(node.kind for *_, node in listed)} == set(tree.kinds)
    assert all(tree.lookup(parent, name) == node for parent, name, node in listed)
    for _, group in itertools.groupby(listed, key=lambda entry: entry[0]):
        names = [name for _, name, _ in group]
        assert len(set(names)) == len(names)
    assert len({node for *_, node in listed}) == len(listed)


@pytest.mark.parametrize(
    ("address", "bars", "rom"),
    [
        *((E1000, ["bar0", "bar1"], ["rom"]), (FIRST, ["bar0", "bar2"], [])),
        *((SECOND, ["bar0", "bar2"], []), (NVME, ["bar0"], [])),
    ],
)
def test_a_function_lists_its_bars_and_each_of_its_views_the_same_ones(tree, address, bars, rom):
    directory = Node(FUNCTION, address)
    listed = dict(tree.entries(directory))
    assert list(listed) == [*bars, "config", *rom, "info", "regs", "decode", "sysfs", *VIEWS]
    assert list(VIEWS) == ["u8", "u16", "u32", "u64", "x8", "x16", "x32", "x64", "mem"]
    for name, view in VIEWS.items():
        assert listed[name] == Node(FUNCTION, address, view=view)
        shown = [bar for bar in bars if (address, bar, name) != (E1000, "bar1", "mem")]  # of ports
        kinds = {bar: Node(BAR, address, int(bar[-1]), view) for bar in shown}
        assert list(tree.entries(listed[name])) == list(kinds.items())


def test_the_views_of_phys_list_the_same_ranges(tree):
    listed = dict(tree.entries(PHYS))
    ranges = {name: node for name, node in listed.items() if name not in {*VIEWS, "regs"}}
    assert list(listed) == [*VIEWS, *ranges, "regs"]
    assert len(ranges) == sum(line[0] != " " for line in simulated.IOMEM.splitlines())
    for name, view in VIEWS.items():
        assert listed[name] == Node(PHYS_KIND, view=view)
        shown = {name: node._replace(view=view) for name, node in ranges.items()}
        assert list(tree.entries(listed[name])) == list(shown.items())


@pytest.mark.parametrize(("view", "width"), list(zip(WIDE, [1, 2, 4, 8] * 2, strict=True)))
def test_a_view_is_named_by_the_bits_of_its_width(view, width):
    kind = VIEWS[view]
    assert (kind.width, kind.is_text) == (width, view.startswith("x"))
    assert view == f"{'x' if kind.is_text else 'u'}{8 * width}"


def test_mem_has_no_width():
    assert not ViewKind.MEM.is_text
    assert not ViewKind.MEM.is_fixed
    assert [name for name, view in VIEWS.items() if not view.is_fixed] == ["mem"]


IN_EACH_VIEW = pytest.mark.parametrize("view", list(ViewKind), ids=lambda kind: kind.name.lower())


@IN_EACH_VIEW
@pytest.mark.parametrize(
    ("name", "start", "size"),
    [
        *(("bar0@0", 0, 0x100), ("bar0@40", 0x40, 0xC0), ("bar0@ff", 0xFF, 1)),
        *(("bar0@40+4", 0x40, 4), ("bar0@40-5f", 0x40, 0x20), ("bar0@0x4A-0X4b", 0x4A, 2)),
        *(("bar0@0+100", 0, 0x100), ("bar0@0-ff", 0, 0x100), ("bar0@ff+1", 0xFF, 1)),
        *(("bar0@fc+4", 0xFC, 4), ("bar0@fc-ff", 0xFC, 4), ("bar0@13-13", 0x13, 1)),
    ],
)
def test_a_window_lies_where_its_name_says(tree, view, name, start, size):
    """A name without an end means all the rest, but in a text view one register."""
    if view.is_text and not set(name) & set("+-"):
        size = min(size, view.width)
    directory = DIRECTORY._replace(view=view)
    node = tree.lookup(directory, name)
    assert node == window(start, size, view=view)
    assert tree.lookup(directory, name.replace("bar0", "bar2")).kind is BAR
    assert tree.lookup(directory, f"bar0@{start:x}+{size:x}") == node
    assert str(FIRST) in tree.path(node)
    assert tree.path(node).endswith(f"bar0@{start:x}+{size:x}")


@IN_EACH_VIEW
@pytest.mark.parametrize(
    "name",
    [
        *("bar0@100", "bar0@101", "bar0@ffffffffffffffff", "bar0@100+1", "bar0@100-1ff"),
        *("bar0@fc+5", "bar0@ff+2", "bar0@0+101", "bar0@0-100", "bar0@40-100", "bar0@0+1000000"),
        *("bar0@0-ffffffffffffffff", "bar2@100000", "bar2@fffff+2"),
    ],
)
def test_a_window_past_the_end_is_no_address(tree, view, name):
    with pytest.raises(NoSuchAddress, match=f"0000:00:04.0.*{name[:4]}") as caught:
        tree.lookup(DIRECTORY._replace(view=view), name)
    assert caught.value.errno == errno.ENXIO


@IN_EACH_VIEW
@pytest.mark.parametrize(
    "name",
    [
        *("bar0@", "bar0@40+0", "bar0@40-3f", "bar0@5f-40", "bar0@-", "bar0@x", "bar0@40\n"),
        *("bar1@0", "bar1", "bar6@0", "bar6", "rom@0", "config@0", "bar0@0@0", "u8/bar0"),
    ],
)
def test_an_empty_or_misspelt_window_and_one_of_no_bar_are_no_name(tree, view, name):
    with pytest.raises(NoSuchNode) as caught:
        tree.lookup(DIRECTORY._replace(view=view), name)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("view", list(VIEWS.values()), ids=list(VIEWS))
def test_a_view_has_bars_and_ranges_only(tree, view):
    for name in ("config", "rom", "info", "sysfs", *VIEWS, "..", ""):
        for address in (E1000, FIRST):
            with pytest.raises(NoSuchNode):
                tree.lookup(Node(FUNCTION, address, view=view), name)
        with pytest.raises(NoSuchNode):
            tree.lookup(Node(PHYS_KIND, view=view), name)


def test_rom_is_there_only_where_there_is_one(tree, devices):
    assert tree.lookup(Node(FUNCTION, E1000), "rom") == Node(ROM, E1000)
    (devices / str(E1000) / "rom").unlink()
    for address in (E1000, FIRST, SECOND, NVME):
        directory = Node(FUNCTION, address)
        assert "rom" not in dict(tree.entries(directory))
        with pytest.raises(NoSuchNode, match=f"{address}.*'rom'") as caught:
            tree.lookup(directory, "rom")
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("parent", "name", "node"),
    [
        (ROOT, "1af4:1110:1af4:1100", Node(LINK, FIRST)),
        (ROOT, "1af4:1110:1af4:1100.1", Node(LINK, SECOND)),
        (ROOT, "1af4-1110.1", Node(LINK, SECOND)),
        (ROOT, "1af4-1110-1af4-1100", Node(LINK, FIRST)),
        (Node(PCI_KIND), "0000-00-05.0", Node(ALIAS, SECOND)),
        (PHYS, "1e102c5", phys(0x1E102C5, 0x61CFD3B)),
        (PHYS, "0x1E102C5+4", phys(0x1E102C5, 4)),
        (PHYS, "fff-1000", phys(0xFFF, 2)),
        (Node(PHYS_KIND, view=ViewKind.U32), "0x1E102C8+4", phys(0x1E102C8, 4, ViewKind.U32)),
        (Node(PHYS_KIND, view=ViewKind.X16), "9fbfe", phys(0x9FBFE, 2, ViewKind.X16)),
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
        (
            DIRECTORY,
            ["", "bar1", "bar6", "BAR0", "config\n", "vendor", "rom", "INFO", "u128", "U8"],
        ),
        *((Node(FUNCTION, ABSENT), ["bar0", "config"]), (Node(CONFIG, FIRST), ["x"])),
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
        (DIRECTORY, 0, 4096, "pci/0000:00:04.0"),
        (Node(LINK, FIRST), len("pci/0000:00:04.0"), 4096, "pci/0000:00:04.0"),
        (Node(BAR, FIRST, 0), 0x100, 4, "pci/0000:00:04.0/bar0"),
        (Node(BAR, FIRST, 2), 1 << 20, 1 << 20, "pci/0000:00:04.0/bar2"),
        (Node(CONFIG, FIRST), 256, 4, "pci/0000:00:04.0/config"),
        (Node(CONFIG, NVME), 4096, 4, "pci/0000:01:00.0/config"),
        (Node(ROM, E1000), 1 << 16, 1 << 20, "pci/0000:00:03.0/rom"),
        (Node(INFO, FIRST), 0, 4096, "pci/0000:00:04.0/info"),
        (Node(STATUS), 0, 4096, "status"),
        (Node(BAR, E1000, 1), 0x40, 4, "pci/0000:00:03.0/bar1"),
        (window(0x40, 4), 4, 4, "pci/0000:00:04.0/bar0@40+4"),
        (window(0, 0x100), 0x100, 4, "pci/0000:00:04.0/bar0@0+100"),
        (window(1, 9, bar=2), 9, 1 << 20, "pci/0000:00:04.0/bar2@1+9"),
        (window(8, 0x38, bar=1, address=E1000), 0x38, 4, "pci/0000:00:03.0/bar1@8+38"),
        (DIRECTORY._replace(view=ViewKind.U32), 0, 4096, "pci/0000:00:04.0/u32"),
        (PHYS._replace(view=ViewKind.X8), 0, 4096, "phys/x8"),
        (phys(0x1003, 1), 1, 1 << 20, "phys/00001003-00001003"),
        (phys(0xFFF, 2), 2, 4, "phys/00000fff-00001000"),
        (phys(0x800000000, 1 << 32), 1 << 32, 4, "phys/800000000-8ffffffff"),
    ],
)
def test_size_blksize_and_path(tree, node, size, blksize, path):
    assert tree.attributes(node)[:2] == (size, blksize)
    assert tree.path(node) == path


def test_mem_is_for_memory_only(tree):
    for address, size in ((FIRST, 0x100), (NVME, 0x4000)):
        node = tree.lookup(Node(FUNCTION, address, view=ViewKind.MEM), "bar0")
        assert tree.attributes(node)[:2] == (size, 1 << 20)
    with pytest.raises(NoSuchNode, match=r"0000:00:03.0 bar1: is in I/O ports"):
        tree.lookup(Node(FUNCTION, E1000, view=ViewKind.MEM), "bar1")
    for start in (0xFEB00000, 0x100000):
        node = tree.lookup(PHYS._replace(view=ViewKind.MEM), f"{start:x}+100")
        assert tree.attributes(node)[:2] == (0x100, 1 << 20)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize(
    ("node", "size", "path"),
    [
        (Node(BAR, FIRST, 0), 0x100, "pci/0000:00:04.0/{}/bar0"),
        (Node(BAR, FIRST, 2), 1 << 20, "pci/0000:00:04.0/{}/bar2"),
        (Node(BAR, E1000, 1), 0x40, "pci/0000:00:03.0/{}/bar1"),
        (window(0x40, 0x20), 0x20, "pci/0000:00:04.0/{}/bar0@40+20"),
        (window(0x40, 8, bar=2), 8, "pci/0000:00:04.0/{}/bar2@40+8"),
        (phys(0x1000, 0x9EC00), 0x9EC00, "phys/{}/00001000-0009fbff"),
        (phys(0x800000000, 1 << 32), 1 << 32, "phys/{}/800000000-8ffffffff"),
    ],
)
def test_size_blksize_and_path_in_a_view(tree, name, node, size, path):
    """Text is as long as its line; elsewhere tools ask for one access at a time."""
    node = node._replace(view=VIEWS[name])
    width = int(name[1:]) // 8
    expected = (size, width) if name.startswith("u") else (3 + 2 * width, 4096)
    assert tree.attributes(node)[:2] == expected
    assert tree.path(node) == path.format(name)


def test_what_is_not_there_is_empty_and_has_no_attributes(tree):
    assert list(tree.entries(Node(FUNCTION, ABSENT))) == []
    for kind, view in itertools.product((FUNCTION, CONFIG, BAR), ViewKind):
        with pytest.raises(DeviceGone, match=r"0000:00:02\.0"):
            tree.attributes(Node(kind, ABSENT, view=view))
    with pytest.raises(DeviceGone, match=r"0000:00:02\.0"):
        tree.attributes(window(0, 4, address=ABSENT))
    for view in ViewKind:
        directory = Node(FUNCTION, ABSENT, view=view)
        assert list(tree.entries(directory)) == []
        for name in ("bar0", "bar0@40", "rom", "info", "sysfs", "u8"):
            with pytest.raises(NoSuchNode):
                tree.lookup(directory, name)


@pytest.mark.parametrize("kind", [ROM, INFO, SYSFS])
def test_rom_info_and_sysfs_of_a_device_that_is_gone_have_no_attributes_either(tree, kind):
    with pytest.raises(DeviceGone, match=r"0000:00:02\.0"):
        tree.attributes(Node(kind, ABSENT))


@pytest.mark.parametrize("directory", ["sys", "\udcff\N{SNOWMAN}"])
def test_sysfs_leads_to_the_functions_own_directory(tmp_path, monkeypatch, devices, directory):
    """Also where it was named by a relative path, and whatever bytes are in that."""
    paths = simulated.build(tmp_path)
    sysfs = paths.sysfs.rename(tmp_path / directory)
    monkeypatch.chdir(tmp_path)
    tree = tree_of(machine_of(dataclasses.replace(paths, sysfs=Path(directory))))
    for address in (E1000, FIRST, SECOND, NVME):
        link = tree.lookup(Node(FUNCTION, address), "sysfs")
        assert link == Node(SYSFS, address)
        assert tree.target(link) == f"{sysfs}/bus/pci/devices/{address}"
        assert os.path.isdir(tree.target(link))
        assert tree.attributes(link).size == len(os.fsencode(tree.target(link)))
        assert tree.path(link) == f"pci/{address}/sysfs"
    with pytest.raises(BarfsError, match="config is not a link"):
        tree.target(Node(CONFIG, FIRST))


def ruled(tmp_path, allow=(), read_only=(), *, phys=True):
    parse = DevicePattern.parse
    rules = Rules(tuple(map(parse, allow)), tuple(map(parse, read_only)))
    paths = simulated.Paths(*(tmp_path / name for name in ("sys", "proc", "mem")))
    return tree_of(machine_of(paths, rules=rules, phys=phys))


@pytest.mark.parametrize(
    ("missing", "gone"), [("config", {"config"}), ("resource", {"bar0", "bar2"}), ("rom", set())]
)
def test_what_a_function_lacks_hides_nothing_else(tree, devices, missing, gone):
    before = dict(tree.entries(DIRECTORY))
    (devices / str(FIRST) / missing).unlink(missing_ok=True)
    listed = dict(tree.entries(DIRECTORY))
    assert listed == {name: node for name, node in before.items() if name not in gone}
    for name, node in listed.items():
        assert tree.lookup(DIRECTORY, name) == node
    for name in gone:
        with pytest.raises(NoSuchNode):
            tree.lookup(DIRECTORY, name)


def test_without_phys_there_is_none_by_any_way(tree, tmp_path):
    without = ruled(tmp_path, phys=False)
    assert dict(without.entries(ROOT)).keys() == dict(tree.entries(ROOT)).keys() - {"phys"}
    with pytest.raises(NoSuchNode):
        without.lookup(ROOT, "phys")
    for view in ViewKind:
        directory = PHYS._replace(view=view)
        with pytest.raises(NoSuchNode):
            without.lookup(directory, "1000+4")
        with pytest.raises(NoSuchNode):
            list(without.entries(directory))
        with pytest.raises(NoSuchNode):
            without.attributes(phys(0x1000, 4, view))


def test_what_is_not_allowed_has_no_name(tree, tmp_path, devices):
    found = list(walk(ruled(tmp_path, allow=["0000:00:05.0", "1b36:*"])))
    assert {node.address for *_, node in found} == {None, SECOND, NVME}
    assert ruled(tmp_path, ["0000:00:05.0"]).lookup(ROOT, "1af4:1110") == Node(LINK, SECOND)
    hidden = ruled(tmp_path, ["1b36:*"])
    names = {name for _, name, node in walk(tree) if node.address in {FIRST, SECOND, E1000}}
    assert {"1af4:1110.1", "0000:00:03.0", "rom", "bar2"} <= names
    for parent in (ROOT, PCI, *(Node(FUNCTION, FIRST, view=view) for view in ViewKind)):
        for name in (*names, "1af4:1110:1af4:1100", "bar0@4", "bar0@40+4"):
            with pytest.raises(NoSuchNode):
                hidden.lookup(parent, name)
    for kind in (FUNCTION, CONFIG, INFO, ROM, SYSFS, BAR):
        with pytest.raises(DeviceGone, match=r"0000:00:04\.0"):
            hidden.attributes(Node(kind, FIRST))
    assert [name for name, _ in hidden.entries(PCI)] == ["0000:01:00.0"]
    shutil.copytree(devices / str(NVME), devices / str(ABSENT))
    assert [name for name, _ in hidden.entries(PCI)] == ["0000:00:02.0", "0000:01:00.0"]
    assert hidden.lookup(ROOT, "1b36:0010.1").function == NVME


def test_which_files_are_writable(tree, tmp_path):
    files = [node for *_, node in walk(tree) if node.kind.writable]
    assert {node.kind for node in files} == {BAR, CONFIG, RANGE, *REGISTERS}
    files = [node for node in files if node.kind not in REGISTERS]
    assert all(map(tree.is_writable, files))
    assert not any(tree.is_writable(node) for *_, node in walk(tree) if not node.kind.writable)
    tree = ruled(tmp_path, read_only=["0000:00:04.0"])
    refused = {node for node in files if not tree.is_writable(node)}
    assert {node.address for node in refused} == {FIRST}
    assert {node.kind for node in refused} == {BAR, CONFIG}
    assert len(refused) == 1 + 2 * len(ViewKind)
    assert not tree.is_writable(window(0x40, 4))
