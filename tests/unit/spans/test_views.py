"""What reads and writes of an open file do to the aperture behind it, access by access."""

import contextlib
import errno
import itertools
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
from machines import PCI, PHYS, ROOT, find, machine_of, tree_of

from barfs import devmem
from barfs.errors import (
    BadRequest,
    BarfsError,
    DeviceGone,
    KernelRefused,
    NotDecoded,
    OnlyRead,
    PastEnd,
    ReadOnly,
)
from barfs.machine import simulated
from barfs.machine.patterns import DevicePattern, Rules
from barfs.names import VIEWS, PciAddress
from barfs.nodes import Node, Type
from barfs.spans import guards
from barfs.spans.enabling import Decoder
from barfs.spans.guards import Guard, GuardedView
from barfs.spans.roms import RomView
from barfs.spans.views import (
    ConfigView,
    FixedView,
    JoinedView,
    RawView,
    SnapshotView,
    TextView,
)
from barfs.tree.bars import BAR
from barfs.tree.config import CONFIG
from barfs.tree.functions import FUNCTION
from barfs.tree.info import INFO
from barfs.tree.links import LINK
from barfs.tree.log import LOG, OpenLog
from barfs.tree.physical import RANGE
from barfs.tree.rom import ROM
from barfs.tree.status import STATUS

SIZE = 64
WIDTHS = (1, 2, 4, 8)
IVSHMEM = PciAddress(0, 0, 4, 0)


class Recorder:
    """An aperture that records each single access, and each copy with its length."""

    way = ""

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
    new, extent = (
        bytes((255 - at) & 0xFF for at in range(length)),
        min(length, len(before) - offset),
    )
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
        # Cut short at the end: what is left is not one access, and so nothing is 8 bytes wide.
        *((0, 8, 62, 8, [(62, 2)]), (0, 8, 63, 2, [(63, 1)]), (0, 8, 60, 8, [(60, 4)])),
        *((0, 8, 56, 100, [(56, 4), (60, 4)]), (0, 8, 56, 9, [(56, 4), (60, 4)])),
        (0, 8, 56, 8, [(56, 8)]),
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


def test_a_part_of_a_request_is_not_one_access_however_long_it_is():
    parts = [Recorder(8), Recorder(8, base=8, memory_like=True), Recorder(8, base=16)]
    view = JoinedView(list(map(RawView, parts)))
    view.read(0, 24)
    view.write(0, bytes(24))
    registers = [(kind, at, 4) for kind in ("load", "store") for at in (0, 4)]
    copies = [("copy_out", 0, 8), ("copy_in", 0, 8)]
    assert [part.made for part in parts] == [registers, copies, registers]
    view.read(16, 8)  # this one is all of a request
    assert parts[2].made[4:] == [("load", 0, 8)]
    view.read(16, 9)  # and this one is cut short
    assert parts[2].made[5:] == [("load", 0, 4), ("load", 4, 4)]
    assert (view.width_at(16, 8), view.width_at(16, 9), view.width_at(8, 9)) == (8, 4, None)


def write_dots(view, offset, length):
    view.write(offset, b"." * length)


@pytest.mark.parametrize("joined", [False, True])
def test_the_rest_of_a_request_that_the_kernel_cut_is_not_one_access(joined):
    """The kernel cuts at 1 MiB, or before it where the buffer begins inside a page."""
    for cut in (1 << 20, (1 << 20) - 0xFF8):
        aperture = Recorder(cut + 24)
        view = RawView(aperture)
        if joined:
            view = JoinedView([view, RawView(Recorder(8, base=cut + 24))])
        for request in (view.read, partial(write_dots, view)):
            aperture.made.clear()
            request(0, cut)
            assert {width for *_, width in aperture.made} == {4}
            aperture.made.clear()
            request(cut, 8)
            assert [width for *_, width in aperture.made] == [4, 4]
            assert view.width_at(cut, 8) == 4
            aperture.made.clear()
            request(cut + 8, 8)
            assert [width for *_, width in aperture.made] == [8]
            request(0, 1 << 17)  # not cut: what follows is another request
            aperture.made.clear()
            request(1 << 17, 8)
            assert [width for *_, width in aperture.made] == [8]


def single(kind, offset, width, length):
    """The accesses of one width that a request is made of, as a Recorder has them."""
    return [(kind, at, width) for at in range(offset, offset + length, width)]


def check_refused(parts, offset, length, match, *requests):
    """Check that requests are EINVAL, and that no part is accessed for them."""
    made = [list(part.made) for part in parts]
    for request in requests:
        with pytest.raises(BadRequest, match=match) as caught:
            request()
        assert caught.value.errno == errno.EINVAL
        assert [part.made for part in parts] == made, (offset, length)


