"""Apertures over plain files: each system call that they make, the windows, the errors."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from barfs.access import apertures
from barfs.access.apertures import GLANCE, WINDOW, CopiedAperture, MappedAperture, PortAperture
from barfs.access.files import PAGE_SIZE, RomFile, SysfsFile
from barfs.errors import (
    AccessFault,
    BarfsError,
    CachingConflict,
    DeviceGone,
    KernelRefused,
    NotAllowed,
    ReadOnly,
    TooManyFiles,
)
from barfs.machine.presence import Presence

SIZE = 0x400
CONTENTS = bytes((at * 7 + (at >> 8)) & 0xFF for at in range(SIZE))


class Calls(list):
    """Reads and writes of files, each with its offset and what is written or the length to read.

    At most `most` bytes are done at once; from call number `fails` on they fail with `code`.
    """

    most = 1 << 62
    fails = 1 << 62
    code = 0

    def note(self, name, what, offset):
        self.append((name, what, offset))
        if len(self) > self.fails:
            raise OSError(self.code, os.strerror(self.code))

    def preadv(self, fd, buffers, offset, real=os.preadv):
        (buffer,) = buffers
        self.note("read", len(buffer), offset)
        return real(fd, [buffer[: self.most]], offset)

    def pwritev(self, fd, buffers, offset, real=os.pwritev):
        (buffer,) = buffers
        self.note("write", bytes(buffer), offset)
        return real(fd, [buffer[: self.most]], offset)

    def pread(self, fd, length, offset, real=os.pread):
        self.note("read", length, offset)
        return real(fd, min(length, self.most), offset)

    def pwrite(self, fd, data, offset, real=os.pwrite):
        self.note("write", bytes(data), offset)
        return real(fd, data[: self.most], offset)


@pytest.fixture
def calls(monkeypatch):
    made = Calls()
    for name in ("preadv", "pwritev", "pread", "pwrite"):
        monkeypatch.setattr(os, name, getattr(made, name))
    return made


@pytest.fixture(autouse=True)
def nothing_stays_open():
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENTS)
    return path


@pytest.fixture
def opened(file):
    """Makes apertures over the file, and closes them at the end."""
    made = []

    def make(kind, *arguments, **keywords):
        keywords = {"what": "it", "writable": True, **keywords}
        made.append(kind(file, *arguments, **keywords))
        return made[-1]

    yield make
    for one in made:
        one.close()


# Ports


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize(
    ("offset", "times", "start"), [(0, 1, 0), (8, 1, 0), (4, 5, 0), (0, 16, 0x40), (12, 3, 0x44)]
)
def test_each_access_to_ports_is_a_call_of_its_width(
    opened, file, calls, width, offset, times, start
):
    ports = opened(PortAperture, start, 0x80, base=0xC000 + start)
    length = width * times
    places = range(start + offset, start + offset + length, width)
    for whole in (bytearray(length), memoryview(bytearray(length + 8))[4:-4]):
        ports.load_run(offset, width, whole)
        assert whole == CONTENTS[start + offset : start + offset + length]
        assert calls == [("read", width, at) for at in places]
        calls.clear()
    data = bytes(0xFF - at for at in range(length))
    ports.store_run(offset, width, data)
    assert calls == [("write", data[at - start - offset :][:width], at) for at in places]
    before, after = CONTENTS[: start + offset], CONTENTS[start + offset + length :]
    assert file.read_bytes() == before + data + after


def test_ports_are_copied_byte_by_byte_and_opening_makes_no_call(opened, calls):
    ports = opened(PortAperture, 0x10, 0x40, base=0xC010)
    assert calls == []
    assert (ports.size, ports.base, ports.max_width, ports.memory_like) == (0x40, 0xC010, 4, False)
    ports.copy_out(3, bytearray(4))
    ports.copy_in(5, b"ab")
    reads = [("read", 1, 0x13 + at) for at in range(4)]
    assert calls == [*reads, ("write", b"a", 0x15), ("write", b"b", 0x16)]


@pytest.mark.parametrize(
    ("end", "width", "length", "reads"),
    [(0x40, 4, 4, 1), (0x48, 4, 16, 3), (0x46, 4, 8, 2), (0x41, 2, 2, 1), (0x42, 1, 8, 3)],
)
def test_a_short_read_of_ports_is_a_fault_and_ends_the_run(
    opened, file, calls, end, width, length, reads
):
    os.truncate(file, end)
    ports = opened(PortAperture, 0x20, 0x40, base=0xC000)
    with pytest.raises(
        AccessFault, match=f"^it: read of {width} bytes at {end - 0x20 & -width:#x}"
    ) as caught:
        ports.load_run(0x20, width, bytearray(length))
    assert caught.value.errno == errno.EIO
    assert calls == [("read", width, 0x40 + at * width) for at in range(reads)]


def test_a_short_write_of_ports_is_a_fault_and_ends_the_run(opened, calls):
    ports = opened(PortAperture, 0x20, 0x40, base=0xC000)
    calls.most = 3
    ports.store_run(0, 2, b"abcd")
    with pytest.raises(AccessFault, match=r"^it: write of 4 bytes at 0x8: .* 3$") as caught:
        ports.store_run(8, 4, b"abcdefgh")
    assert caught.value.errno == errno.EIO
    assert calls[2:] == [("write", b"abcd", 0x28)]


# Errors of system calls

MEANINGS = [
    *((errno.EPERM, KernelRefused), (errno.EACCES, NotAllowed), (errno.EROFS, ReadOnly)),
    *((errno.ENODEV, DeviceGone), (errno.ENXIO, DeviceGone), (errno.ENOENT, DeviceGone)),
    *((errno.EINVAL, BarfsError), (errno.EIO, BarfsError), (errno.EFAULT, BarfsError)),
]
RESULTS = {DeviceGone: errno.ENODEV}


@pytest.mark.parametrize(
    ("code", "kind"), MEANINGS, ids=[errno.errorcode[code] for code, _ in MEANINGS]
)
@pytest.mark.parametrize(
    ("make", "request_", "verb"),
    [
        *((lambda opened: opened(PortAperture, 0, 64, base=0), ask, verb) for ask, verb in (
            (lambda one: one.load_run(8, 4, bytearray(8)), "read of 4 bytes at 0xc"),
            (lambda one: one.store_run(8, 4, bytes(8)), "write of 4 bytes at 0xc"),
        )),
        *((lambda opened: opened(CopiedAperture, 0x40, 64), ask, verb) for ask, verb in (
            (lambda one: one.copy_out(8, bytearray(8)), "read at 0xc"),
            (lambda one: one.copy_in(8, bytes(8)), "write at 0xc"),
        )),
        (lambda opened: opened(SysfsFile), lambda one: one.read(8, 8), "read of 0x4 bytes at 0xc"),
    ],
)  # fmt: skip
def test_the_second_call_fails(opened, calls, code, kind, make, request_, verb):
    one = make(opened)
    calls.most, calls.fails, calls.code = 4, 1, code
    with pytest.raises(kind, match=f"^it: {verb}: {os.strerror(code)}") as caught:
        request_(one)
    assert type(caught.value) is kind
    assert caught.value.errno == RESULTS.get(kind, code)
    assert caught.value.__cause__.errno == code
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("code", "kind"), MEANINGS, ids=[errno.errorcode[code] for code, _ in MEANINGS]
)
def test_a_write_to_a_sysfs_file_fails(opened, calls, code, kind):
    file = opened(SysfsFile)
    calls.fails, calls.code = 0, code
    with pytest.raises(
        kind, match=f"^it: write of 0x3 bytes at 0x5: {os.strerror(code)}"
    ) as caught:
        file.write(5, b"abc")
    assert caught.value.errno == RESULTS.get(kind, code)


APERTURES = {
    "mapped": lambda path: MappedAperture(
        path, 0, 8, what="it", base=0, memory_like=False, writable=True
    ),
    "copied": lambda path: CopiedAperture(path, 0, 8, what="it", writable=True),
    "ports": lambda path: PortAperture(path, 0, 8, what="it", base=0, writable=True),
    "sysfs": lambda path: SysfsFile(path, what="it", writable=True),
    "rom": lambda path: RomFile(path, what="it", writable=True),
}


@pytest.mark.parametrize("make", APERTURES.values(), ids=APERTURES)
def test_what_cannot_be_opened_says_why(file, make):
    for path, kind, code in (
        (file.parent / "none", DeviceGone, errno.ENODEV),
        (file / "below", BarfsError, errno.ENOTDIR),
        (file.parent, BarfsError, errno.EISDIR),
    ):
        with pytest.raises(kind, match=f"^it: {path}: ") as caught:
            make(path)
        assert type(caught.value) is kind
        assert caught.value.errno == code


@pytest.mark.parametrize("make", APERTURES.values(), ids=APERTURES)
def test_a_file_is_kept_from_programs_that_are_started(file, make):
    one = make(file)
    links = {fd: os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    (new,) = (int(fd) for fd, target in links.items() if target == str(file))
    assert not os.get_inheritable(new)
    one.close()


# Memory that the kernel copies


@pytest.mark.parametrize("most", [1 << 62, 3, 1])
def test_copied_memory_round_trips_in_whatever_pieces_the_kernel_makes(opened, file, calls, most):
    memory = opened(CopiedAperture, 0x80, 0x100)
    assert (memory.base, memory.size, memory.memory_like) == (0x80, 0x100, True)
    calls.most = most
    after = bytearray(CONTENTS)
    for offset, length in ((0, 0x100), (0, 1), (5, 10), (0xFF, 1), (0x80, 0)):
        for read in (memory.copy_out, lambda at, into: memory.load_run(at, 1, into)):
            read(offset, data := bytearray(length))
            assert data == after[0x80 + offset : 0x80 + offset + length]
        for write in (memory.copy_in, lambda at, data: memory.store_run(at, 1, data)):
            new = bytes(byte ^ 0x5A for byte in data)
            write(offset, new)
            after[0x80 + offset : 0x80 + offset + length] = data = new
            assert file.read_bytes() == after
    reads = sum(what for name, what, _ in calls if name == "read" and most == 1 << 62)
    assert reads in {0, 2 * (0x100 + 1 + 10 + 1)}


@pytest.mark.parametrize(
    ("offset", "length", "missing"),
    [(0x80, 1, 0x80), (0x7F, 2, 0x80), (0, 0x100, 0x80), (0xFF, 1, 0xFF), (0x78, 9, 0x80)],
)
def test_copied_memory_that_is_not_there_is_an_error_and_not_zeros(opened, offset, length, missing):
    memory = opened(CopiedAperture, SIZE - 0x80, 0x100)
    for read in (memory.copy_out, lambda at, into: memory.load_run(at, 1, into)):
        with pytest.raises(AccessFault, match=f"^it: read at {missing:#x}: nothing") as caught:
            read(offset, bytearray(length))
        assert caught.value.errno == errno.EIO


# Sysfs files


@pytest.fixture
def pages(file):
    """The file with a little more than three pages."""
    contents = bytes((at * 11 + at // PAGE_SIZE) & 0xFF for at in range(3 * PAGE_SIZE + 5))
    file.write_bytes(contents)
    return contents


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        *((0, 0), (0, 1), (5, PAGE_SIZE), (0, 3 * PAGE_SIZE), (7, 2 * PAGE_SIZE + 1)),
        *((0, 3 * PAGE_SIZE + 5), (0, 1 << 20), (3 * PAGE_SIZE, 5), (3 * PAGE_SIZE + 5, 8)),
        *((3 * PAGE_SIZE + 4, 8), (1 << 40, 8)),
    ],
)
def test_a_sysfs_file_is_read_a_page_at_a_time(opened, pages, calls, offset, length):
    file = opened(SysfsFile)
    assert file.size == len(pages)
    calls.most = PAGE_SIZE
    assert file.read(offset, length) == pages[offset : offset + length]
    expected, at, rest = [], offset, length
    while rest:
        expected.append(("read", rest, at))
        got = min(rest, PAGE_SIZE, max(0, len(pages) - at))
        if not got:
            break
        at, rest = at + got, rest - got
    assert calls == expected


def test_a_sysfs_file_is_written_in_one_call(opened, file, calls):
    sysfs = opened(SysfsFile)
    assert sysfs.write(4, b"abcd") == 4
    calls.most = 2
    assert sysfs.write(0x10, b"efgh") == 2
    assert calls == [("write", b"abcd", 4), ("write", b"efgh", 0x10)]
    expected = CONTENTS[:4] + b"abcd" + CONTENTS[8:0x10] + b"ef" + CONTENTS[0x12:]
    assert file.read_bytes() == expected


ON, OFF = ("write", b"1", 0), ("write", b"0\n", 0)


def test_a_rom_is_enabled_before_and_disabled_after_each_read(opened, pages, calls):
    rom = opened(RomFile)
    assert (calls, rom.size) == ([], len(pages))
    calls.most = PAGE_SIZE
    length = len(pages) - 2
    assert rom.read(2, length) == pages[2:]
    reads = [("read", length - at, 2 + at) for at in range(0, length, PAGE_SIZE)]
    assert len(reads) == 4
    assert calls == [ON, *reads, OFF]
    calls.clear()
    assert rom.read(PAGE_SIZE, 3) == pages[PAGE_SIZE:][:3]
    assert rom.read(len(pages), 3) == b""
    assert calls == [
        *(ON, ("read", 3, PAGE_SIZE), OFF),
        *(ON, ("read", 3, len(pages)), OFF),
    ]


def test_a_rom_is_disabled_also_when_the_read_fails(file, monkeypatch):
    made = []

    def pread(fd, length, offset):
        made.append(("read", length, offset))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def pwrite(fd, data, offset):
        made.append(("write", data, offset))
        return len(data)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(os, "pwrite", pwrite)
    rom = RomFile(file, what="it", writable=True)
    for _ in range(2):
        with pytest.raises(BarfsError, match=r"^it: read of 0x8 bytes at 0x10: ") as caught:
            rom.read(0x10, 8)
        assert caught.value.errno == errno.EIO
    assert made == [ON, ("read", 8, 0x10), OFF] * 2
    rom.close()


def test_a_rom_that_cannot_be_enabled_is_not_read(opened, calls):
    rom = opened(RomFile)
    calls.fails, calls.code = 0, errno.EPERM
    with pytest.raises(KernelRefused):
        rom.read(0, 8)
    assert [call for call in calls if call not in {ON, OFF}] == []
    assert calls[0] == ON


# Windows of mappings

SPARSE = 2 * WINDOW + 0x3456


@pytest.fixture
def sparse(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as made:
        made.truncate(0x1234 + SPARSE)
    return path


def mapped(path):
    """The lengths of the mappings of a file."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            start, end = line.split()[0].split("-")
            found.append(int(end, 16) - int(start, 16))
    return found


