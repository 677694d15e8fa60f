"""More files are opened than there can be."""

import contextlib
import errno
import os
import resource

import pytest

from barfs.daemon import serve
from barfs.requests.shares import PART
from mounted.conftest import Mount, sh, wait_until
from mounted.others import GROUP, as_other

LIMIT = 256
OPENS = 2000


@pytest.fixture
def limited(machine, tmp_path):
    """With a hard limit on descriptors; the soft one is lower still, and no use to anybody."""
    mount = Mount(machine, tmp_path, under=["prlimit", f"--nofile=40:{LIMIT}"])
    yield mount
    assert mount.end() == 0


def descriptors(mount):
    return len(os.listdir(f"/proc/{mount.process.pid}/fd"))


def test_the_limit_is_raised_as_far_as_it_may(limited):
    limits = sh(f"grep 'Max open files' /proc/{limited.process.pid}/limits").stdout.split()
    assert limits[3:5] == [str(LIMIT).encode()] * 2


@pytest.mark.parametrize(("hard", "chosen"), [(1024, 1024), (1 << 15, 1 << 15), (1 << 20, 1 << 15)])
def test_but_not_beyond_what_the_mappings_of_a_process_allow(monkeypatch, hard, chosen):
    done = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (40, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda *what: done.append(what))
    serve._raise_limit()
    assert done == [(resource.RLIMIT_NOFILE, (chosen, hard))]


@pytest.mark.parametrize("name", ["phys/1000+4", "1af4:1110/bar2", "1af4:1110/config"])
def test_thousands_of_opens_fail_with_one_error_and_nothing_is_lost(limited, name):
    before = descriptors(limited)
    path = limited.path / name
    for _ in range(2):
        with contextlib.ExitStack() as opened:
            held, refused = [], []
            for _ in range(OPENS):
                try:
                    held.append(os.open(path, os.O_RDONLY))
                except OSError as error:
                    refused.append(error.errno)
                else:
                    opened.callback(os.close, held[-1])
            assert len(held) > 50
            assert refused == [errno.EMFILE] * (OPENS - len(held))
            assert descriptors(limited) < LIMIT - 50
            # Everything else goes on.
            listed = sh(f"ls -lR {limited.path} && cat {limited.path}/1af4:1110/info")
            assert listed.returncode == 0, listed
            assert listed.stderr == b""
            assert len(os.pread(held[-1], 4, 0)) == 4
        wait_until(lambda: descriptors(limited) == before, "descriptors are lost")
    assert len(sh(f"head -c 4 {path}").stdout) == 4
    assert "the limit of 256 open files is near" in limited.log
    assert limited.alive()


def open_many(path, times):
    """How many opens succeed, and which errors the others give."""
    held, errors = [], set()
    for _ in range(times):
        try:
            held.append(os.open(path, os.O_RDONLY))
        except OSError as error:
            errors.add(error.errno)
    return held, errors


class Hog:
    """A child that is another user of the group, opens a file as often as it may, and waits."""

    def __init__(self, path, times, uid):
        answers, answer = os.pipe()
        wait, self._go_on = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._go_on)
            try:
                os.setgroups([GROUP])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                held, errors = open_many(path, times)
                os.write(answer, bytes([len(held), *errors]))
                os.read(wait, 1)
            finally:
                os._exit(0)
        for fd in (answer, wait):
            os.close(fd)
        self.held, *self._errors = os.read(answers, 99)
        os.close(answers)

    def end(self):
        os.write(self._go_on, b"x")  # closing it is not enough: later children have a copy
        os.close(self._go_on)
        os.waitpid(self._child, 0)
        return set(self._errors)


def test_one_user_takes_no_descriptors_from_others(machine, public):
    """The member of a group opens what he can; root and another user still open more."""
    options = ["-o", "allow_other", "--group", str(GROUP), "--mode", "660"]
    limit = 640
    mount = Mount(machine, public, *options, under=["prlimit", f"--nofile={limit}"])
    bar, config = mount.path / "1af4:1110/bar0", mount.path / "8086:100e/config"
    children = []
    for uid, least in ((65534, limit // PART), (65533, limit // PART), (65532, 20)):
        children.append(Hog(bar, limit // PART + 20, uid))
        assert least <= children[-1].held <= limit // PART
    held, errors = open_many(bar, 30)
    assert (len(held), errors) == (30, set())
    assert len(config.read_bytes()) == 256
    for child in children:
        assert child.end() == {errno.EMFILE}
    for fd in held:
        os.close(fd)
    wait_until(lambda: len(open_as_member(bar)) == limit // PART, "what was closed still counts")
    assert f"has {limit // PART} files open" in mount.log
    assert mount.alive()
    assert mount.end() == 0


def open_as_member(path):
    return as_other(lambda: [0 for _ in open_many(path, 200)[0]], GROUP)