@pytest.mark.parametrize("memory_like", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_fixed_view_makes_accesses_of_its_width_in_order_and_no_others(width, memory_like):
    """A read as it is cut short at the end, and a write before that, is whole ones or refused."""
    for size, offset, length in itertools.product((62, SIZE), range(SIZE), range(20)):
        extent = min(length, max(0, size - offset))
        aperture = Recorder(size, memory_like=memory_like)
        view = FixedView(aperture, width)
        if not extent:
            continue
        refused = []
        data = bytes(aperture.memory[offset : offset + extent])
        if offset % width == 0 and extent % width == 0:
            assert view.read(offset, length) == data
            assert aperture.made == single("load", offset, width, extent)
        else:
            refused.append(partial(view.read, offset, length))
        aperture.made.clear()
        if offset % width == 0 and length % width == 0 and extent % width == 0:
            assert view.write(offset, bytes(length)) == extent
            assert aperture.made == single("store", offset, width, extent)
            assert aperture.memory[offset : offset + extent] == bytes(extent)
        else:
            refused.append(partial(view.write, offset, bytes(length)))
        words = f"at {offset:#x} .* {width} bytes"
        check_refused([aperture], offset, length, words, *refused)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_fixed_view_of_a_long_request_and_one_that_straddles_the_end(width):
    for offset, length in ((0, SIZE), (0, 4096), (SIZE - 8, 8), (SIZE - 8, 16), (8, 1 << 20)):
        aperture = Recorder(base=0x1000)
        extent = read_and_write(FixedView(aperture, width), [aperture], offset, length)
        assert extent == min(length, SIZE - offset)
        made = single("load", offset, width, extent) + single("store", offset, width, extent)
        assert aperture.made == made


@pytest.mark.parametrize(
    ("width", "memory", "line"),
    [
        *((1, b"\x2a", b"0x2a\n"), (2, b"\x34\x12", b"0x1234\n")),
        *((4, b"\x2a\0\0\0", b"0x0000002a\n"), (4, b"\x78\x56\x34\x82", b"0x82345678\n")),
        (8, b"\xef\xcd\xab\x89\x67\x45\x23\x01", b"0x0123456789abcdef\n"),
    ],
)
def test_a_text_view_reads_one_register_at_a_time(width, memory, line):
    """Whole or in pieces: one access for each read at 0, and none for the rest of its line."""
    aperture = Recorder(width)
    aperture.memory[:] = memory if sys.byteorder == "little" else memory[::-1]
    view = TextView(aperture, width)
    assert aperture.made == []
    one = [("load", 0, width)]
    for step in (4096, len(line), 1, 3):
        aperture.made.clear()
        pieces = [view.read(at, step) for at in range(0, len(line) + step, step)]
        assert b"".join(map(bytes, pieces)) == line
        assert aperture.made == one
    for offset in (len(line), len(line) + 1, 1 << 62):
        assert view.read(offset, 4096) == b""
    assert view.read(0, 0) == b""
    assert aperture.made == one
    view.close()
    assert aperture.closed == 1


def test_a_text_view_samples_at_0_and_continues_the_line_of_that_sample():
    aperture = Recorder(2)
    aperture.memory[:] = b"\x11\x11"
    view = TextView(aperture, 2)
    assert view.read(0, 3) == b"0x1"
    aperture.memory[:] = b"\x22\x22"
    assert view.read(3, 100) == b"111\n"
    assert view.read(0, 4) == b"0x22"
    assert view.read(0, 100) == b"0x2222\n"
    assert aperture.made == [("load", 0, 2)] * 3


@pytest.mark.parametrize("width", WIDTHS)
def test_a_text_view_opened_in_the_middle_of_the_line_reads_the_register_once(width):
    aperture = Recorder(width)
    aperture.memory[:] = b"\xa5" * width
    view = TextView(aperture, width)
    assert [view.read(2, 1), view.read(3, 100)] == [b"a", (b"a5" * width)[1:] + b"\n"]
    assert aperture.made == [("load", 0, width)]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_text_view_read_past_its_line_touches_nothing(width):
    for past in (0, 1, 1 << 62):
        aperture = Recorder(width)
        assert TextView(aperture, width).read(3 + 2 * width + past, 4096) == b""
        assert aperture.made == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("text", "old", "new", "loads"),
    [
        *((b"42", 0xFF, 42, 0), (b"0x2a\n", 0xFF, 42, 0), (b" 0b101010 \n", 0, 42, 0)),
        *((b"0", 0xFF, 0, 0), (b"0xff\n", 0, 0xFF, 0)),
        *(
            (b"0x01:0x0f", 0xFF, 0xF1, 1),
            (b"0x10:0x10\n", 0x01, 0x11, 1),
            (b"0:0x0", 0xA5, 0xA5, 1),
        ),
        (b"0x5a:0xff", 0xA5, 0x5A, 1),
    ],
)
def test_a_text_view_write_is_one_store_and_with_a_mask_one_load_before_it(
    width, text, old, new, loads
):
    for offset in (0, 5):  # a second line on the same open file
        aperture = Recorder(width)
        aperture.memory[:] = old.to_bytes(width, sys.byteorder)
        assert TextView(aperture, width).write(offset, text) == len(text)
        assert aperture.made == [("load", 0, width)] * loads + [("store", 0, width)]
        assert aperture.memory == new.to_bytes(width, sys.byteorder)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_text_view_writes_each_byte_of_its_width_with_and_without_a_mask(width):
    top = (1 << 8 * width) - 1
    value = int.from_bytes(bytes(range(0x11, 0x11 + width)), "big")
    mask = int.from_bytes(bytes([0xF0] * width), "big")
    for text, new in (
        (f"{value:#x}", value),
        (f"{value & mask:#x}:{mask:#x}", value & mask | top & ~mask),
    ):
        aperture = Recorder(width)
        aperture.memory[:] = top.to_bytes(width, sys.byteorder)
        TextView(aperture, width).write(0, text.encode())
        assert aperture.memory == new.to_bytes(width, sys.byteorder)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "text",
    [b"", b"\n", b"on", b"1 2", b"1\n2", b"-1", b"010", b"1:", b"1:x", b"1\0", b"0x1" + b"0" * 16]
    + [b"1:0x1" + b"0" * 16, b"0x1" + b"0" * 16 + b":1"],
)
def test_a_text_view_refuses_text_before_any_access(width, text):
    aperture = Recorder(width)
    with pytest.raises(BadRequest) as caught:
        TextView(aperture, width).write(0, text)
    assert caught.value.errno == errno.EINVAL
    assert aperture.made == []


