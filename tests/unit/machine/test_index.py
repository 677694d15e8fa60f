"""Look-ups by vendor:device read all functions only when some may have come or gone."""

import os
import time

import pytest
from machines import ROOT, Witness, find, machine_of, tree_of

from barfs.errors import NoSuchNode
from barfs.machine import simulated
from barfs.machine.index import SOME, Index
from barfs.machine.source import PlainSource
from barfs.names import DeviceId, PciAddress

IVSHMEM = DeviceId(0x1AF4, 0x1110)
NVME = DeviceId(0x1B36, 0x0010)
PLACES = [PciAddress(0, 0, slot, 0) for slot in range(4)]


class Machine:
    def __init__(self, functions=None):
        self.functions = functions or {PLACES[0]: IVSHMEM, PLACES[1]: NVME, PLACES[2]: IVSHMEM}
        self.stamp, self.reads = 1, 0

    @property
    def index(self):
        return Index(lambda: sorted(self.functions), self.read, lambda: self.stamp)

    def read(self, address):
        self.reads += 1
        return self.functions[address]


def test_what_was_read_holds_for_as_long_as_the_stamp():
    machine = Machine()
    index = machine.index
    for _ in range(3):
        assert index.find(IVSHMEM) == [PLACES[0], PLACES[2]]
        assert index.find(NVME) == [PLACES[1]]
        assert list(index.find(DeviceId(1, 2))) == []
    assert machine.reads == 3
    del machine.functions[PLACES[0]]
    machine.stamp = 2
    assert index.find(IVSHMEM) == [PLACES[2]]
    assert machine.reads == 5


def test_without_a_stamp_each_look_up_reads_all_but_only_once():
    machine = Machine()
    index = machine.index
    machine.stamp = None
    index.find(IVSHMEM)
    index.find(IVSHMEM)
    assert machine.reads == 6
    index.find(IVSHMEM, fresh=True)
    assert machine.reads == 6
    machine.stamp = 1
    index.find(IVSHMEM)
    assert machine.reads == 9


def test_asked_again_it_reads_some_and_finds_what_was_changed_in_the_end():
    many = 5 * SOME // 2
    machine = Machine({PciAddress(0, 0, 0, n): NVME for n in range(many)})
    index = machine.index
    assert not index.find(IVSHMEM)
    machine.functions[PciAddress(0, 0, 0, 2 * SOME)] = IVSHMEM
    for turn in range(2):
        assert not index.find(IVSHMEM, fresh=True)
        assert machine.reads == many + (turn + 1) * SOME
    for _ in range(3):
        assert index.find(IVSHMEM, fresh=True) == [PciAddress(0, 0, 0, 2 * SOME)]
    machine.functions[PciAddress(0, 0, 0, 2 * SOME)] = None
    for _ in range(3):
        index.find(IVSHMEM, fresh=True)
    assert not index.find(IVSHMEM)
    assert len(index.find(NVME)) == many - 1


def test_a_directory_that_may_just_have_changed_has_no_stamp(tmp_path):
    source = PlainSource(tmp_path, tmp_path, tmp_path)
    devices = tmp_path / "bus/pci/devices"
    assert source.stamp() is None
    devices.mkdir(parents=True)
    assert source.stamp() is None
    os.utime(devices, ns=(0, time.time_ns() - 10**9))
    before = source.stamp()
    assert before is not None
    (devices / "new").mkdir()
    assert source.stamp() != before


@pytest.fixture
def machine(tmp_path):
    return machine_of(simulated.build(tmp_path), source=Witness)


@pytest.fixture
def tree(machine):
    return tree_of(machine)


def settle(directory):
    """As if the last change had been long ago, and was yet another one."""
    settle.when = getattr(settle, "when", 0) + 10**9
    os.utime(directory, ns=(0, settle.when))


def target(tree, name):
    return str(tree.lookup(ROOT, name).address)


def test_links_are_right_after_every_change(tree, tmp_path):
    devices = tmp_path / "sys/bus/pci/devices"
    settle(devices)
    assert target(tree, "1af4:1110") == "0000:00:04.0"
    assert target(tree, "1af4:1110.1") == "0000:00:05.0"
    (devices / "0000:00:04.0").rename(tmp_path / "unplugged")
    settle(devices)
    assert target(tree, "1af4:1110") == "0000:00:05.0"
    with pytest.raises(NoSuchNode):
        tree.lookup(ROOT, "1af4:1110.1")
    (tmp_path / "unplugged").rename(devices / "0000:00:06.0")
    settle(devices)
    assert target(tree, "1af4:1110.1") == "0000:00:06.0"


def test_ids_that_change_where_they_are_are_found_and_no_longer_found(tree, tmp_path):
    devices = tmp_path / "sys/bus/pci/devices"
    settle(devices)
    assert target(tree, "1b36:0010") == "0000:01:00.0"
    (devices / "0000:01:00.0/device").write_text("0x0011\n")
    with pytest.raises(NoSuchNode):
        tree.lookup(ROOT, "1b36:0010")
    assert target(tree, "1b36:0011") == "0000:01:00.0"


def test_a_look_up_reads_the_ids_of_what_it_finds_only(tree, machine, tmp_path):
    devices = tmp_path / "sys/bus/pci/devices"
    settle(devices)
    tree.lookup(ROOT, "1af4:1110")
    machine.source.seen.clear()
    tree.lookup(ROOT, "1b36:0010")
    assert machine.source.seen == [
        ("read", f"0000:01:00.0/{name}") for name in ("vendor", "device")
    ]


def test_listing_registers_of_config_space_reads_none_of_it(machine, tree):
    for path in (
        "pci/0000:00:04.0/regs",
        "pci/0000:01:00.0/regs/config",
        "pci/0000:00:03.0/decode/config",
    ):
        directory = find(tree, path)
        machine.source.seen.clear()
        names = [name for name, node in tree.entries(directory) if tree.attributes(node)]
        assert names
        assert machine.source.touched() == []
    assert "COMMAND" in names
