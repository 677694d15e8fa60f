"""Runs in the guest: a register as text is sampled by each read at offset 0, and by no other.

usage: sampling.py PATH LINE
"""

import os
import sys

path, line = sys.argv[1], sys.argv[2].encode() + b"\n"
fd = os.open(path, os.O_RDONLY)
assert [os.pread(fd, 99, 0) for _ in range(3)] == [line] * 3
assert os.pread(fd, 99, 5) == line[5:]