def fixed_joined(width, sizes):
    """Registers and System RAM by turns from address 0x40 on."""
    starts = itertools.accumulate(sizes, initial=0x40)
    parts = [
        Recorder(size, base=start, memory_like=bool(index % 2))
        for index, (size, start) in enumerate(zip(sizes, starts, strict=False))
    ]
    return parts, JoinedView([FixedView(part, width) for part in parts])


@pytest.mark.parametrize("width", WIDTHS)
def test_joined_fixed_views_are_accessed_in_their_width_part_by_part(width):
    sizes = (8, 16, 24)
    for offset, length in itertools.product(range(0, 48, width), range(width, 57, width)):
        parts, view = fixed_joined(width, sizes)
        extent = read_and_write(view, parts, offset, length)
        made, start = [], 0
        for part in parts:
            at, end = max(offset, start) - start, min(offset + extent, start + part.size) - start
            made.append(single("load", at, width, end - at) + single("store", at, width, end - at))
            start += part.size
        assert [part.made for part in parts] == made


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("sizes", [(8, 16, 24), (8, 16, 23)])
def test_joined_fixed_views_refuse_before_the_first_access_of_any_part(width, sizes):
    for offset, length in itertools.product(range(sum(sizes)), range(1, 60)):
        extent = min(length, sum(sizes) - offset)
        parts, view = fixed_joined(width, sizes)
        refused = []
        if offset % width or extent % width:
            refused.append(partial(view.read, offset, length))
        if offset % width or length % width or extent % width:
            refused.append(partial(view.write, offset, bytes(length)))
        check_refused(parts, offset, length, f" {width} bytes", *refused)


@pytest.mark.parametrize("kind", ["registers", "memory-like", "joined", "fixed", "joined fixed"])
@pytest.mark.parametrize("offset", [SIZE, SIZE + 4, 1 << 62])
def test_past_the_end_nothing_is_touched_and_closing_closes_once(kind, offset):
    parts, view = fixed_joined(4, (8, 16, 4)) if kind == "joined fixed" else joined()
    if not kind.startswith("joined"):
        parts = [Recorder(memory_like=kind == "memory-like")]
        view = FixedView(parts[0], 4) if kind == "fixed" else RawView(parts[0])
    assert view.read(offset, 4) == b""
    with pytest.raises(PastEnd, match=f"4 bytes at {offset:#x}") as caught:
        view.write(offset, b"abcd")
    assert caught.value.errno == errno.ENOSPC
    assert view.write(offset, b"") == 0
    view.close()
    assert [(part.made, part.closed) for part in parts] == [([], 1)] * len(parts)


@pytest.mark.parametrize("memory_like", [False, True])
def test_past_the_end_of_a_raw_view_at_an_odd_offset_nothing_is_touched(memory_like):
    aperture = Recorder(memory_like=memory_like)
    view = RawView(aperture)
    assert view.read(SIZE + 1, 4) == b""
    with pytest.raises(PastEnd, match=f"4 bytes at {SIZE + 1:#x}"):
        view.write(SIZE + 1, b"abcd")
    assert aperture.made == []


