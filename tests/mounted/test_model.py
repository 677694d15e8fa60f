"""Random walks through a real mount: every byte and every errno that system calls give."""

import os

import pytest
from walks import walk
from walks.machine import Machine

from mounted.conftest import Mount

STEPS = 1100  # of each of the two walks


class SystemCalls:
    """The files through the kernel."""

    joins = True

    def __init__(self, root):
        self._root = root

    def _path(self, names):
        return os.path.join(self._root, *names)

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
    machine = Machine(directory, via)
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
