"""Runs in the guest: each kind of transfer that engines make, on BAR 0 of a device.

usage: engine_runs.py ADDRESS WIDTHS START END WIDEST ENGINE...

Each ENGINE is a build of barfs.access._mmio. Runs are made in accesses of each of the WIDTHS,
copies of the bytes from START to END in accesses of at most each of the WIDEST; both have commas
between. One engine does all that before the next one begins.
"""

import importlib.util
import mmap
import os
import sys
from pathlib import Path

address, widths, start, end, widest, *engines = sys.argv[1:]
device = Path("/sys/bus/pci/devices", address)
first, last = (int(word, 16) for word in (device / "resource").read_text().split()[:2])
fd = os.open(device / "resource0", os.O_RDWR)
length = int(end) - int(start)
for engine in engines:
    spec = importlib.util.spec_from_file_location("_mmio", engine)
    _mmio = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(_mmio)
    # The page is mapped that the BAR begins in.
    span = _mmio.Span(fd, first % mmap.PAGESIZE, last + 1 - first, True)
    for width in map(int, widths.split(",")):
        for offset, units in ((0x80, 1), (0x90, 3)):
            span.load_run(offset, width, bytearray(units * width))
            span.store_run(offset, width, bytes(units * width))
    for width in map(int, widest.split(",")):
        span.copy_out(int(start), width, bytearray(length))
        span.copy_in(int(start), width, bytes(length))