def test_a_snapshot_is_read_in_pieces_and_not_written():
    view = SnapshotView("address: 0000:00:04.0\n\u00e9\n")
    whole = "address: 0000:00:04.0\n\u00e9\n".encode()
    assert view.read(0, 4096) == whole
    assert b"".join(view.read(at, 5) for at in range(0, 40, 5)) == whole
    assert view.read(len(whole), 4096) == view.read(1 << 62, 1) == view.read(0, 0) == b""
    for offset, data in ((0, b"x"), (len(whole), b"x"), (1 << 62, b"x")):
        with pytest.raises(OnlyRead, match=f"0x1 bytes at {offset:#x}") as caught:
            view.write(offset, data)
        assert caught.value.errno == errno.EACCES
    view.close()
    assert view.read(0, 4096) == whole


@pytest.fixture
def paths(tmp_path):
    return simulated.build(tmp_path)


@pytest.fixture
def machine(paths):
    return machine_of(paths)


@pytest.fixture
def tree(machine):
    return tree_of(machine)


@pytest.fixture(autouse=True)
def nothing_stays_open():
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def kind_of(view):
    """The type of a view, of the one that is guarded if it only guards one."""
    return type(getattr(view, "_view", view))


def behind(tmp_path, file, offset, length):
    """Bytes of a file of the simulated machine, of a device's if its path says so."""
    devices = tmp_path / "sys/bus/pci/devices"
    with (tmp_path / file if file == "mem" else devices / file).open("rb") as opened:
        opened.seek(offset)
        return opened.read(length)


def test_config_space_is_read_and_written_within_its_end(tree, tmp_path):
    file = tmp_path / "sys/bus/pci/devices" / str(IVSHMEM) / "config"
    before = file.read_bytes()
    view = tree.open(Node(CONFIG, IVSHMEM), writable=True)
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
        *((Node(BAR, IVSHMEM, 0), RawView), (Node(BAR, IVSHMEM, 2), RawView)),
        (Node(RANGE, start=0x1001, size=3), RawView),
        (Node(RANGE, start=0xFFE, size=4), JoinedView),
    ],
)
def test_a_file_opens_as_its_view_and_nothing_else_opens(tree, node, view):
    opened = tree.open(node, writable=True)
    assert kind_of(opened) is view
    assert opened.write(1, b"ab") == 2
    assert opened.read(0, 3) == b"\0ab"
    opened.close()
    for directory in (ROOT, PCI, PHYS, Node(FUNCTION, IVSHMEM), Node(LINK, IVSHMEM)):
        with pytest.raises(BadRequest, match="is not a file"):
            tree.open(directory, writable=False)


def test_config_space_that_the_kernel_ends_early_is_a_refusal_and_not_its_end(tree, tmp_path):
    """Those without CAP_SYS_ADMIN are shown 64 bytes of the 256 that stat gives."""
    file = tmp_path / "sys/bus/pci/devices" / str(IVSHMEM) / "config"
    before = file.read_bytes()
    view = tree.open(Node(CONFIG, IVSHMEM), writable=False)
    os.truncate(file, 64)
    assert view.read(0, 256) == before[:64]
    assert view.read(60, 8) == before[60:64]
    for offset, length in ((64, 1), (64, 192), (100, 4), (255, 1), (255, 100)):
        with pytest.raises(
            KernelRefused, match=f"config.* at {offset:#x} .*CAP_SYS_ADMIN"
        ) as caught:
            view.read(offset, length)
        assert caught.value.errno == errno.EPERM
    assert view.read(256, 4) == view.read(1000, 4) == view.read(64, 0) == b""
    view.close()


PORTS, BARS, NVME = "pci/0000:00:03.0", "pci/0000:00:04.0", "pci/0000:01:00.0"
BAR0, BAR2 = "0000:00:04.0/resource0", "0000:00:04.0/resource2"
PORT_BAR, NVME_BAR = "0000:00:03.0/resource1", "0000:01:00.0/resource0"


