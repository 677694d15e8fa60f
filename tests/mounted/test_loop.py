"""How requests are waited for: in a way of barfs's own, or as pyfuse3 does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mounted.conftest import TIMEOUT, Mount, is_mounted, machine_options, wait_until

REGISTER = "8086:100e/bar0"
VALUE = bytes.fromhex("83070880")


# As long as some tens of the loop's turns, in seconds.
REST = 0.2


def wake_ups(process):
    """How often its threads have begun to run, and whether all of them sleep."""
    times, asleep = 0, True
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        status = (task / "status").read_text()
        asleep &= "\nState:\tS" in status
        times += sum(
            int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line
        )
    return times, asleep


@contextlib.contextmanager
def hammered(mount):
    """Reads one after the other, from another process."""
    program = (
        "import os, sys\n"
        "file = os.open(sys.argv[1], os.O_RDONLY)\n"
        "print(flush=True)\n"
        "while True: os.pread(file, 4, 8)\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program, mount.path / REGISTER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        client.stdout.readline()
        yield
    finally:
        client.kill()
        client.communicate()


@pytest.fixture(params=["fast", "stock"])
def looped(request, machine, tmp_path):
    mount = Mount(machine, tmp_path, "--loop", request.param, "--log", tmp_path / "records")
    yield mount
    if mount.process.poll() is None:
        assert mount.alive()
    assert mount.end() == 0


def test_requests_are_answered(looped):
    file = os.open(looped.path / REGISTER, os.O_RDONLY)
    assert {os.pread(file, 4, 8) for _ in range(1000)} == {VALUE}
    os.close(file)


def test_idle_it_sleeps(looped):
    """Also right after a burst of requests, when the last turn has ended."""

    def rests():
        before = wake_ups(looped.process)
        time.sleep(REST)
        return before[1] and wake_ups(looped.process) == before

    with hammered(looped):
        assert not rests()
    wait_until(rests, "it wakes up again and again")
    looped.alive()
    wait_until(rests, "it wakes up again and again")


def test_other_tasks_live_while_requests_keep_coming(looped, tmp_path):
    with hammered(looped):
        (looped.path / "8086:100e/x32/bar0@8").write_text("42")

        def is_recorded():
            lines = map(json.loads, (tmp_path / "records").read_text().splitlines())
            return any(line.get("value") == "42" for line in lines)

        wait_until(is_recorded, "the log is not written")
        looped.process.send_signal(signal.SIGTERM)
        assert looped.process.wait(TIMEOUT) == 0
        assert not is_mounted(looped.path)


def test_an_unmount_from_outside_ends_it(looped):
    assert (looped.path / REGISTER).stat().st_size == 0x20000
    subprocess.run(["umount", looped.path], check=True)
    assert looped.process.wait(TIMEOUT) == 0


@pytest.mark.parametrize(
    "change",
    [
        # As if pyfuse3 waited in another way, or had another name for it.
        "wait = pyfuse3._wait_fuse_readable; pyfuse3._wait_fuse_readable = lambda: wait()",
        "loop = pyfuse3._session_loop; pyfuse3._session_loop = lambda *args: loop(*args)",
        "from barfs.daemon import loop; loop._WAIT = '_wait_otherwise'",
        "from barfs.daemon import loop; loop._session_fd = lambda: None",
    ],
)
def test_with_another_pyfuse3_its_own_loop_is_used_and_the_log_says_so(machine, tmp_path, change):
    where = tmp_path / "bars"
    where.mkdir()
    log = tmp_path / "log"
    program = f"import sys, pyfuse3; {change}; from barfs.commands.cli import main; main()"
    command = [sys.executable, "-c", program, "mount", "-f", *machine_options(machine), where]
    with log.open("wb") as output:
        daemon = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_until(lambda: "mounted on" in log.read_text() or daemon.poll() is not None, "no mount")
        file = os.open(where / REGISTER, os.O_RDONLY)
        assert os.pread(file, 4, 8) == VALUE
        os.close(file)
    finally:
        daemon.terminate()
        assert daemon.wait(TIMEOUT) == 0
    assert "is not as expected: its own loop is used" in log.read_text()
