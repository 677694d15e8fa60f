"""A mount of the simulated machine, touched from other processes."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from barfs.machine import simulated
from mounted.others import GROUP, contents

BARFS = [sys.executable, "-m", "barfs"]
# How long it is waited for what should come soon; the machine may be slow.
TIMEOUT = 60


def wait_until(condition, what):
    """Wait for a condition, never for a time."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)


def is_mounted(path):
    return f" {path} fuse.barfs " in Path("/proc/mounts").read_text()


def daemons(word):
    """The ids of barfs processes with a word on their command line; zombies have none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "barfs" in words and str(word) in words:
                found.append(int(entry.name))
    return found


class Mount:
    """A foreground `barfs mount` of a simulated machine, and its log.

    `under` is a command that runs it, such as prlimit.
    """

    def __init__(self, machine, directory, *options, under=()):
        self.machine = machine
        self.path = directory / "bars"
        self.path.mkdir()
        self.log_path = directory / "log"
        command = [*under, *BARFS, "mount", "-f", *machine_options(machine), *options, self.path]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: self.process.poll() is not None or "mounted on" in self.log, "no mount")
        assert self.process.poll() is None, self.log

    @property
    def log(self):
        return self.log_path.read_text()

    def alive(self):
        """Whether it still answers, and has met nothing unforeseen."""
        assert self.process.poll() is None, self.log
        assert "1af4:1110" in os.listdir(self.path)
        assert "Traceback" not in self.log
        return True

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(TIMEOUT)
        assert not is_mounted(self.path)
        return status


@contextlib.contextmanager
def mounted(machine, directory, *options):
    """A mount for a block, alive at its end."""
    mount = Mount(machine, directory, *options)
    try:
        yield mount
        assert mount.alive()
    finally:
        assert mount.end() == 0


def machine_options(machine):
    return ["--sysfs", machine.sysfs, "--proc", machine.proc, "--devmem", machine.devmem]


def barfs(*arguments, **more):
    """Run the command, however it ends."""
    return subprocess.run(
        [*BARFS, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False, **more
    )


def one_line(done):
    """What a refusal says: one line on standard error, no traceback, and status 1."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("barfs: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def where(tmp_path):
    """An empty directory to mount on; at the end nothing may be left."""
    path = tmp_path / "bars"
    path.mkdir()
    yield path
    assert not is_mounted(path)
    wait_until(lambda: not daemons(path), "a daemon is left")


@pytest.fixture(scope="session")
def fuse(require):
    require(Path("/dev/fuse").exists(), "/dev/fuse")
    require(os.geteuid() == 0, "root, to mount and to try things as somebody else")


@pytest.fixture
def machine(fuse, tmp_path):
    directory = tmp_path / "machine"
    directory.mkdir()
    return simulated.build(directory)


@pytest.fixture
def mount(machine, tmp_path):
    """A mount for one test that changes its machine."""
    mount = Mount(machine, tmp_path)
    yield mount
    assert mount.end() == 0


@pytest.fixture(scope="module", params=["resource", "devmem"])
def shared(request, fuse, tmp_path_factory):
    """A mount for the tests of a module, once with BARs through resourceN, once through devmem."""
    directory = tmp_path_factory.mktemp("shared")
    (directory / "machine").mkdir()
    machine = simulated.build(directory / "machine")
    mount = Mount(machine, directory, "--bars-via", request.param)
    yield mount
    assert mount.alive()
    assert mount.end() == 0


def sh(command, **more):
    """Run a shell command, however it ends."""
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, timeout=TIMEOUT, check=False, **more
    )


@contextlib.contextmanager
def public_directory():
    """One that others get to; pytest's own it closes to them whenever it is started anew."""
    with tempfile.TemporaryDirectory(prefix="barfs-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def public():
    """A directory for mounts that others get to."""
    with public_directory() as directory:
        yield directory


@pytest.fixture(scope="module", params=["resource", "devmem"])
def lab(request, fuse, tmp_path_factory):
    """A mount for a group, with a device that is read-only."""
    machine = simulated.build(tmp_path_factory.mktemp("lab"))
    options = ["--group", str(GROUP), "--mode", "660", "--read-only-device", "0000:00:05.0"]
    options += ["--bars-via", request.param]
    with (
        public_directory() as directory,
        mounted(machine, directory, "-o", "allow_other", *options) as mount,
    ):
        yield mount


@pytest.fixture
def unchanged(lab):
    """What a test does reaches no device."""
    before = contents(lab.machine)
    yield
    assert contents(lab.machine) == before
    assert lab.alive()