@pytest.mark.parametrize(
    ("path", "kind", "file", "start", "size"),
    [
        *((f"{BARS}/bar0", RawView, BAR0, 0, 0x100), (f"{BARS}/bar2", RawView, BAR2, 0, 1 << 20)),
        (f"{BARS}/bar0@40", RawView, BAR0, 0x40, 0xC0),
        (f"{BARS}/bar0@41+3", RawView, BAR0, 0x41, 3),
        (f"{BARS}/bar2@fff-100f", RawView, BAR2, 0xFFF, 0x11),
        (f"{BARS}/bar2@ffffe", RawView, BAR2, 0xFFFFE, 2),
        (f"{BARS}/u8/bar0", FixedView, BAR0, 0, 0x100),
        (f"{BARS}/u16/bar0@42", FixedView, BAR0, 0x42, 0xBE),
        (f"{BARS}/u32/bar0@40+4", FixedView, BAR0, 0x40, 4),
        (f"{BARS}/u32/bar0@40-5f", FixedView, BAR0, 0x40, 0x20),
        (f"{BARS}/u64/bar2@1ff8", FixedView, BAR2, 0x1FF8, 0xFE008),
        (f"{NVME}/u64/bar0@3ff8", FixedView, NVME_BAR, 0x3FF8, 8),
        *(
            (f"{PORTS}/bar1", RawView, PORT_BAR, 0, 0x40),
            (f"{PORTS}/bar1@3", RawView, PORT_BAR, 3, 61),
        ),
        (f"{PORTS}/u8/bar1@3", FixedView, PORT_BAR, 3, 61),
        (f"{PORTS}/u16/bar1@2+4", FixedView, PORT_BAR, 2, 4),
        (f"{PORTS}/u32/bar1", FixedView, PORT_BAR, 0, 0x40),
        *(("phys/1001+3", RawView, "mem", 0x1001, 3), ("phys/ffe+4", JoinedView, "mem", 0xFFE, 4)),
        ("phys/u8/1003+5", FixedView, "mem", 0x1003, 5),
        ("phys/u16/ffe+4", JoinedView, "mem", 0xFFE, 4),
        ("phys/u32/1e10284-1e1028b", FixedView, "mem", 0x1E10284, 8),
        ("phys/u32/9fbf8+10", JoinedView, "mem", 0x9FBF8, 16),
        ("phys/u64/9fbf8-9fc07", JoinedView, "mem", 0x9FBF8, 16),
        ("phys/u64/800200000", FixedView, "mem", 0x800200000, 0xFFE00000),
    ],
)
def test_a_file_opens_as_its_view_of_just_its_bytes(tree, tmp_path, path, kind, file, start, size):
    view = tree.open(find(tree, path), writable=True)
    assert kind_of(view) is kind
    width = VIEWS[path.split("/")[-2]].width if "/u" in path else 2
    around = behind(tmp_path, file, start - 1, 1) if start else b""
    for offset in {0, size // 2 // width * width, size - width} if size >= width else {0}:
        data = bytes((offset + at) & 0xFF | 1 for at in range(min(width, size)))
        assert view.write(offset, data) == len(data)
        assert behind(tmp_path, file, start + offset, len(data)) == data
        assert view.read(offset, len(data)) == data
    if start:
        assert behind(tmp_path, file, start - 1, 1) == around
    assert view.read(size, width) == b""
    with pytest.raises(PastEnd):
        view.write(size, bytes(width))
    view.close()


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize(
    ("directory", "name", "file", "start"),
    [
        *((BARS, "bar0", BAR0, 0), (BARS, "bar0@40", BAR0, 0x40), (BARS, "bar0@f8+8", BAR0, 0xF8)),
        *((BARS, "bar2@ffff8", BAR2, 0xFFFF8), (NVME, "bar0@8-f", NVME_BAR, 8)),
        *((PORTS, "bar1", PORT_BAR, 0), (PORTS, "bar1@38", PORT_BAR, 0x38)),
        *(("phys", "1e10288", "mem", 0x1E10288), ("phys", "9fbf8+10", "mem", 0x9FBF8)),
    ],
)
def test_a_text_file_is_the_register_at_its_start(
    tree, tmp_path, bits, directory, name, file, start
):
    node = find(tree, f"{directory}/x{bits}/{name}")
    if bits == 64 and directory == PORTS:
        with pytest.raises(BadRequest):
            tree.open(node, writable=True)
        return
    view = tree.open(node, writable=True)
    assert kind_of(view) is TextView
    before = behind(tmp_path, file, start, 16)
    value = 0x8182838485868788 >> 64 - bits
    line = f"{value:#x}\n".encode()
    assert view.write(0, line) == len(line)
    written = value.to_bytes(bits // 8, sys.byteorder)
    assert behind(tmp_path, file, start, 16) == written + before[bits // 8 :]
    assert view.read(0, 4096) == line
    view.close()


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"{PORTS}/{name}"
            for name in ("u64/bar1", "u64/bar1@8", "u64/bar1@8+8", "u64/bar1@0-3f")
        ),
        *(f"{PORTS}/{name}" for name in ("x64/bar1", "x64/bar1@8", "x64/bar1@8+8")),
        *(f"{PORTS}/{name}" for name in ("u16/bar1@1", "u32/bar1@2+4", "x16/bar1@3", "x32/bar1@2")),
        *(f"{BARS}/{name}" for name in ("u16/bar0@41", "u16/bar0@41+2", "u32/bar0@42-45")),
        *(f"{BARS}/{name}" for name in ("u64/bar0@44", "u64/bar2@ffc", "u32/bar2@1")),
        *(f"{BARS}/{name}" for name in ("x16/bar0@41", "x32/bar0@42", "x64/bar0@44", "x64/bar2@4")),
        # No room for one register.
        *(f"{BARS}/{name}" for name in ("x16/bar0@ff", "x32/bar0@40+3", "x64/bar0@40-46")),
        *(f"{PORTS}/{name}" for name in ("x32/bar1@3f", "x16/bar1@3e+1")),
        *("phys/u16/1001+2", "phys/u32/1002+4", "phys/u64/1004", "phys/u64/9fbfc+8"),
        *("phys/x16/1001", "phys/x32/1002", "phys/x64/1e10284", "phys/x64/9fbfc"),
        *("phys/x32/9fffd", "phys/x64/8ffffffff", "phys/x16/fff+1"),
    ],
)
def test_a_width_that_does_not_fit_is_refused_and_leaves_nothing_open(tree, path):
    node = find(tree, path)
    for writable in (False, True):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(BadRequest) as caught:
            tree.open(node, writable=writable)
        assert caught.value.errno == errno.EINVAL
        assert str(caught.value).startswith(f"{tree.path(node)}: ")
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("path", ["u32/2000+8", "u64/2000+8", "x32/2000+4", "x64/2000+8"])
def test_a_register_half_in_system_ram_is_refused_and_leaves_nothing_open(tree, tmp_path, path):
    iomem = "00001000-00002001 : System RAM\n00002002-00002fff : Reserved\n"
    (tmp_path / "proc/iomem").write_text(iomem)
    with pytest.raises(BadRequest, match="0x2002"):
        tree.open(find(tree, f"phys/{path}"), writable=True)
    assert str(tmp_path / "mem") not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("phys/u32/1004+8", [[("load", 0, 4), ("load", 4, 4)]]),
        ("phys/u8/1004+2", [[("load", 0, 1), ("load", 1, 1)]]),
        ("phys/u64/1008+10", [[("load", 0, 8), ("load", 8, 8)]]),
        ("phys/x32/1004", [[("load", 0, 4)]]),
        ("phys/x16/9fbfe", [[("load", 0, 2)]]),
        ("phys/1004+8", [[("copy_out", 0, 8)]]),
        ("phys/u32/9fbfc+8", [[("load", 0, 4)], [("load", 0, 4)]]),
        ("phys/9fbfc+8", [[("copy_out", 0, 4)], [("load", 0, 4)]]),
    ],
)
def test_system_ram_is_copied_in_raw_files_and_accessed_in_the_width_of_others(
    tree, monkeypatch, path, made
):
    parts = []

    def recorded(path, start, size, *, base, memory_like, **rest):
        parts.append(Recorder(size, base=base, memory_like=memory_like))
        return parts[-1]

    monkeypatch.setattr(devmem, "MappedAperture", recorded)
    view = tree.open(find(tree, path), writable=True)
    view.read(0, 4096)
    assert [part.made for part in parts] == made
    view.close()
    assert [part.closed for part in parts] == [1] * len(parts)


