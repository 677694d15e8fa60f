"""The access engine, in each way that it may be compiled. The VM tier shows what the bus sees."""

import faulthandler
import importlib.util
import mmap
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
from pathlib import Path

import pytest

from unit.access.engine_sources import SOURCE

# The widths that copies may be told to make their accesses in.
COPY_WIDTHS = (8, 16) if platform.machine() == "x86_64" else (8,)
BUILDS = [(cc, level) for cc in ("gcc", "clang") for level in ("-O0", "-O2", "-O3")]


@pytest.fixture(scope="session", params=BUILDS, ids=lambda build: "".join(build))
def library(request, tmp_path_factory):
    """The path of the extension, compiled without a warning."""
    compiler, level = request.param
    path = tmp_path_factory.mktemp("build") / "_mmio.so"
    include = sysconfig.get_path("include")
    subprocess.run(
        [compiler, level, *["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"], f"-I{include}"]
        + [SOURCE, "-o", path],
        check=True,
    )
    return path


def load_module(path):
    spec = importlib.util.spec_from_file_location("_mmio", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mmio(library):
    return load_module(library)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(bytes(range(256)) * 64)
    return path


@pytest.fixture
def opened(file):
    fd = os.open(file, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def span(mmio, opened):
    span = mmio.Span(opened, 0, 16384, True)
    yield span
    span.close()


def load(span, offset, width):
    """What one access reads."""
    span.load_run(offset, width, data := bytearray(width))
    return bytes(data)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", [0, 8, 248, 16376])
def test_one_access_moves_exactly_the_bytes_of_its_width(span, file, width, offset):
    before = file.read_bytes()
    assert load(span, offset, width) == before[offset : offset + width]
    value = b"\xa5\x5a\xc3\x3c\x96\x69\xf0\x0f"[:width]
    span.store_run(offset, width, value)
    assert file.read_bytes() == before[:offset] + value + before[offset + width :]


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_runs_fill_a_buffer_that_need_not_be_aligned(span, file, width):
    data = bytearray(1 + 24 * width)
    with memoryview(data) as view:
        span.load_run(8 * width, width, view[1:])
    assert data[1:] == file.read_bytes()[8 * width : 32 * width]
    span.store_run(0, width, bytes(reversed(range(4 * width))))
    assert file.read_bytes()[: 4 * width] == bytes(reversed(range(4 * width)))
    assert file.read_bytes()[4 * width : 5 * width] == bytes(range(4 * width, 5 * width))


@pytest.mark.parametrize("width", COPY_WIDTHS)
@pytest.mark.parametrize("offset", [*range(18), 4096, 16300])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 80, 83])
def test_copies_move_exactly_the_bytes_asked_for(span, file, offset, length, width):
    before = file.read_bytes()
    data = bytearray(length)
    span.copy_out(offset, width, data)
    assert data == before[offset : offset + length]
    new = bytes(255 - byte for byte in data)
    span.copy_in(offset, width, new)
    assert file.read_bytes() == before[:offset] + new + before[offset + length :]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda span: span.load_run(16384, 1, bytearray(1)), IndexError),
        (lambda span: span.load_run(16382, 4, bytearray(4)), IndexError),
        (lambda span: span.load_run(16380, 4, bytearray(8)), IndexError),
        (lambda span: span.load_run(-1, 1, bytearray(1)), IndexError),
        (lambda span: span.load_run(2**63 - 1, 8, bytearray(8)), IndexError),
        (lambda span: span.load_run(2**64, 1, bytearray(1)), IndexError),
        (lambda span: span.copy_out(16384, 8, bytearray(1)), IndexError),
        (lambda span: span.copy_in(-4, 8, b"abcd"), IndexError),
        (lambda span: span.load_run(1, 2, bytearray(2)), ValueError),
        (lambda span: span.load_run(4, 8, bytearray(8)), ValueError),
        (lambda span: span.load_run(0, 3, bytearray(3)), ValueError),
        (lambda span: span.load_run(0, 0, bytearray(1)), ValueError),
        (lambda span: span.load_run(0, -1, bytearray(1)), ValueError),
        (lambda span: span.load_run(0, 16, bytearray(16)), ValueError),
        (lambda span: span.load_run(0, 2**70, bytearray(16)), ValueError),
        (lambda span: span.load_run(0, 4, bytearray(6)), ValueError),
        (lambda span: span.store_run(2, 4, bytes(8)), ValueError),
        (lambda span: span.copy_in(0, 0, bytes(8)), ValueError),
        (lambda span: span.copy_in(0, 3, bytes(8)), ValueError),
        (lambda span: span.copy_in(0, 32, bytes(64)), ValueError),
        (lambda span: span.copy_in(0, -8, bytes(64)), ValueError),
        (lambda span: span.store_run(0, 4, "1"), TypeError),
        (lambda span: span.load_run(0, 4, b"readonly"), BufferError),
        (lambda span: span.load_run(0, 4), TypeError),
        (lambda span: span.copy_in(0, bytes(4)), TypeError),
    ],
)
def test_what_does_not_fit_is_refused_before_any_access(span, file, call, error):
    before = file.read_bytes()
    with pytest.raises(error):
        call(span)
    assert file.read_bytes() == before


