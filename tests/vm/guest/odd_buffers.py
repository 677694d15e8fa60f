"""Runs in the guest: large requests that the kernel cuts at odd offsets are refused as a whole.

usage: odd_buffers.py PATH...

PATHs are views of a fixed width of more than one byte. A buffer that begins inside a page makes the
kernel cut.
"""

import errno
import mmap
import os
import sys

LENGTH = 1 << 20

memory = mmap.mmap(-1, LENGTH + mmap.PAGESIZE)
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDWR)
    for call in (os.preadv, os.pwritev):
        try:
            call(fd, [memoryview(memory)[1 : 1 + LENGTH]], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            raise SystemExit("no error")
