"""A mount whose tree or views fail on demand: each system call gets EIO, and the mount lives on."""

import errno
import os
import subprocess
import sys

import pytest

from mounted.conftest import TIMEOUT, Mount, wait_until

# barfs, with methods that raise while a file is there that names them.
PROGRAM = """
import pathlib, sys
from barfs.commands import cli
from barfs import nodes
from barfs.spans import guards, views
trigger = pathlib.Path(sys.argv.pop(1))

class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no name")

def spoil(kind, name):
    real = getattr(kind, name)
    def method(*arguments, **keywords):
        if trigger.exists() and name in trigger.read_text().split():
            raise Unspeakable
        return real(*arguments, **keywords)
    setattr(kind, name, method)

for name in ("find", "entries", "attributes", "target"):
    spoil(nodes.Tree, name)
for kind in (views.RawView, views.TextView, guards.GuardedView):
    for name in ("read", "write"):
        spoil(kind, name)
spoil(guards.GuardedView, "close")
cli.main()
"""


@pytest.fixture
def spoilt(machine, tmp_path, monkeypatch):
    """A mount of a daemon that fails on demand, and the file that demands it."""
    trigger = tmp_path / "trigger"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr("mounted.conftest.BARFS", [sys.executable, program, trigger])
    mount = Mount(machine, tmp_path)
    yield mount, trigger
    trigger.unlink(missing_ok=True)
    assert mount.end() == 0


def error_of(call):
    try:
        call()
    except OSError as error:
        return error.errno


def test_every_call_gets_an_error_and_the_mount_stays_up(spoilt):
    mount, trigger = spoilt
    root = mount.path
    bar = os.open(root / "1af4:1110/bar2", os.O_RDWR)
    text = os.open(root / "1af4:1110/x32/bar0@4", os.O_RDWR)
    calls = {
        "find": [lambda: os.stat(root / "pci"), lambda: os.open(root / "1af4:1110/bar0", 0)],
        "entries": [lambda: os.listdir(root), lambda: os.listdir(root / "phys/u8")],
        "attributes": [lambda: os.fstat(bar), lambda: os.stat(root), lambda: os.listdir(root)],
        "target": [lambda: os.readlink(root / "1af4:1110"), lambda: os.stat(root / "1af4:1110")],
        "read": [lambda: os.pread(bar, 4, 0), lambda: os.pread(bar, 1 << 20, 0)],
        "write": [
            *(lambda: os.pwrite(bar, b"1", 0), lambda: os.pwrite(text, b"1\n", 0)),
            lambda: os.pwrite(text, b"1:0x1\n", 0),
        ],
    }
    for name, spoilt_calls in calls.items():
        for call in spoilt_calls:
            before = mount.log.count("Traceback")
            trigger.write_text(name)
            # The kernel keeps `pci` for a second.
            wait_until(lambda call=call: error_of(call), f"no error of {name}")
            assert error_of(call) == errno.EIO, name
            assert mount.log.count("Traceback") > before
            trigger.unlink()
            assert os.pread(bar, 4, 8) == bytes(4)
            assert "1af4:1110" in os.listdir(root)
    assert "Unspeakable" in mount.log
    os.close(bar)
    os.close(text)


def test_all_at_once_in_many_processes(spoilt):
    mount, trigger = spoilt
    trigger.write_text("find entries attributes target read write close")
    script = f"for i in 1 2 3 4 5; do ls -lR {mount.path}; cat {mount.path}/phys/1000; done"
    clients = [
        subprocess.Popen(
            ["bash", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(4)
    ]
    assert all(client.wait(TIMEOUT) for client in clients)
    trigger.unlink()
    assert os.readlink(mount.path / "1af4:1110") == "pci/0000:00:04.0"
    assert mount.process.poll() is None