def test_a_span_may_begin_anywhere_in_a_page(mmio, opened, file):
    span = mmio.Span(opened, 4096 + 260, 6, False)
    assert len(span) == 6
    data = bytearray(6)
    span.copy_out(0, 8, data)
    assert data == file.read_bytes()[4356:4362]
    with pytest.raises(IndexError):
        load(span, 6, 1)
    with pytest.raises(TypeError):
        span.store_run(0, 1, b"0")


@pytest.mark.parametrize("place", [(0, 0), (0, -1), (-4096, 4096), (0, sys.maxsize + 1)])
def test_an_impossible_span_is_refused(mmio, opened, place):
    with pytest.raises((ValueError, OverflowError)):
        mmio.Span(opened, *place, True)


def test_mmap_errors_keep_their_errno(mmio, file):
    with file.open("rb") as readable, pytest.raises(PermissionError):
        mmio.Span(readable.fileno(), 0, 4096, True)


def test_a_closed_span_is_not_accessed(mmio, opened):
    span = mmio.Span(opened, 0, 4096, True)
    span.close()
    span.close()
    with pytest.raises(ValueError, match="closed"):
        load(span, 0, 4)


def test_copies_are_made_in_a_width_that_the_machine_has(mmio):
    """16 bytes on hardware with SSE; its moves are not known to all hypervisors."""
    guest = "hypervisor" in Path("/proc/cpuinfo").read_text()
    chosen = mmio.COPY_WIDTH
    assert chosen == (COPY_WIDTHS[0] if guest else COPY_WIDTHS[-1])


def mappings(path):
    return Path("/proc/self/maps").read_text().count(str(path))


def test_spans_are_unmapped_once(mmio, opened, file):
    spans = [mmio.Span(opened, 0, 4096, True) for _ in range(3)]
    assert mappings(file) >= 1
    spans.pop().close()
    spans.clear()
    assert mappings(file) == 0


@pytest.fixture
def truncated(mmio, opened):
    """Four pages of which the last two are gone: a touch there is SIGBUS."""
    span = mmio.Span(opened, 0, 4 * mmap.PAGESIZE, True)
    os.ftruncate(opened, 2 * mmap.PAGESIZE)
    yield span
    span.close()


GONE = 2 * mmap.PAGESIZE
BUS_ADRERR = 2


@pytest.mark.parametrize(
    ("call", "offset"),
    [
        (lambda span: span.load_run(GONE + 8, 4, bytearray(4)), GONE + 8),
        (lambda span: span.store_run(GONE + 12, 1, b"7"), GONE + 12),
        (lambda span: span.load_run(GONE - 8, 4, bytearray(64)), GONE),
        (lambda span: span.store_run(GONE - 8, 8, bytes(64)), GONE),
        *(
            case
            for width in COPY_WIDTHS
            for case in [
                (lambda span, width=width: span.copy_out(GONE - 99, width, bytearray(4096)), GONE),
                (lambda span, width=width: span.copy_in(GONE - 99, width, bytes(4096)), GONE),
            ]
        ),
    ],
)
def test_a_fault_is_an_exception_that_names_the_offset_and_the_kind(mmio, truncated, call, offset):
    for _ in range(3):
        with pytest.raises(mmio.Fault) as caught:
            call(truncated)
        assert caught.value.args == (offset, signal.SIGBUS, BUS_ADRERR)
    assert load(truncated, 0, 4)