def files(tree, directory=ROOT):
    """All but those of registers, which are named after maps."""
    for name, node in tree.entries(directory):
        if name in {"regs", "decode"}:
            continue
        if node.kind.type is Type.DIRECTORY:
            yield from files(tree, node)
        elif node.kind.type is Type.FILE:
            yield name, node


class Watch:
    """A presence that ends when it is told, and notes how often it was asked."""

    def __init__(self):
        self.there, self.checks, self.closed = True, 0, 0

    def check(self):
        self.checks += 1
        if not self.there:
            raise DeviceGone("gone")

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("kind", [RawView, FixedView, TextView])
def test_a_guarded_view_asks_before_each_request_and_touches_nothing_that_is_gone(kind):
    aperture, watch = Recorder(4), Watch()
    inner = kind(aperture) if kind is RawView else kind(aperture, 4)
    held = contextlib.ExitStack()
    held.callback(watch.close)
    view = GuardedView(inner, [Guard(0, 1 << 40, watch)], held)
    text = b"0x2a2a2a2a\n" if kind is TextView else b"****"
    assert view.write(0, text) == len(text)
    assert view.read(0, 4096) == text
    assert (aperture.made, watch.checks) == ([("store", 0, 4), ("load", 0, 4)], 2)
    watch.there = False
    for request in (lambda: view.read(0, 4), lambda: view.read(2, 4), lambda: view.write(0, text)):
        with pytest.raises(DeviceGone) as caught:
            request()
        assert caught.value.errno == errno.ENODEV
    assert len(aperture.made) == 2
    view.close()
    assert (aperture.closed, watch.closed) == (1, 1)


