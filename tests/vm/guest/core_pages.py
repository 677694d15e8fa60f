"""Compares System RAM through /proc/kcore and through /dev/mem: pages that do not change.

Prints how many bytes were compared, and the first difference.
"""

import os
import random
import sys
from pathlib import Path

from barfs.machine.kcore import CoreFile, physical_pieces

PAGE = 4096

core = CoreFile(Path("/proc"))
memory = os.open("/dev/mem", os.O_RDONLY)
choose = random.Random(int(sys.argv[1]))
ranges = [
    tuple(int(word, 16) for word in line.split()[0].split("-"))
    for line in Path("/proc/iomem").read_text().splitlines()
    if line.strip().endswith((": Kernel code", ": Kernel rodata"))
]
compared = 0
for _ in range(200):
    start, end = choose.choice(ranges)
    at = choose.randrange(start, end - PAGE)
    length = choose.randrange(1, PAGE)
    pieces = physical_pieces(core.segments(), at, length)
    through_core = b"".join(os.pread(core.fd, size, offset) for offset, size in pieces)
    if through_core != os.pread(memory, length, at):
        print(f"differs at {at:#x}")
        break
    compared += length
print(compared)
