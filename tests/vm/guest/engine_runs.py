"""Runs in the guest: each kind of transfer that an engine makes, on the edu device.

usage: engine_runs.py ENGINE

ENGINE is a build of barfs.access._mmio.
"""

import importlib.util
import os
import sys

spec = importlib.util.spec_from_file_location("_mmio", sys.argv[1])
_mmio = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_mmio)
fd = os.open("/sys/bus/pci/devices/0000:00:13.0/resource0", os.O_RDWR)
span = _mmio.Span(fd, 0, 1 << 20, True)
for width in (1, 2, 4, 8):
    for offset, units in ((0x80, 1), (0x90, 3)):
        span.load_run(offset, width, bytearray(units * width))
        span.store_run(offset, width, bytes(units * width))
for widest in (8, 16):
    span.copy_out(0x91, widest, bytearray(0x4E))
    span.copy_in(0x91, widest, bytes(0x4E))
