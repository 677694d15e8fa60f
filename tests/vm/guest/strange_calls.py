"""Runs in the guest: system calls on an open BAR that have no meaning there.

usage: strange_calls.py PATH

Prints the names of the errors that came of them, as JSON.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import sys

fd = os.open(sys.argv[1], os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
choose = random.Random(2)
found = set()
# Those below are of every file that is open (fs/ioctl.c); the rest could be a device's.
plain = {1, 2, 0x541B, 0x5421, 0x5450, 0x5451, 0x5452, 0x5460}
made_up = [choose.getrandbits(32) for _ in range(200)] + list(range(0x5400, 0x5470))
for request in set(made_up + list(range(0x50434900, 0x50434904))) - plain:
    try:
        fcntl.ioctl(fd, request - (request >> 31 << 32), bytearray(1 << 14))
        found.add("ok")
    except OSError as error:
        found.add(errno.errorcode[error.errno])
for mode in (0, 1, 2, 3, 8, 16, 32, 64):
    if libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(64)):
        found.add(errno.errorcode[ctypes.get_errno()])
for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
    try:
        mmap.mmap(fd, 4096, mmap.MAP_SHARED, protection)
    except OSError as error:
        found.add(errno.errorcode[error.errno])
os.ftruncate(fd, 0)
os.fsync(fd)
print(json.dumps(sorted(found)))