def open_mapped(path, start=0, size=SPARSE, **keywords):
    keywords = {"what": "it", "base": start, "memory_like": True, "writable": True, **keywords}
    return MappedAperture(path, start, size, **keywords)


@pytest.mark.parametrize("start", [0, PAGE_SIZE, 0x1234])
def test_windows_follow_the_requests_to_both_sides_of_a_border_and_across(sparse, start):
    span = open_mapped(sparse, start)
    borders = (WINDOW, 2 * WINDOW)
    places = [(0, 8), (SPARSE - 8, 8), (SPARSE - 1, 1), (0, 1)]
    for border in borders:
        places += [(border - 8, 8), (border, 8), (border - 4, 8), (border - 1, 2), (border - 9, 18)]
        places += [(border - PAGE_SIZE, 2 * PAGE_SIZE), (border + 4, 4), (border - 16, 4)]
    for step, (offset, length) in enumerate([*places, *reversed(places)]):
        data = bytes((step * 17 + at) & 0xFF | 1 for at in range(length))
        width = 4 if (start + offset) % 4 == length % 4 == 0 else 1
        for write, read in (
            (span.copy_in, span.copy_out),
            (
                lambda at, data, width=width: span.store_run(at, width, data),
                lambda at, into, width=width: span.load_run(at, width, into),
            ),
        ):
            write(offset, data)
            assert on_disk(sparse, start + offset, length) == data
            read(offset, got := bytearray(length))
            assert got == data
            data = data[::-1]
        (extent,) = mapped(sparse)  # one window at a time, and not much longer than WINDOW
        assert extent <= WINDOW + length + 2 * PAGE_SIZE
    span.close()
    assert mapped(sparse) == []


