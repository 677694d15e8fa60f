"""Random walks over the simulated machine: every byte, every errno, every single access."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from walks import walk
from walks.contract import merged
from walks.machine import Machine

from barfs.access import apertures
from barfs.daemon.serve import machine_of, tree_of
from barfs.daemon.settings import Settings
from barfs.errors import BarfsError
from barfs.journal.records import Journal
from barfs.nodes import Type

STEPS = 4400  # of each of the two walks


class Recorder:
    """Every access to mapped memory and ports, by the file behind it and the offset there."""

    def __init__(self):
        self.made = []

    def note(self, verb, kind, file, at, width):
        self.made.append((verb, kind, file, at, width))

    def span(self, real):
        """A class of spans that tell what they are told to do, and do it."""
        note = self.note

        class Span:
            def __init__(self, fd, offset, length, writable):
                self._real = real(fd, offset, length, writable)
                self._file, self._start = identity(fd), offset

            def load_run(self, offset, width, into):
                self._real.load_run(offset, width, into)
                self._run("load", offset, width, into)

            def store_run(self, offset, width, data):
                self._real.store_run(offset, width, data)
                self._run("store", offset, width, data)

            def _run(self, verb, offset, width, data):
                for at in range(offset, offset + len(data), width):
                    note(verb, "one", self._file, self._start + at, width)

            def copy_out(self, offset, width, into):
                self._real.copy_out(offset, width, into)
                note("load", "copy", self._file, self._start + offset, len(into))

            def copy_in(self, offset, width, data):
                self._real.copy_in(offset, width, data)
                note("store", "copy", self._file, self._start + offset, len(data))

            def close(self):
                self._real.close()

        return Span

    def preadv(self, fd, buffers, offset, real=os.preadv):
        done = real(fd, buffers, offset)
        self.note("load", "one", identity(fd), offset, done)
        return done

    def pwritev(self, fd, buffers, offset, real=os.pwritev):
        done = real(fd, buffers, offset)
        self.note("store", "one", identity(fd), offset, done)
        return done


def identity(fd):
    file = os.fstat(fd)
    return file.st_dev, file.st_ino


class Direct:
    """The tree and its views without FUSE."""

    joins = False

    def __init__(self, machine, recorder):
        self._machine, self._recorder = machine, recorder
        places = vars(machine.files)
        settings = Settings(Path("/nowhere"), **places, bars_via=machine.via)
        self._tree = tree_of(settings, machine_of(settings), Journal())
        self._backings = {}
        for backing, path in machine.backings():
            file = path.stat()
            self._backings[file.st_dev, file.st_ino] = backing

    def _node(self, names):
        node = self._tree.root
        for name in names:
            node = self._tree.lookup(node, name)
        return node

    def _ask(self, call):
        try:
            return call()
        except BarfsError as error:
            raise OSError(error.errno, str(error)) from error

    def find(self, names):
        return self._ask(lambda: self._tree.attributes(self._node(names))[:2])

    def open(self, names, *, writable):
        return self._ask(lambda: self._tree.open(self._node(names), writable=writable))

    def read(self, view, offset, length):
        return self._ask(lambda: view.read(offset, length))

    def write(self, view, offset, data):
        return self._ask(lambda: view.write(offset, data))

    def close(self, view):
        view.close()

    def list(self, names):
        return [name for name, _ in self._tree.entries(self._node(names))]

    def readlink(self, name):
        node = self._node([name])
        assert node.kind.type is Type.LINK
        return self._tree.target(node)

    def accesses(self):
        made = [
            (verb, kind, self._backings[file], at, width)
            for verb, kind, file, at, width in self._recorder.made
        ]
        self._recorder.made.clear()
        return merged(made)


@pytest.mark.parametrize("via", ["resource", "devmem"])
def test_random_walks(tmp_path, monkeypatch, via):
    recorder = Recorder()
    engine = apertures._mmio
    monkeypatch.setattr(
        apertures,
        "_mmio",
        SimpleNamespace(**{**vars(engine), "Span": recorder.span(engine.Span)}),
    )
    for name in ("preadv", "pwritev"):
        monkeypatch.setattr(os, name, getattr(recorder, name))
    machine = Machine(tmp_path, via)

    def make():
        machine.build()
        recorder.made.clear()
        return walk.Walk(machine, Direct(machine, recorder))

    before = os.listdir("/proc/self/fd")
    assert walk.run(make, STEPS) >= STEPS
    assert os.listdir("/proc/self/fd") == before