@pytest.mark.parametrize(
    "name", ["bar0", "bar0@40", "bar2", "u32/bar0@40+4", "x32/bar0@40", "x8/bar2"]
)
@pytest.mark.parametrize("replaced", [False, True])
def test_an_open_bar_is_given_up_when_its_device_goes_whatever_comes_after(
    tree, tmp_path, name, replaced
):
    view = tree.open(find(tree, f"{BARS}/{name}"), writable=True)
    assert view.write(0, b"1\0\0\0" if name[0] != "x" else b"1") > 0
    device = tmp_path / "sys/bus/pci/devices" / str(IVSHMEM)
    shutil.rmtree(device)
    if replaced:
        shutil.copytree(device.with_name("0000:00:05.0"), device)
    for request in (lambda: view.read(0, 4), lambda: view.write(0, b"1")):
        with pytest.raises(DeviceGone, match=str(IVSHMEM)):
            request()
    view.close()
    if replaced:
        assert not any((device / "resource0").read_bytes() + (device / "resource2").read_bytes())


def test_every_listed_file_opens_as_its_kind_says_and_closes(tree, machine):
    texts = dict.fromkeys((INFO, STATUS), SnapshotView)
    kinds = {CONFIG: ConfigView, ROM: RomView, LOG: OpenLog, **texts}
    seen = set()
    for name, node in files(tree):
        ports = machine.pci.bars(node.address) if node.kind is BAR else {}
        if ports and not ports[node.bar].is_memory and node.view in {VIEWS["u64"], VIEWS["x64"]}:
            with pytest.raises(BadRequest):
                tree.open(node, writable=False)
            continue
        for writable in (False, True):
            if writable and not node.kind.writable:
                continue
            view = tree.open(node, writable=writable)
            fixed = FixedView if node.view.is_fixed else RawView
            if name == "00001000-0009fbff":  # RAM that ends inside a page
                fixed = JoinedView
            assert kind_of(view) is kinds.get(node.kind, TextView if node.view.is_text else fixed)
            if node.view.is_text:
                assert len(view.read(0, 4096)) == tree.attributes(node).size
            elif node.kind not in {LOG, *texts}:
                assert view.read(tree.attributes(node).size, 8) == b""
                assert len(view.read(0, 8)) == 8
            view.close()
        seen.add((node.kind, node.view))
    assert {kind for kind, _ in seen} == {
        *(CONFIG, RANGE, BAR, ROM, LOG, *texts),
    }
    assert {view for _, view in seen} == {0, *VIEWS.values()}


@pytest.mark.parametrize("path", [f"{PORTS}/rom", f"{PORTS}/info", f"{BARS}/info", "status"])
def test_what_is_read_only(tree, path):
    with pytest.raises(OnlyRead, match=re.escape(f"{path} is read-only")) as caught:
        tree.open(find(tree, path), writable=True)
    assert caught.value.errno == errno.EACCES


def test_the_log_is_not_written_and_makes_no_accesses(tree):
    view = tree.open(Node(LOG), writable=False)
    with pytest.raises(OnlyRead, match="write of 0x3 bytes at 0x10") as caught:
        view.write(16, b"abc")
    assert caught.value.errno == errno.EACCES
    assert len(view.reach(0, 131072, writing=False)) == 0
    assert view.width_at(0, 4) is None
    view.close()
    with pytest.raises(OnlyRead, match=r"^log is read-only$"):
        tree.open(Node(LOG), writable=True)


def test_the_rom_is_read_to_its_end(tree, tmp_path):
    view = tree.open(find(tree, f"{PORTS}/rom"), writable=False)
    whole = behind(tmp_path, "0000:00:03.0/rom", 0, 1 << 20)
    assert view.read(0, 1 << 20) == whole
    assert view.read(0x1C, 4) == b"PCIR"
    assert view.read(len(whole) - 2, 8) == whole[-2:]
    assert view.read(len(whole), 8) == view.read(1 << 40, 8) == b""
    view.close()
    assert behind(tmp_path, "0000:00:03.0/rom", 0, 1 << 20) == whole


def test_status_stays_as_it_was_when_it_was_opened(tree, tmp_path):
    view = tree.open(find(tree, "status"), writable=False)
    before = view.read(0, 1 << 16)
    assert b"\nok       0000:00:04.0  D0; bar0, bar2 decoded; no driver\n" in before
    shutil.rmtree(tmp_path / "sys/bus/pci/devices" / str(IVSHMEM))
    assert view.read(0, 1 << 16) == before
    view.close()
    again = tree.open(find(tree, "status"), writable=False)
    assert b"0000:00:04.0" not in again.read(0, 1 << 16)
    again.close()


def test_info_stays_as_it_was_when_it_was_opened(tree, tmp_path):
    view = tree.open(find(tree, f"{BARS}/info"), writable=False)
    before = view.read(0, 1 << 16)
    assert str(IVSHMEM).encode() in before
    shutil.rmtree(tmp_path / "sys/bus/pci/devices" / str(IVSHMEM))
    assert view.read(0, 1 << 16) == before
    view.close()
    with pytest.raises(BarfsError):
        tree.open(Node(INFO, IVSHMEM), writable=False)