def on_disk(path, offset, length):
    with path.open("rb") as opened:
        opened.seek(offset)
        return opened.read(length)


def test_a_request_in_the_window_maps_nothing_anew(sparse, monkeypatch):
    asked = recorded_spans(monkeypatch)
    span = open_mapped(sparse)
    assert asked == [(0, GLANCE)]
    for offset in (0, 8, GLANCE - 8):
        span.load_run(offset, 8, bytearray(8))
    assert asked == [(0, GLANCE)]
    for offset in (GLANCE, WINDOW - 8):
        span.load_run(offset, 8, bytearray(8))
    assert asked[1:] == [(0, WINDOW)]
    span.load_run(WINDOW - 4, 4, bytearray(8))
    assert asked[2:] == [(0, WINDOW + 4)]
    span.load_run(WINDOW, 4, bytearray(4))
    assert asked[3:] == []
    span.load_run(WINDOW + 4, 4, bytearray(4))
    assert asked[3:] == [(WINDOW, GLANCE)]
    span.load_run(WINDOW + GLANCE - 4, 4, bytearray(8))
    assert asked[4:] == [(WINDOW, WINDOW)]
    span.load_run(SPARSE - 2, 2, bytearray(2))
    assert asked[5:] == [(2 * WINDOW, SPARSE - 2 * WINDOW)]
    span.close()


