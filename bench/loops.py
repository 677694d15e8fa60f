"""What a program in Python would do: 32-bit reads, or copies of 1 MiB, in a loop.

usage: python loops.py periphery|memoryview|struct|pread|slices FILE SPAN MS

Prints JSON as client does.
"""

import json
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Callable

BATCH = 64  # operations between two looks at the clock
OFFSETS = 1024
MIB = 1 << 20


def by_periphery(path: str, span: int) -> Callable[[int], object]:
    """python-periphery's MMIO; not on every machine. Exactly one access."""
    from periphery import MMIO  # noqa: PLC0415

    return MMIO(0, span, path=path).read32


def _map(path: str, span: int) -> mmap.mmap:
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), span)


def by_memoryview(path: str, span: int) -> Callable[[int], object]:
    """A cast memoryview of a mapping. Exactly one access."""
    words = memoryview(_map(path, span)).cast("I")
    return lambda offset: words[offset >> 2]


def by_struct(path: str, span: int) -> Callable[[int], object]:
    """What most write, though it reads a register twice."""
    memory = _map(path, span)
    return lambda offset: struct.unpack("<I", memory[offset : offset + 4])[0]


def by_pread(path: str, span: int) -> Callable[[int], object]:
    """The file itself."""
    del span
    fd = os.open(path, os.O_RDONLY)
    return lambda offset: int.from_bytes(os.pread(fd, 4, offset), "little")


def by_slices(path: str, span: int) -> Callable[[int], object]:
    """Slices of a mapping, 1 MiB each, one after the other."""
    memory = _map(path, span)
    place = 0

    def copy(_: int) -> bytes:
        nonlocal place
        start, place = place, (place + MIB) % span
        return memory[start : start + MIB]

    return copy


WAYS = {
    "periphery": by_periphery,
    "memoryview": by_memoryview,
    "struct": by_struct,
    "pread": by_pread,
    "slices": by_slices,
}


def main(way: str, path: str, span: int, ms: int) -> None:
    """Repeat one of the ways for so many ms, after a quarter of that to warm up."""
    read = WAYS[way](path, span)
    numbers = random.Random(1)  # noqa: S311
    offsets = [4 * numbers.randrange(span // 4) for _ in range(OFFSETS)]
    for limit in (ms / 4000, ms / 1000):
        done = 0
        started = time.perf_counter_ns()
        until = started + limit * 1e9
        while (now := time.perf_counter_ns()) < until or not done:
            for n in range(done, done + BATCH):
                read(offsets[n % OFFSETS])
            done += BATCH
    print(json.dumps({"operations": done, "ns": now - started, "partial": False}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
