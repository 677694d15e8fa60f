"""Mode bits and groups of all that is in the tree."""

import itertools
import stat

import pytest

from barfs.names import PciAddress
from barfs.nodes import BARS, PCI, PHYS, ROOT, Kind, Node, ViewKind
from barfs.requests.policy import Policy, parse_mode

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
@pytest.mark.parametrize("view", ViewKind)
def test_bars_have_the_mode_in_every_view_and_their_windows_too(mode, view):
    for kind, size in itertools.product(BARS, (0, 4)):
        node = Node(kind, DEVICE, 0, size, view)
        assert policy(mode).mode_of(node, writable=True) == stat.S_IFREG | mode
        assert policy(mode).mode_of(node, writable=False) == stat.S_IFREG | mode & 0o444
        assert policy(mode).group_of(node) == 3


@pytest.mark.parametrize("mode", MODES)
def test_config_rom_and_info_are_never_written_by_others(mode):
    read = mode & 0o444
    for kind, owner in ((Kind.CONFIG, 0o200), (Kind.ROM, 0), (Kind.INFO, 0)):
        node = Node(kind, DEVICE)
        assert policy(mode).mode_of(node, writable=True) == stat.S_IFREG | read | owner
        assert policy(mode).mode_of(node, writable=False) == stat.S_IFREG | read
        assert policy(mode).group_of(node) == 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("view", ViewKind)
def test_physical_memory_is_its_owners_alone(mode, view):
    file = Node(Kind.PHYS_FILE, None, 0x1000, 4, view)
    directory = PHYS._replace(view=view)
    assert policy(mode).mode_of(file, writable=True) == stat.S_IFREG | 0o600
    assert policy(mode).mode_of(directory, writable=True) == stat.S_IFDIR | 0o500
    assert {policy(mode).group_of(node) for node in (file, directory)} == {2}


@pytest.mark.parametrize("mode", MODES)
def test_directories_are_open_and_nobody_writes_to_them(mode):
    for node in (ROOT, PCI, Node(Kind.FUNCTION, DEVICE), Node(Kind.FUNCTION, DEVICE, view=3)):
        for writable in (False, True):
            assert policy(mode).mode_of(node, writable=writable) == stat.S_IFDIR | 0o555
    assert policy(mode).mode_of(Node(Kind.LINK, DEVICE), writable=True) == stat.S_IFLNK | 0o777


def test_no_kind_is_opened_to_others_by_oversight():
    """What is not a file of a device, known or yet to come, is private whatever the mode."""
    shared = {*BARS, Kind.CONFIG, Kind.ROM, Kind.INFO}
    for kind in set(Kind) - shared:
        mode = policy(0o666).mode_of(Node(kind, DEVICE), writable=True)
        assert not (stat.S_ISREG(mode) and mode & 0o077), kind