def test_looks_here_and_there_map_little(tmp_path, monkeypatch):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(64 << 30)
    asked = recorded_spans(monkeypatch)
    span = open_mapped(path, size=64 << 30)
    for place in range(1000, 0, -7):
        span.copy_out(place * WINDOW + 0x123 * place, bytearray(place))
    assert len(asked) == 144
    assert {length for _, length in asked} == {GLANCE}
    span.copy_out((1 << 30) - 5, bytearray(GLANCE))  # across a border, and more than a glance
    assert asked[144:] == [((1 << 30) - GLANCE, 2 * GLANCE - 5)]
    span.close()


def test_a_small_span_is_mapped_whole_and_no_further(sparse, monkeypatch):
    asked = recorded_spans(monkeypatch)
    span = open_mapped(sparse, 0x1010, 0x20)
    span.copy_out(0, bytearray(0x20))
    assert asked == [(0x1010, 0x20)]
    span.close()


# Many windows

PAGE_TABLES = """
import re, sys
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from barfs.access import apertures
from barfs.access.apertures import GLANCE, WINDOW, MappedAperture

_, hard = getrlimit(RLIMIT_NOFILE)
setrlimit(RLIMIT_NOFILE, (hard, hard))
path, many = Path(sys.argv[1]), min(3300, hard - 200)

def held():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmPTE:\\s+(\\d+) kB", status)[1])

before, spans = held(), []
for number in range(many):
    # Windows of different names begin at different places.
    span = MappedAperture(
        path, 4 * number, 2 * WINDOW, what="it", base=0, memory_like=False, writable=True
    )
    for offset in (0, 8 << 20, 16 << 20):
        data = bytearray(4)
        span.store_run(offset, 4, number.to_bytes(4, "little"))
        span.load_run(offset, 4, data)
        assert int.from_bytes(data, "little") == number
    spans.append(span)
assert held() - before < 16 << 10, held() - before
for number, span in enumerate(spans):
    # Those that are mapped no longer are mapped anew.
    span.load_run(8 << 20, 4, data)
    assert int.from_bytes(data, "little") == number
assert held() - before < 16 << 10, held() - before
assert len(apertures._WINDOWS._lengths) <= apertures.MOST_WINDOWS
for span in spans:
    span.close()
assert apertures._WINDOWS._total == len(apertures._WINDOWS._lengths) == 0
assert str(path) not in Path("/proc/self/maps").read_text()
print(many)
"""