def test_what_lies_before_the_fault_is_done(mmio, truncated):
    truncated.store_run(GONE - 8, 4, bytes(8))
    with pytest.raises(mmio.Fault):
        truncated.store_run(GONE - 8, 4, b"\x11" * 16)
    assert load(truncated, GONE - 8, 8) == b"\x11" * 8


def test_faults_in_several_threads_at_once(mmio, truncated):
    caught = []

    def touch():
        for _ in range(300):
            try:
                truncated.load_run(GONE - 64, 4, bytearray(4096))
            except mmio.Fault as fault:
                caught.append(fault.args[0])

    threads = [threading.Thread(target=touch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caught == [GONE] * 1200


def test_runs_release_the_gil(mmio, tmp_path):
    path = tmp_path / "large"
    with path.open("wb+") as large:
        large.truncate(64 << 20)
        span = mmio.Span(large.fileno(), 0, 64 << 20, True)
    ticks = []
    done = threading.Event()

    def count():
        while not done.is_set():
            ticks.append(None)

    thread = threading.Thread(target=count)
    thread.start()
    started = len(ticks)
    span.load_run(0, 1, bytearray(64 << 20))
    progress = len(ticks) - started
    done.set()
    thread.join()
    assert progress > 100


def test_closing_during_a_run_waits_for_it(mmio, tmp_path):
    path = tmp_path / "large"
    size = 64 << 20
    with path.open("wb+") as large:
        large.truncate(size)
        span = mmio.Span(large.fileno(), 0, size, True)
    data = bytearray(b"\xff") * size
    runs = threading.Thread(target=span.load_run, args=(0, 1, data))
    runs.start()
    while data[0]:
        pass  # until the run is under way
    span.close()
    runs.join()
    assert not any(data)
    assert mappings(path) == 0


PROLOGUE = """
import ctypes, faulthandler, importlib.util, mmap, os, signal, sys, tempfile
{before}
spec = importlib.util.spec_from_file_location("_mmio", {library!r})
_mmio = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_mmio)
def guarded():
    with tempfile.TemporaryFile() as file:
        file.truncate(2 * mmap.PAGESIZE)
        span = _mmio.Span(file.fileno(), 0, 2 * mmap.PAGESIZE, True)
        os.ftruncate(file.fileno(), mmap.PAGESIZE)
    try:
        span.load_run(mmap.PAGESIZE, 4, bytearray(4))
    except _mmio.Fault:
        return
    sys.exit("no fault")
guarded()
{after}
guarded()
"""


def crash(library, before, after, fatal):
    """Run guarded faults around `after`, then `fatal`, in a process of its own."""
    text = PROLOGUE.format(before=before, after=after, library=str(library))
    text += textwrap.dedent(fatal)
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("before", ["", "faulthandler.enable()"])
@pytest.mark.parametrize(
    "after", ["", "faulthandler.enable()", "faulthandler.disable(); faulthandler.enable()"]
)
@pytest.mark.parametrize(
    ("fatal", "number"),
    [
        ("ctypes.string_at(0)", signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGBUS)", signal.SIGBUS),
        ("faulthandler._sigsegv()", signal.SIGSEGV),
    ],
)
def test_a_real_crash_still_goes_to_faulthandler(library, before, after, fatal, number):
    done = crash(library, before, after, fatal)
    assert done.returncode == -number
    reported = "faulthandler.enable()" in before + after
    assert done.stderr.count("Fatal Python error") == reported


def test_other_handlers_get_signals_that_are_not_ours(library):
    done = crash(
        library,
        "signal.signal(signal.SIGBUS, lambda *_: print('theirs', flush=True))",
        "",
        "os.kill(os.getpid(), signal.SIGBUS); guarded(); print('alive')",
    )
    assert (done.returncode, done.stdout) == (0, "theirs\nalive\n")


def test_a_handler_installed_later_is_called_too(library):
    done = crash(
        library,
        "",
        "signal.signal(signal.SIGBUS, lambda *_: print('theirs', flush=True))",
        "os.kill(os.getpid(), signal.SIGBUS); guarded(); print('alive')",
    )
    assert (done.returncode, done.stdout) == (0, "theirs\nalive\n")


def test_this_process_has_faulthandler_on():
    """Or the tests above would show less than they seem to."""
    assert faulthandler.is_enabled()
