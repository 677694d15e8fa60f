"""What reads and writes of an open file do to the aperture behind it, access by access."""

import errno
import itertools

import pytest

from barfs import demo
from barfs.devmem import PhysicalMemory
from barfs.errors import BadRequest, PastEnd
from barfs.names import PciAddress
from barfs.nodes import PCI, PHYS, ROOT, Kind, Node, Tree
from barfs.pci import PciBus
from barfs.views import ConfigView, JoinedView, RawView, open_view

SIZE = 64
IVSHMEM = PciAddress(0, 0, 4, 0)


class Recorder:
    """An aperture that records each single access, and each copy with its length."""

    def __init__(self, size=SIZE, *, base=0, max_width=8, memory_like=False):
        self.size, self.base, self.max_width = size, base, max_width
        self.memory_like = memory_like
        self.memory = bytearray((base + at) & 0xFF for at in range(size))
        self.made = []
        self.closed = 0

    def record(self, kind, offset, width, length):
        assert 0 < length <= self.size - offset
        assert length % width == 0
        self.made += [(kind, at, width) for at in range(offset, offset + length, width)]
        return slice(offset, offset + length)

    def load_run(self, offset, width, into):
        memoryview(into)[:] = self.memory[self.record("load", offset, width, len(into))]

    def store_run(self, offset, width, data):
        self.memory[self.record("store", offset, width, len(data))] = data

    def copy_out(self, offset, into):
        memoryview(into)[:] = self.memory[self.record("copy_out", offset, len(into), len(into))]

    def copy_in(self, offset, data):
        self.memory[self.record("copy_in", offset, len(data), len(data))] = data

    def close(self):
        self.closed += 1


def joined():
    """Registers, System RAM and registers again from address 2 on: 20 bytes."""
    parts = [Recorder(6, base=2), Recorder(10, base=8, memory_like=True), Recorder(4, base=18)]
    return parts, JoinedView(list(map(RawView, parts)))


def read_and_write(view, parts, offset, length):
    """Check what is read and what a write leaves behind; return how long the request was."""
    before = b"".join(part.memory for part in parts)
    new, extent = bytes(255 - at for at in range(length)), min(length, len(before) - offset)
    assert view.read(offset, length) == before[offset : offset + extent]
    assert view.write(offset, new) == extent
    after = b"".join(part.memory for part in parts)
    assert after == before[:offset] + new[:extent] + before[offset + extent :]
    return extent


@pytest.mark.parametrize(
    ("base", "max_width", "offset", "length", "made"),  # made: offset and width of each access
    [
        *((0, 8, 0, 0, []), (0, 8, 5, 1, [(5, 1)]), (0, 8, 6, 2, [(6, 2)])),
        *((0, 8, 4, 4, [(4, 4)]), (0, 8, 8, 8, [(8, 8)]), (0, 4, 8, 8, [(8, 4), (12, 4)])),
        *((3, 8, 1, 4, [(1, 4)]), (3, 8, 0, 8, [(0, 1), (1, 4), (5, 2), (7, 1)])),
        (0, 8, 3, 10, [(3, 1), (4, 4), (8, 4), (12, 1)]),
        # Cut short at the end, and then it is the shorter request.
        *((0, 8, 62, 8, [(62, 2)]), (0, 8, 56, 100, [(56, 8)]), (0, 8, 63, 2, [(63, 1)])),
    ],
)
def test_a_request_is_these_accesses_with_these_bytes(base, max_width, offset, length, made):
    aperture = Recorder(base=base, max_width=max_width)
    read_and_write(RawView(aperture), [aperture], offset, length)
    assert aperture.made == [(kind, *access) for kind in ("load", "store") for access in made]


def test_memory_like_apertures_are_copied_once_and_within_the_end():
    for offset, length in itertools.product((0, 1, 8, 60), (1, 3, 8, 33, 100)):
        aperture = Recorder(memory_like=True)
        extent = read_and_write(RawView(aperture), [aperture], offset, length)
        assert aperture.made == [("copy_out", offset, extent), ("copy_in", offset, extent)]


def test_a_joined_view_is_its_parts_one_after_the_other():
    for offset, length in itertools.product(range(20), range(25)):
        parts, view = joined()
        read_and_write(view, parts, offset, length)


def test_a_straddling_request_touches_each_part_in_its_own_way():
    parts, view = joined()
    view.read(4, 14)
    view.write(0, bytes(8))
    assert [part.made for part in parts] == [
        [("load", 4, 2), ("store", 0, 2), ("store", 2, 4)],
        [("copy_out", 0, 10), ("copy_in", 0, 2)],
        [("load", 0, 2)],
    ]


@pytest.mark.parametrize("kind", ["registers", "memory-like", "joined"])
@pytest.mark.parametrize("offset", [SIZE, SIZE + 1, 1 << 62])
def test_past_the_end_nothing_is_touched_and_closing_closes_once(kind, offset):
    parts, view = joined()
    if kind != "joined":
        parts = [Recorder(memory_like=kind == "memory-like")]
        view = RawView(parts[0])
    assert view.read(offset, 4) == b""
    with pytest.raises(PastEnd, match=f"4 bytes at {offset:#x}") as caught:
        view.write(offset, b"abcd")
    assert caught.value.errno == errno.ENOSPC
    assert view.write(offset, b"") == 0
    view.close()
    assert [(part.made, part.closed) for part in parts] == [([], 1)] * len(parts)


@pytest.fixture
def tree(tmp_path):
    machine = demo.build(tmp_path)
    return Tree(PciBus(machine.sysfs), PhysicalMemory(machine.proc, machine.devmem))


def test_config_space_is_read_and_written_within_its_end(tree, tmp_path):
    file = tmp_path / "sys/bus/pci/devices" / str(IVSHMEM) / "config"
    before = file.read_bytes()
    view = open_view(tree, Node(Kind.CONFIG, IVSHMEM), writable=True)
    assert type(view) is ConfigView
    assert view.read(0, 1000) == before
    assert view.read(250, 10) == before[250:]
    assert view.read(256, 4) == b""
    assert view.write(0x3C, b"\x0b") == 1
    assert view.write(254, b"abcd") == 2
    with pytest.raises(PastEnd):
        view.write(256, b"a")
    view.close()
    assert file.read_bytes() == before[:0x3C] + b"\x0b" + before[0x3D:254] + b"ab"


@pytest.mark.parametrize(
    ("node", "view"),
    [
        *((Node(Kind.BAR0, IVSHMEM), RawView), (Node(Kind.BAR2, IVSHMEM), RawView)),
        (Node(Kind.PHYS_FILE, start=0x1001, size=3), RawView),
        (Node(Kind.PHYS_FILE, start=0xFFE, size=4), JoinedView),
    ],
)
def test_a_file_opens_as_its_view_and_nothing_else_opens(tree, node, view):
    opened = open_view(tree, node, writable=True)
    assert type(opened) is view
    assert opened.write(1, b"ab") == 2
    assert opened.read(0, 3) == b"\0ab"
    opened.close()
    for directory in (ROOT, PCI, PHYS, Node(Kind.FUNCTION, IVSHMEM), Node(Kind.LINK, IVSHMEM)):
        with pytest.raises(BadRequest, match="is not a file"):
            open_view(tree, directory, writable=False)