def test_thousands_of_open_files_share_a_few_page_tables(tmp_path):
    """Each that has been looked into at three places took 12 KiB of them; of a device, 128."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(4 * WINDOW)
    done = run_python(PAGE_TABLES, path)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 1000


def test_beyond_some_windows_new_ones_are_short_and_the_oldest_goes(sparse, monkeypatch):
    monkeypatch.setattr(apertures, "LONG_WINDOWS", 2)
    monkeypatch.setattr(apertures, "MOST_WINDOWS", 3)
    first, *others = [open_mapped(sparse) for _ in range(3)]
    for span in (first, *others):
        span.copy_out(2 * GLANCE, bytearray(8))
    assert mapped(sparse) == [GLANCE] * 3
    others[0].close()
    others[1].close()
    first.copy_out(4 * GLANCE, bytearray(8))
    assert mapped(sparse) == [WINDOW]
    others = [open_mapped(sparse) for _ in range(3)]
    assert mapped(sparse) == [GLANCE] * 3
    first.copy_in(5 * GLANCE, b"abcdefgh")  # it was given up, and comes back
    first.copy_out(5 * GLANCE, data := bytearray(8))
    assert data == b"abcdefgh"
    assert mapped(sparse) == [GLANCE] * 3
    for span in (first, *others):
        span.close()
    assert mapped(sparse) == []


def test_not_more_than_so_much_is_mapped(sparse, monkeypatch):
    monkeypatch.setattr(apertures, "MOST_MAPPED", WINDOW + GLANCE)
    spans = [open_mapped(sparse) for _ in range(3)]
    for span in spans:
        span.copy_out(2 * GLANCE, bytearray(8))
        assert sum(mapped(sparse)) <= WINDOW + GLANCE
    spans[0].copy_out(WINDOW - 8, bytearray(2 * GLANCE))  # more than there may be is one's own
    for span in spans:
        span.close()
    assert mapped(sparse) == []


@contextlib.contextmanager
def during_a_long_read(path, use):
    """What `use` gives of a span while a thread reads a whole window through it, and the span.

    The read may end too early on a busy machine. Then both are done again.
    """
    for _ in range(100):
        with contextlib.closing(open_mapped(path)) as span:
            data = bytearray(b"\xff") * WINDOW
            thread = threading.Thread(target=span.load_run, args=(0, 1, data))
            thread.start()
            while data[0]:
                assert thread.is_alive()
            seen = use(span)
            is_under_way = bool(data[-1])
            thread.join()
            assert data == bytes(WINDOW)
            if is_under_way:
                yield span, seen
                return
    pytest.fail("each read has ended too early")


def test_a_window_that_is_given_up_stays_mapped_until_its_last_access_ends(sparse, monkeypatch):
    monkeypatch.setattr(apertures, "MOST_WINDOWS", 1)

    def use(_span):
        with contextlib.closing(open_mapped(sparse)):
            return sorted(mapped(sparse))

    with during_a_long_read(sparse, use) as (span, seen):
        assert seen == [GLANCE, WINDOW]
        assert mapped(sparse) == []
        span.copy_out(0, bytearray(4))
    assert mapped(sparse) == []


def test_threads_that_take_each_other_s_windows_each_reach_their_own_bytes(sparse, monkeypatch):
    monkeypatch.setattr(apertures, "MOST_WINDOWS", 2)
    spans = [open_mapped(sparse) for _ in range(4)]
    start = threading.Barrier(4)

    def work(number):
        start.wait()
        for turn in range(300):
            value = bytes([number, turn & 0xFF]) * 8
            at = number * 0x100 + turn % 3 * WINDOW
            spans[number].copy_in(at, value)
            spans[number].load_run(at, 8, data := bytearray(16))
            assert data == value

    in_threads(*(partial(work, number) for number in range(4)))
    assert len(mapped(sparse)) == 2
    for span in spans:
        span.close()
    assert mapped(sparse) == []
    assert apertures._WINDOWS._total == 0


def recorded_spans(monkeypatch, code=0, allowed=1 << 62):
    """Offset and length of each mapping asked for; those longer than allowed fail with `code`."""
    asked = []
    real = apertures._mmio.Span

    def span(fd, offset, length, writable):
        asked.append((offset, length))
        if length > allowed:
            raise OSError(code, os.strerror(code))
        return real(fd, offset, length, writable)

    monkeypatch.setattr(apertures._mmio, "Span", span)
    return asked


@pytest.mark.parametrize("start", [0, 0x1234])
@pytest.mark.parametrize(
    ("offset", "length"),
    [(WINDOW + 8, 4), (WINDOW - 4, 8), (PAGE_SIZE, PAGE_SIZE), (PAGE_SIZE - 1, 2), (SPARSE - 4, 4)],
)
def test_where_a_window_is_refused_exactly_the_pages_of_the_request_are_mapped(
    sparse, monkeypatch, start, offset, length
):
    asked = recorded_spans(monkeypatch, errno.EPERM, allowed=3 * PAGE_SIZE)
    span = open_mapped(sparse, start)
    data = bytes(at & 0xFF | 1 for at in range(length))
    span.copy_in(offset, data)
    assert on_disk(sparse, start + offset, length) == data
    at, extent = asked[-1]
    end = start + SPARSE
    assert at == max(start, (start + offset) // PAGE_SIZE * PAGE_SIZE)
    assert at + extent == min(end, -(-(start + offset + length) // PAGE_SIZE) * PAGE_SIZE)
    before = len(asked)
    span.copy_out(offset, got := bytearray(length))
    assert (got, len(asked)) == (data, before)
    span.close()
    assert mapped(sparse) == []


@pytest.mark.parametrize(
    ("code", "kind", "result"),
    [
        *((errno.EPERM, KernelRefused, errno.EPERM), (errno.ENODEV, DeviceGone, errno.ENODEV)),
        *((errno.ENXIO, DeviceGone, errno.ENODEV), (errno.EACCES, NotAllowed, errno.EACCES)),
        *((errno.ENOMEM, BarfsError, errno.ENOMEM), (errno.EAGAIN, BarfsError, errno.EAGAIN)),
        *((errno.EINVAL, BarfsError, errno.EINVAL), (errno.EOVERFLOW, BarfsError, errno.EOVERFLOW)),
    ],
)
def test_a_refused_mapping_keeps_its_errno_and_the_window_before_it(
    sparse, monkeypatch, code, kind, result
):
    with monkeypatch.context() as patch:
        recorded_spans(patch, code, allowed=0)
        with pytest.raises(kind, match=f"^it: .* at 0x0: {os.strerror(code)}") as caught:
            open_mapped(sparse)
        assert (type(caught.value), caught.value.errno) == (kind, result)
        assert caught.value.__cause__.errno == code
    span = open_mapped(sparse)
    recorded_spans(monkeypatch, code, allowed=0)
    for access in (
        lambda at: span.load_run(at, 4, bytearray(4)),
        lambda at: span.store_run(at, 4, bytes(4)),
        lambda at: span.copy_out(at, bytearray(4)),
        lambda at: span.copy_in(at, bytes(4)),
    ):
        with pytest.raises(kind, match=f"^it: .* at {WINDOW:#x}: {os.strerror(code)}") as caught:
            access(WINDOW)
        assert (type(caught.value), caught.value.errno) == (kind, result)
        access(4)
    span.close()
    assert mapped(sparse) == []


@pytest.mark.parametrize("start", [0, 0x1234])
@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 8 * PAGE_SIZE), (PAGE_SIZE - 8, 16), (0x10, 5 * PAGE_SIZE), (3 * PAGE_SIZE, 0x2000)],
)
@pytest.mark.parametrize("kind", ["run", "copy"])
def test_pages_that_others_have_in_different_caching_types_are_mapped_one_by_one(
    sparse, monkeypatch, start, offset, length, kind
):
    """As x86 has it (arch/x86/mm/pat/memtype.c): a mapping of two types is refused."""
    real, made = apertures._mmio.Span, []

    def span(fd, at, extent, writable):
        pages = range(at // PAGE_SIZE, -(-(at + extent) // PAGE_SIZE))
        if len({page % 2 for page in pages}) != 1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        made.append(pages)
        return real(fd, at, extent, writable)

    monkeypatch.setattr(apertures._mmio, "Span", span)

    def refuse(what, during, error, _):
        return CachingConflict(what=what, during=during, system=error)

    span = open_mapped(sparse, start, refuse=refuse)
    data = bytes((at * 7 + at // PAGE_SIZE) & 0xFF for at in range(length))
    got = bytearray(length)
    made.clear()
    if kind == "run":
        span.store_run(offset, 4, data)
        span.load_run(offset, 4, got)
    else:
        span.copy_in(offset, data)
        span.copy_out(offset, got)
    assert on_disk(sparse, start + offset, length) == data == got
    first = (start + offset) // PAGE_SIZE
    wanted = [
        range(page, page + 1) for page in range(first, -(-(start + offset + length) // PAGE_SIZE))
    ]
    assert made[-len(wanted) :] == wanted
    span.close()
    assert mapped(sparse) == []


def test_a_page_that_can_not_be_mapped_ends_the_request_there(sparse, monkeypatch):
    real = apertures._mmio.Span

    def span(fd, at, extent, writable):
        if at + extent > 2 * PAGE_SIZE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, at, extent, writable)

    monkeypatch.setattr(apertures._mmio, "Span", span)

    def refuse(what, during, error, _):
        return CachingConflict(what=what, during=during, system=error)

    span = open_mapped(sparse, refuse=refuse)
    with pytest.raises(
        CachingConflict, match=f"mapping {PAGE_SIZE:#x} bytes at {2 * PAGE_SIZE:#x}"
    ):
        span.store_run(PAGE_SIZE, 4, b"done" * (2 * PAGE_SIZE // 4))
    assert on_disk(sparse, 0, 3 * PAGE_SIZE) == (
        bytes(PAGE_SIZE) + b"done" * (PAGE_SIZE // 4) + bytes(PAGE_SIZE)
    )
    span.close()


def test_what_a_refusal_means_is_for_the_caller_to_add(sparse, monkeypatch):
    recorded_spans(monkeypatch, errno.EINVAL, allowed=0)
    asked = []

    def refuse(what, during, error, start):
        asked.append((f"{what}: {during}", error.errno, start, during.length))
        return ReadOnly(what=what)

    with pytest.raises(ReadOnly):
        open_mapped(sparse, 0x1234, 0x2000, refuse=refuse)
    # Only the page of the first byte, as the whole was refused before.
    assert asked == [("it: mapping 0xdcc bytes at 0x0", errno.EINVAL, 0x1234, 0xDCC)]


# A program with room for half a window, and at last with room for nothing.
LITTLE_ROOM = """
import json, sys
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_AS, setrlimit
from barfs.access.apertures import GLANCE, WINDOW, MappedAperture
from barfs.access.files import PAGE_SIZE
from barfs.errors import BarfsError

