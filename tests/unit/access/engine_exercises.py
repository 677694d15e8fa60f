"""Everything that the access engine does, as a program: for builds that watch themselves.

usage: engine_exercises.py LIBRARY

Under AddressSanitizer all of a mapping but what a request is for is poisoned, so that an access
anywhere else ends the program. It can say so to the byte behind a request, and to 8 bytes before.
"""

import ctypes
import importlib.util
import mmap
import os
import platform
import signal
import sys
import tempfile
import threading
from array import array
from itertools import product
from pathlib import Path

PAGE = mmap.PAGESIZE
SIZE = 4 * PAGE
BUS_ADRERR = 2
CONTENTS = bytes(range(256)) * (SIZE // 256)


def load(path):
    spec = importlib.util.spec_from_file_location("_mmio", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_mmio = load(sys.argv[1])

# The widths that copies may be told to make their accesses in.
COPY_WIDTHS = (8, 16) if platform.machine() == "x86_64" else (8,)


def buffer(content):
    """Ordinary memory of just that length; bytes and bytearray have one byte more."""
    return array("B", content)


class Watched:
    """A span over a file of its own, from `skip`; outside of `allowed` all is poisoned."""

    def __init__(self, skip=0, size=SIZE):
        self.file = tempfile.NamedTemporaryFile()
        self.file.write(bytes(skip) + CONTENTS[:size])
        self.file.flush()
        self.skip = skip
        self.size = size
        self.span = _mmio.Span(self.file.fileno(), skip, size, True)
        lines = Path("/proc/self/maps").read_text().splitlines()
        (line,) = (line for line in lines if line.endswith(self.file.name))
        self.start, self.end = (int(word, 16) for word in line.split()[0].split("-"))
        self._mark("poison", self.start, self.end)

    @staticmethod
    def _mark(verb, start, end):
        # There only in builds with AddressSanitizer.
        mark = getattr(ctypes.CDLL(None), f"__asan_{verb}_memory_region", None)
        if mark:
            mark(ctypes.c_void_p(start), ctypes.c_size_t(end - start))

    def allowed(self, offset, length, call, *arguments):
        """Make a call that may touch those bytes of the span only."""
        at = self.start + self.skip % PAGE + offset
        self._mark("unpoison", at, at + length)
        try:
            return call(*arguments)
        finally:
            self._mark("poison", self.start, self.end)

    def content(self):
        return os.pread(self.file.fileno(), self.size, self.skip)

    def close(self):
        self._mark("unpoison", self.start, self.end)
        self.span.close()
        self.file.close()


def runs():
    watched = Watched()
    for width, times in product((1, 2, 4, 8), (0, 1, 2, 5, 64)):
        length = width * times
        for offset in (0, 8, PAGE - 8, SIZE - length):
            data = buffer(bytes(length))
            watched.allowed(offset, length, watched.span.load_run, offset, width, data)
            assert data.tobytes() == CONTENTS[offset : offset + length]
            new = buffer(bytes(255 - byte for byte in data))
            watched.allowed(offset, length, watched.span.store_run, offset, width, new)
            expected = CONTENTS[:offset] + new.tobytes() + CONTENTS[offset + length :]
            assert watched.content() == expected
            watched.allowed(offset, length, watched.span.store_run, offset, width, data)
    watched.close()


def copies():
    """With both ends aligned in all ways, around both ends of the span and of a page."""
    skip = 0x108
    size = 2 * PAGE - skip - 3
    watched = Watched(skip, size)
    lengths = (*range(20), 31, 32, 33, 47, 63, 64, 65, 79, 80, 95, 127, 128, 129, 200)
    for length, near, width in product(lengths, range(17), COPY_WIDTHS):
        for offset in {near, PAGE - skip - 9 + near, size - length - near}:
            data = buffer(bytes(length))
            watched.allowed(offset, length, watched.span.copy_out, offset, width, data)
            assert data.tobytes() == CONTENTS[offset : offset + length]
            new = buffer(bytes(255 - byte for byte in data))
            watched.allowed(offset, length, watched.span.copy_in, offset, width, new)
            expected = CONTENTS[:offset] + new.tobytes() + CONTENTS[offset + length : size]
            assert watched.content() == expected
            watched.allowed(offset, length, watched.span.copy_in, offset, width, data)
    watched.close()


def refused(error, call, *arguments):
    try:
        call(*arguments)
    except error:
        return
    raise AssertionError(f"{call} of {arguments} was not refused")


def bad_arguments():
    """All of the mapping is poisoned: an access before the refusal ends the program."""
    watched = Watched()
    span = watched.span
    for offset in (SIZE, SIZE - 1, -1, 2**63 - 1, 2**63 - 8, -(2**63), 2**64):
        for call in (span.load_run, span.store_run):
            refused(IndexError, call, offset, 2, buffer(bytes(4)))
        for call in (span.copy_out, span.copy_in):
            refused(IndexError, call, offset, 8, buffer(bytes(4)))
    for width in (-(2**63), -8, -1, 0, 3, 17, 32, 2**63 - 1, 2**70):
        for call in (span.load_run, span.store_run, span.copy_out, span.copy_in):
            refused(ValueError, call, 0, width, buffer(bytes(96)))
    for call in (span.load_run, span.store_run):
        refused(ValueError, call, 0, 16, buffer(bytes(48)))
        for offset, width in ((1, 2), (2, 4), (4, 8), (7, 8)):
            refused(ValueError, call, offset, width, buffer(bytes(16)))
    refused(TypeError, span.store_run, 0, 1, "1")
    refused(TypeError, span.store_run, 0, 1)
    refused(BufferError, span.copy_out, 0, 8, b"read-only")
    fd = watched.file.fileno()
    for place in ((0, 0), (0, -1), (-PAGE, PAGE), (-(2**63), 1), (2**63 - 1, 2**63 - 1)):
        refused((ValueError, OSError, OverflowError), _mmio.Span, fd, *place, True)
    watched.close()
    refused(ValueError, span.load_run, 0, 1, buffer(b"1"))
    refused(ValueError, span.copy_out, 0, 8, buffer(b"1"))


def closing_during_runs():
    size = 8 << 20
    for close in (True, False):
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(size)
            span = _mmio.Span(file.fileno(), 0, size, True)
            data = bytearray(b"\xff") * size
            thread = threading.Thread(target=span.load_run, args=(0, 1, data))
            thread.start()
            while data[0]:
                pass
            if close:
                span.close()
            del span  # the thread has its own
            thread.join()
            assert not any(data)
            assert file.name not in Path("/proc/self/maps").read_text()


def faults_in_threads():
    """The file is cut short while all threads are at it; each gets its own fault, others go on."""
    file = tempfile.NamedTemporaryFile()
    file.truncate(SIZE)
    span = _mmio.Span(file.fileno(), 0, SIZE, True)
    whole = _mmio.Span(file.fileno(), 0, PAGE, True)
    kept = PAGE
    # What is touched first beyond the end, and by what.
    works = [
        (kept, lambda: span.load_run(kept - 64, 4, buffer(bytes(PAGE)))),
        (kept, lambda: span.copy_out(kept - 100, COPY_WIDTHS[-1], buffer(bytes(PAGE)))),
        (kept + 0x120, lambda: span.load_run(kept + 0x120, 8, buffer(bytes(8)))),
        (2 * PAGE + 0x18, lambda: span.store_run(2 * PAGE + 0x18, 2, buffer(bytes(64)))),
        (3 * PAGE, lambda: span.copy_in(3 * PAGE, COPY_WIDTHS[0], buffer(bytes(64)))),
        (SIZE - 1, lambda: span.store_run(SIZE - 1, 1, b"\0")),
    ]
    ready = threading.Barrier(len(works) + 2)
    faults = [[] for _ in works]
    healthy = []
    over = threading.Event()

    def touch(work, found):
        work()
        ready.wait()
        while len(found) < 200:
            try:
                work()
            except _mmio.Fault as fault:
                found.append(fault.args)

    def go_on():
        ready.wait()
        while not over.is_set():
            whole.load_run(0, 4, buffer(bytes(PAGE)))
            healthy.append(None)

    threads = [
        threading.Thread(target=touch, args=(work, found))
        for (_, work), found in zip(works, faults, strict=True)
    ]
    other = threading.Thread(target=go_on)
    for thread in (*threads, other):
        thread.start()
    ready.wait()
    os.truncate(file.name, kept)
    for thread in threads:
        thread.join()
    before = len(healthy)
    while len(healthy) == before:
        assert other.is_alive()
    over.set()
    other.join()
    for (offset, _), found in zip(works, faults, strict=True):
        # The first may come in the midst of a run, as the file shrinks at any time.
        assert found[0][0] >= offset, found[0]
        assert found[0][1:] == (signal.SIGBUS, BUS_ADRERR), found[0]
        assert found[1:] == [(offset, signal.SIGBUS, BUS_ADRERR)] * 199, (offset, set(found))
    os.truncate(file.name, SIZE)
    span.load_run(SIZE - 8, 8, last := bytearray(b"\xff") * 8)
    assert not any(last)
    span.close()
    whole.close()
    file.close()


EXERCISES = (
    runs,
    copies,
    bad_arguments,
    closing_during_runs,
    faults_in_threads,
)

for exercise in EXERCISES:
    exercise()
    print(exercise.__name__, flush=True)
