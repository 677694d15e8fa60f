"""Mode bits and groups of all that is in the tree."""

import stat

import pytest
from machines import machine_of, tree_of

from barfs.machine import simulated
from barfs.names import PciAddress
from barfs.nodes import Kind, Node, Share, Type
from barfs.requests.policy import Policy, parse_mode
from barfs.tree.bars import BAR
from barfs.tree.config import CONFIG
from barfs.tree.decode import ALL as DECODE_ALL
from barfs.tree.decode import DECODED
from barfs.tree.functions import FUNCTION, PCI
from barfs.tree.info import INFO
from barfs.tree.links import LINK
from barfs.tree.physical import PHYS, RANGE
from barfs.tree.registers import CONFIG_REGISTER, README, REGISTER
from barfs.tree.rom import ROM
from barfs.tree.root import ROOT

DEVICE = PciAddress(0, 0, 4, 0)
MODES = (0o600, 0o640, 0o660, 0o620, 0o666, 0o644, 0o606)


def policy(mode=0o600):
    return Policy(uid=1, gid=2, group=3, mode=mode)


def test_modes_that_are_taken():
    texts = [f"{number:o}" for number in range(0o10000)]
    taken = {text: parse_mode(text) for text in texts if parse_mode(text) is not None}
    assert len(taken) == 16
    for text, mode in taken.items():
        assert mode == int(text, 8) == parse_mode("0" + text)
        assert mode & ~0o666 == 0
        assert mode & 0o600 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        *("", "6", "66", "0o660", "00660", "6600", "-660", "+660", " 660", "660\n", "0x1b0"),
        *("770", "664 ", "661", "4660", "440", "060", "000", "u=rw", "rw-rw----", "888", "66_0"),
        "\N{ARABIC-INDIC DIGIT SIX}60",
    ],
)
def test_modes_that_are_not(text):
    assert parse_mode(text) is None


@pytest.mark.parametrize("mode", MODES)
def test_bars_have_the_mode_and_no_writers_where_they_are_read_only(mode):
    assert policy(mode).mode_of(BAR, writable=True) == stat.S_IFREG | mode
    assert policy(mode).mode_of(BAR, writable=False) == stat.S_IFREG | mode & 0o444
    assert policy(mode).group_of(Node(BAR, DEVICE)) == 3


@pytest.mark.parametrize("mode", MODES)
def test_config_rom_and_info_are_never_written_by_others(mode):
    read = mode & 0o444
    for kind, owner in ((CONFIG, 0o200), (ROM, 0), (INFO, 0)):
        shown = policy(mode).mode_of(kind, writable=kind.writable)
        assert shown == stat.S_IFREG | read | owner
        assert policy(mode).mode_of(kind, writable=False) == stat.S_IFREG | read
        assert policy(mode).group_of(Node(kind, DEVICE)) == 3


@pytest.mark.parametrize("mode", MODES)
def test_physical_memory_is_its_owners_alone(mode):
    assert policy(mode).mode_of(RANGE, writable=True) == stat.S_IFREG | 0o600
    assert policy(mode).mode_of(PHYS, writable=False) == stat.S_IFDIR | 0o500
    assert {policy(mode).group_of(Node(kind)) for kind in (RANGE, PHYS)} == {2}


@pytest.mark.parametrize("mode", MODES)
def test_directories_are_open_and_nobody_writes_to_them(mode):
    for kind in (ROOT, PCI, FUNCTION):
        for writable in (False, True):
            assert policy(mode).mode_of(kind, writable=writable) == stat.S_IFDIR | 0o555
    assert policy(mode).mode_of(LINK, writable=True) == stat.S_IFLNK | 0o777


def test_no_kind_is_opened_to_others_by_oversight(tmp_path):
    """What is not said to be shared is private whatever the mode, and what is said of each kind."""
    forgotten = Kind("new")
    assert policy(0o666).mode_of(forgotten, writable=forgotten.writable) == stat.S_IFREG | 0o400
    assert policy(0o666).mode_of(forgotten, writable=True) == stat.S_IFREG | 0o600
    private = Kind("new", Type.DIRECTORY)
    assert policy(0o666).mode_of(private, writable=False) == stat.S_IFDIR | 0o500
    tree = tree_of(machine_of(simulated.build(tmp_path)))
    shared = {kind: kind.share for kind in tree.kinds if kind.type is Type.FILE}
    assert {kind: share for kind, share in shared.items() if share is not Share.NOBODY} == {
        **dict.fromkeys((BAR, REGISTER), Share.ALL),
        **dict.fromkeys((CONFIG, ROM, INFO), Share.READ),
        **dict.fromkeys((CONFIG_REGISTER, README, DECODED, DECODE_ALL), Share.READ),
    }