path, start = Path(sys.argv[1]), int(sys.argv[2])
found = []

def note():
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    spans = [line.split()[0].split("-") for line in lines]
    found.append([(int(end, 16) - int(first, 16)) // PAGE_SIZE for first, end in spans])

used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_SIZE
setrlimit(RLIMIT_AS, (used + WINDOW // 2, RLIM_INFINITY))
span = MappedAperture(
    path, start, 4 * WINDOW, what="it", base=start, memory_like=True, writable=True
)
note()
page_end = PAGE_SIZE - start % PAGE_SIZE
for offset, length in (
    (8, 4), (2 * WINDOW, 4), (page_end, PAGE_SIZE),
    (GLANCE + page_end, 4), (2 * GLANCE + page_end - 2, 4), (3 * GLANCE, 1)
):
    data = bytes([len(found)]) * length
    span.copy_in(offset, data)
    span.copy_out(offset, got := bytearray(length))
    assert got == data
    note()
got = bytearray(1)
setrlimit(RLIMIT_AS, (0, RLIM_INFINITY))
try:
    span.copy_out(WINDOW, got)
except BarfsError as error:
    refused = error
finally:
    setrlimit(RLIMIT_AS, (RLIM_INFINITY, RLIM_INFINITY))
found.append([type(refused).__name__, refused.errno])
span.copy_out(WINDOW + PAGE_SIZE, got)
note()
span.close()
note()
print(json.dumps(found))
"""


@pytest.mark.parametrize("start", [0, 0x1234])
def test_with_little_room_only_the_pages_of_each_request_are_mapped(sparse, start):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LITTLE_ROOM, sparse, str(start)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    glance, window = (
        (extent + start % PAGE_SIZE + PAGE_SIZE - 1) // PAGE_SIZE for extent in (GLANCE, WINDOW)
    )
    assert json.loads(done.stdout) == [
        *([glance], [glance], [glance], [glance]),  # opened, and after each look at a new place
        *([1], [2], [1]),  # and where a whole window would have been mapped
        *(["BarfsError", errno.ENOMEM], [window], []),
    ]
    assert on_disk(sparse, start + 2 * WINDOW, 4) == b"\2\2\2\2"


FAULT_OFFSETS = [0x2000, WINDOW - 0x1000, WINDOW + 0x2008, 2 * WINDOW + 0x3000]


def accesses(span, offset):
    """Each kind of access, and how a message names it."""
    return [
        (lambda: span.load_run(offset, 4, bytearray(8)), "read of 4 bytes"),
        (lambda: span.store_run(offset, 8, bytes(8)), "write of 8 bytes"),
        (lambda: span.copy_out(offset, bytearray(8)), "read"),
        (lambda: span.copy_in(offset, bytes(8)), "write"),
    ]


@pytest.mark.parametrize("offset", FAULT_OFFSETS)
@pytest.mark.parametrize("kind", range(4))
def test_a_span_whose_mapping_was_revoked_is_given_up_for_good(sparse, monkeypatch, offset, kind):
    """The file is cut short: what becomes of a mapping whose range a driver claims."""
    span = open_mapped(sparse)
    os.truncate(sparse, 0x1000)
    access, verb = accesses(span, offset)[kind]
    with pytest.raises(DeviceGone, match=f"^it: {verb} at {offset:#x}: its mapping was") as caught:
        access()
    assert caught.value.errno == errno.ENODEV
    # At once, though the exception is still here, and with it the frames that it went through.
    assert mapped(sparse) == []
    os.truncate(sparse, 0x1234 + SPARSE)
    asked = recorded_spans(monkeypatch)
    for at in (0, offset):
        for access, _ in accesses(span, at):
            with pytest.raises(DeviceGone, match=r"^it: its mapping was revoked since"):
                access()
    assert asked == []
    span.close()
    span.close()  # does nothing
    assert mapped(sparse) == []


BUS_MCEERR_AR, SEGV_MAPERR = 4, 1


@pytest.mark.parametrize("offset", FAULT_OFFSETS)
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGBUS, BUS_MCEERR_AR), (signal.SIGSEGV, SEGV_MAPERR)]
)
def test_any_other_fault_is_one_of_that_access(sparse, monkeypatch, offset, signum, code):
    broken = True

    class Span:
        def __init__(self, fd, start, length, writable):
            self.real = real(fd, start, length, writable)

        def __getattr__(self, name):
            def access(at, *arguments):
                if broken:
                    raise apertures._mmio.Fault(at, signum, code)
                getattr(self.real, name)(at, *arguments)

            return access

    real = apertures._mmio.Span
    monkeypatch.setattr(apertures._mmio, "Span", Span)
    span = open_mapped(sparse)
    for access, verb in accesses(span, offset):
        words = f"^it: {verb} at {offset:#x} faulted \\({signum.name}, code {code}"
        with pytest.raises(AccessFault, match=words) as caught:
            access()
        assert caught.value.errno == errno.EIO
    broken = False
    for access, _ in accesses(span, offset):
        access()
    span.close()


# Several threads


def test_a_window_that_is_replaced_stays_mapped_until_its_last_access_ends(sparse):
    def use(span):
        span.copy_in(WINDOW, b"abcd")
        both = sorted(mapped(sparse))
        span.copy_out(WINDOW, data := bytearray(4))
        return both, data

    with during_a_long_read(sparse, use) as (span, seen):
        assert seen == ([GLANCE, WINDOW], b"abcd")
        assert mapped(sparse) == [GLANCE]
        span.close()
        assert mapped(sparse) == []


def test_closing_lets_an_access_end_and_then_unmaps(sparse):
    def use(span):
        span.close()
        return mapped(sparse)

    with during_a_long_read(sparse, use) as (span, seen):
        assert seen == [WINDOW]
        assert mapped(sparse) == []
        for access, _ in accesses(span, 0):
            with pytest.raises(ValueError, match="after it was closed"):
                access()


def in_threads(*works):
    """Run them at once, and raise what one of them raises."""
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result(timeout=60)


def test_threads_that_need_different_windows_each_reach_their_own_bytes(sparse, monkeypatch):
    asked = recorded_spans(monkeypatch)
    span = open_mapped(sparse)
    start = threading.Barrier(4)

    def work(number):
        at = number % 3 * WINDOW + 0x100 * number
        start.wait()
        for turn in range(300):
            value = bytes([number, turn & 0xFF]) * 8
            span.copy_in(at, value)
            # Long enough to let the others in: the engine gives up the GIL in runs.
            span.load_run(at, 8, data := bytearray(16))
            assert data == value

    # It is chance how often they alternate.
    for _ in range(50):
        in_threads(*(partial(work, number) for number in range(4)))
        if len(asked) > 3:
            break
    assert len(asked) > 3
    assert len(mapped(sparse)) == 1
    span.close()
    assert mapped(sparse) == []


def test_of_threads_on_a_revoked_mapping_each_gets_the_error_and_none_dies(tmp_path):
    path = tmp_path / "revoked"
    path.write_bytes(bytes(4 * PAGE_SIZE))
    span = open_mapped(path, 0, 4 * PAGE_SIZE)
    other = open_mapped(path, 0, PAGE_SIZE)
    busy = threading.Barrier(5)

    def read_for_ever(read):
        while True:
            read(0, bytearray(4 * PAGE_SIZE))

    def work(read):
        read(0, bytearray(4 * PAGE_SIZE))
        busy.wait()
        with pytest.raises(DeviceGone) as caught:
            read_for_ever(read)
        assert caught.value.errno == errno.ENODEV

    def revoke():
        busy.wait()
        os.truncate(path, PAGE_SIZE)

    def run(offset, into):
        span.load_run(offset, 4, into)

    in_threads(revoke, *(partial(work, read) for read in (run, span.copy_out) * 2))
    other.copy_out(0, bytearray(PAGE_SIZE))
    assert mapped(path) == [PAGE_SIZE]
    span.close()
    other.close()


# Descriptors

TOO_MANY = """
import errno, json, os, resource, sys
from pathlib import Path
from barfs.access.apertures import MappedAperture
from barfs.access.files import RESERVED_FILES, SysfsFile
from barfs.errors import TooManyFiles
from barfs.machine.presence import Presence

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
path = Path(sys.argv[1])
kinds = [
    lambda: MappedAperture(
        path, 0, 4, what="it", base=0, memory_like=False, writable=False
    ),
    lambda: SysfsFile(path, what="it", writable=False),
    lambda: Presence(path, "it"),
]
for make in kinds:
    made = []
    before = os.listdir("/proc/self/fd")
    try:
        while True:
            made.append(make())
    except TooManyFiles as error:
        assert error.errno == errno.EMFILE
        assert str(error).startswith(f"it: {path}: the limit of 256 open files"), error
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(RESERVED_FILES)]
    try:
        os.open("/dev/null", os.O_RDONLY)
        raise AssertionError("more were left than are reserved")
    except OSError as error:
        assert error.errno == errno.EMFILE
    # With none left at all it is the kernel that refuses, and the error is the same.
    try:
        make()
        raise AssertionError("opened")
    except TooManyFiles as error:
        assert error.errno == errno.EMFILE
    for fd in spare:
        os.close(fd)
    for one in made:
        one.close()
    assert os.listdir("/proc/self/fd") == before
    make().close()
"""


def run_python(text, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_some_descriptors_are_kept_back(file):
    done = run_python(TOO_MANY, file)
    assert (done.returncode, done.stderr) == (0, "")


TOO_MANY_MAPPINGS = """
import errno, os, sys
from pathlib import Path
from barfs.access import _mmio
from barfs.access.apertures import MappedAperture
from barfs.errors import BarfsError

path = Path(sys.argv[1])
most = int(Path("/proc/sys/vm/max_map_count").read_text())
fd = os.open(path, os.O_RDONLY)
eaten = [_mmio.Span(fd, 0, 4, False) for _ in range(most - 1000)]
made = []
before = len(os.listdir("/proc/self/fd"))
try:
    for _ in range(2000):
        made.append(
            MappedAperture(path, 0, 4, what="it", base=0, memory_like=False, writable=False)
        )
except BarfsError as error:
    assert error.errno == errno.ENOMEM, error
    assert str(error) == f"it: mapping 0x4 bytes at 0x0: {os.strerror(errno.ENOMEM)}", error
assert 0 < len(made) < 1000
assert len(os.listdir("/proc/self/fd")) == before + len(made)
made.pop().close()
made.append(MappedAperture(path, 0, 4, what="it", base=0, memory_like=False, writable=False))
made[-1].load_run(0, 4, bytearray(4))
"""


def test_more_mappings_than_a_process_may_have_are_an_error(file, require):
    """vm.max_map_count."""
    require(
        int(Path("/proc/sys/vm/max_map_count").read_text()) <= 1 << 17,
        "a limit on mappings that is reached within seconds",
    )
    done = run_python(TOO_MANY_MAPPINGS, file)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((errno.EMFILE, TooManyFiles), (errno.ENFILE, BarfsError), (errno.ENOMEM, BarfsError)),
    ],
)
def test_want_of_resources_keeps_its_errno(file, monkeypatch, code, kind):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    for make in (*APERTURES.values(), lambda path: Presence(path, "it")):
        with pytest.raises(kind) as caught:
            make(file)
        assert (type(caught.value), caught.value.errno) == (kind, code)
