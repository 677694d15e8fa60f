"""Random walks through a real mount: every byte and every errno that system calls give."""

import itertools
import os
import sys
from pathlib import Path

import pytest
from walks import walk
from walks.machine import Machine

from barfs.spans.guards import BELIEVED
from mounted.conftest import Mount
from mounted.test_crowd import started_by

STEPS = 1100  # of each of the two walks


class SystemCalls:
    """The files through the kernel, in one mount or in several of the same machine by turns."""

    joins = True

    def __init__(self, *roots):
        self._roots = itertools.cycle(roots)

    def _path(self, names):
        return os.path.join(next(self._roots), *names)

    def find(self, names):
        stat = os.lstat(self._path(names))
        return stat.st_size, stat.st_blksize

    def open(self, names, *, writable):
        return os.open(self._path(names), os.O_RDWR if writable else os.O_RDONLY)

    def read(self, fd, offset, length):
        return os.pread(fd, length, offset)

    def write(self, fd, offset, data):
        return os.pwrite(fd, data, offset)

    def close(self, fd):
        os.close(fd)

    def list(self, names):
        return os.listdir(self._path(names))

    def readlink(self, name):
        return os.readlink(self._path([name]))

    def accesses(self):
        """Those of another process are not seen."""


@pytest.mark.parametrize("via", ["resource", "devmem"])
def test_random_walks(fuse, tmp_path, via):
    directory = tmp_path / "machine"
    directory.mkdir()
    machine = Machine(directory, via, 2 * BELIEVED)
    machine.build()
    mount = Mount(machine.files, tmp_path, "--bars-via", via)

    def make():
        machine.build()
        return walk.Walk(machine, SystemCalls(mount.path))

    try:
        assert walk.run(make, STEPS) >= STEPS
        assert mount.alive()
    finally:
        assert mount.end() == 0


def test_random_walks_through_two_mounts_with_slow_bars(fuse, tmp_path):
    """Requests go to threads and come back, and what one mount writes the other reads."""
    directories = [tmp_path / name for name in ("machine", "first", "second")]
    for directory in directories:
        directory.mkdir()
    machine = Machine(directories[0], "resource", 2 * BELIEVED)
    machine.build()
    slower = [sys.executable, Path(__file__).with_name("slower_daemon.py")]
    mounts = [started_by(slower, machine.files, where) for where in directories[1:]]

    def make():
        machine.build()
        return walk.Walk(machine, SystemCalls(*(mount.path for mount in mounts)))

    try:
        assert walk.run(make, STEPS // 2) >= STEPS // 3
        assert all(mount.alive() for mount in mounts)
    finally:
        assert [mount.end() for mount in mounts] == [0, 0]