def test_directories_and_links_are_no_files(tree):
    for view in (0, *VIEWS.values()):
        for directory in (ROOT, PCI, PHYS, Node(FUNCTION, IVSHMEM), Node(LINK, IVSHMEM)):
            for writable in (False, True):
                with pytest.raises(BarfsError):
                    tree.open(directory._replace(view=view), writable=writable)
            with pytest.raises(BadRequest, match="is not a file"):
                tree.open(directory, writable=False)


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        *(("phys/feb20000-feb200ff", True), ("phys/u32/feb20000+100", True)),
        *(("phys/c0000000-febfffff", True), ("phys/feb200fe+4", True), ("phys/fea00000", True)),
        *(("phys/x32/feb20040", True), ("phys/feb21000+100", False), ("phys/feb20100+10", False)),
        # A text view opens only its register, though the name means everything up to the end.
        *(("phys/x32/feb1fffc", False), ("phys/x64/feb20100", False)),
        *(("pci/0000:00:04.0/x32/bar0@8", True), ("pci/0000:00:04.0/config", True)),
        *(("pci/0000:00:04.0/bar2@8+4", True), ("pci/0000:00:05.0/bar0", False)),
    ],
)
def test_what_is_read_only_is_so_by_every_way(paths, path, refused):
    rules = Rules(read_only=(DevicePattern.parse("0000:00:04.0"),))
    tree = tree_of(machine_of(paths, rules=rules))
    node = find(tree, path)
    tree.open(node, writable=False).close()
    if not refused:
        tree.open(node, writable=True).close()
        return
    with pytest.raises(ReadOnly, match=r"0000:00:04\.0 is read-only in this mount") as caught:
        tree.open(node, writable=True)
    assert caught.value.errno == errno.EROFS


def test_what_is_read_only_is_not_enabled_either(paths, tmp_path):
    rules = Rules(read_only=(DevicePattern.parse("0000:00:04.0"),))
    machine = machine_of(paths, rules=rules)
    tree = tree_of(machine, decoder=Decoder(machine.pci))
    devices = tmp_path / "sys/bus/pci/devices"
    for slot in (4, 5):
        with (devices / f"0000:00:0{slot}.0/config").open("r+b") as config:
            config.seek(4)
            config.write(bytes(2))
    before = (devices / str(IVSHMEM) / "config").read_bytes()
    for path in ("bar0", "bar2", "u32/bar0", "x32/bar0@8"):
        with pytest.raises(NotDecoded):
            tree.open(find(tree, f"pci/{IVSHMEM}/{path}"), writable=False)
    assert (devices / str(IVSHMEM) / "config").read_bytes() == before
    assert (devices / str(IVSHMEM) / "enable").read_text() == "0\n"
    tree.open(find(tree, "pci/0000:00:05.0/bar0"), writable=True).close()


def test_physical_memory_of_a_device_that_is_not_allowed_goes_with_it_too(paths, tmp_path):
    rules = Rules(allow=(DevicePattern.parse("8086:*"),))
    tree = tree_of(machine_of(paths, rules=rules))
    view = tree.open(find(tree, "phys/feb20000+4"), writable=False)
    assert view.read(0, 4) == bytes(4)
    shutil.rmtree(tmp_path / "sys/bus/pci/devices" / str(IVSHMEM))
    with pytest.raises(DeviceGone):
        view.read(0, 4)
    view.close()


NEWCOMER = PciAddress(0, 0, 6, 0)


@pytest.mark.parametrize("name", ["phys/{}+1000", "phys/u32/{}+1000", "phys/x32/{}"])
def test_a_device_that_comes_to_lie_in_an_open_range_is_not_reached(paths, name, monkeypatch):
    """A rule may protect it. The kernel had nothing there when the file was opened."""
    monkeypatch.setattr(guards, "BELIEVED", 0)
    rules = Rules(read_only=(DevicePattern.parse(str(NEWCOMER)),))
    tree = tree_of(machine_of(paths, rules=rules))
    devices, iomem = paths.sysfs / "bus/pci/devices", paths.proc / "iomem"
    place = "feb50000"
    node = find(tree, name.format(place))
    views = [tree.open(node, writable=True) for _ in range(2)]
    word = b"1" if "x32" in name else bytes(4)
    assert views[0].write(0, word) == len(word)
    shutil.copytree(devices / str(IVSHMEM), devices / str(NEWCOMER))
    claim = f"  {place}-{place[:-3]}0ff : {NEWCOMER}"
    iomem.write_text(f"{iomem.read_text()}{claim}\n")
    for _ in range(2):
        with pytest.raises(DeviceGone, match="other devices lie there"):
            views[0].write(0, word)
    with pytest.raises(DeviceGone, match="other devices lie there"):
        views[1].read(0, 100)
    for view in views:
        view.close()
