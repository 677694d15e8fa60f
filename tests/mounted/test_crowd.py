"""Crowds of requests, and what does not go on: nobody is held up, and the mount ends in time."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mounted import conftest
from mounted.conftest import TIMEOUT, Mount, sh, wait_until
from mounted.others import GROUP, NOBODY, as_other

SLOW_DAEMON = [sys.executable, Path(__file__).with_name("slow_daemon.py")]
SLOWEST = "1b36:0010/bar0"  # 50 ms an access, as in slow_daemon.py
SHARED = ("-o", "allow_other", "--group", str(GROUP), "--mode", "660")

# What the end of a mount may take, in seconds, on a machine with little else to do.
ENDING = 2.0


def started_by(command, machine, directory, *options):
    """A mount that another command than barfs serves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "BARFS", command)
        return Mount(machine, directory, *options)


@pytest.fixture
def slow(machine, public, tmp_path):
    """A mount for a group, in which some BARs are slow."""
    mount = started_by([*SLOW_DAEMON, tmp_path / "record"], machine, public, *SHARED)
    yield mount
    assert mount.end() == 0
    assert "Traceback" not in mount.log


@contextlib.contextmanager
def crowd(mount, path, clients, *, uid=NOBODY, write=0, length=16):
    """So many threads of a member's that read a file, or write to it, again and again.

    Once they are at it, as far as that can be.
    """
    program = Path(__file__).with_name("crowd_client.py")
    words = [program, mount.path / path, uid, GROUP, clients, length, write]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.wait(TIMEOUT)
        process.stdout.close()


def waits(request, count=60):
    """How long a request takes, again and again."""
    found = []
    for _ in range(count):
        started = time.perf_counter()
        request()
        found.append(time.perf_counter() - started)
    return found


def test_a_thousand_clients_of_a_slow_device_hold_up_nobody_else(slow):
    other = os.open(slow.path / "8086:100e/x32/bar0@8", os.O_RDONLY)
    with crowd(slow, SLOWEST, 1000) as clients:
        for request in (
            lambda: (slow.path / "1af4:1110/bar2").stat(),
            lambda: os.listdir(slow.path / "pci"),
            lambda: os.pread(other, 99, 0),
            lambda: (slow.path / "1af4:1110/u32/bar0@0+4").read_bytes(),
        ):
            found = waits(request)
            assert statistics.median(found) < 0.05, found
            assert max(found) < 5, found
        # Root has its turn at the slow device, too: an access or two of others lie before it. All
        # that they ask for takes 200 s.
        started = time.monotonic()
        assert len((slow.path / f"{SLOWEST}@20+4").read_bytes()) == 4
        assert time.monotonic() - started < 5
        clients.send_signal(signal.SIGTERM)
        outcomes = json.loads(clients.stdout.readline())
    assert set(outcomes) == {"done", "EAGAIN"}
    assert outcomes["done"] > 0
    os.close(other)


def memory(mount):
    """Resident, in MiB."""
    status = Path(f"/proc/{mount.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_writes_that_wait_take_little_memory(slow):
    before = memory(slow)
    with crowd(slow, SLOWEST, 240, write=1, length=16384):
        for _ in range(20):
            (slow.path / "pci").stat()
        assert memory(slow) - before < 60
        slow.process.terminate()  # or the clients would wait for minutes
        slow.process.wait(TIMEOUT)


@pytest.mark.parametrize("clients", [1, 200])
def test_it_ends_at_once_however_much_waits(slow, clients):
    with crowd(slow, SLOWEST, clients, length=8192):
        slow.process.terminate()
        started = time.monotonic()
        assert slow.process.wait(TIMEOUT) == 0
        assert time.monotonic() - started < ENDING + 1


HANGING_DISK = """
import os, sys, time
from barfs.journal import logfile
from barfs.commands.cli import main

class Os:
    def __getattr__(self, name):
        return getattr(os, name)

    @staticmethod
    def write(fd, data):
        print("the disk hangs", file=sys.stderr, flush=True)
        time.sleep(3600)

logfile.os = Os()
main()
"""


def test_a_log_on_a_disk_that_hangs_keeps_nobody(machine, tmp_path):
    mount = started_by(
        [sys.executable, "-c", HANGING_DISK], machine, tmp_path, "--log", tmp_path / "file"
    )
    (mount.path / "8086:100e/x32/bar0@8").write_text("1")
    wait_until(lambda: "the disk hangs" in mount.log, "nothing is written")
    assert statistics.median(waits(lambda: os.listdir(mount.path))) < 0.05
    mount.process.terminate()
    started = time.monotonic()
    assert mount.process.wait(TIMEOUT) == 0
    assert time.monotonic() - started < ENDING + 1


NO_THREADS = """
import sys, trio
from pathlib import Path
from barfs.commands.cli import main

real = trio._threads.start_thread_soon

def start(*arguments):
    if Path(sys.argv[-1]).with_name("no threads").exists():
        raise RuntimeError("can't start new thread")
    real(*arguments)

trio._threads.start_thread_soon = start
main()
"""


def test_without_threads_it_lives_and_the_log_is_written_once_there_are_some(machine, tmp_path):
    mount = started_by(
        [sys.executable, "-c", NO_THREADS], machine, tmp_path, "--log", tmp_path / "file"
    )
    (tmp_path / "no threads").touch()
    (mount.path / "8086:100e/x32/bar0@8").write_text("0xbeef")
    wait_until(lambda: "can't start new thread" in mount.log, "it is not noticed")
    for _ in range(3):
        assert "1af4:1110" in os.listdir(mount.path)
    (tmp_path / "no threads").unlink()
    wait_until(lambda: b"0xbeef" in (tmp_path / "file").read_bytes(), "nothing is written")
    assert mount.log.count("can't start new thread") == 1
    assert mount.end() == 0


@pytest.mark.parametrize(
    ("options", "read_only"), [("ro,rw", False), ("rw,ro", True), ("ro,rw,ro", True), ("rw", False)]
)
@pytest.mark.parametrize("turn", range(3))
def test_the_last_one_of_ro_and_rw_counts(machine, tmp_path, options, read_only, turn):
    """For the kernel as for barfs, each time; the order was chance before."""
    mount = Mount(machine, tmp_path, "-o", options)
    line = sh(f"grep ' {mount.path} ' /proc/mounts").stdout.decode()
    assert line.split()[3].split(",")[0] == ("ro" if read_only else "rw")
    done = sh(f"echo 1 > {mount.path}/8086:100e/x32/bar0@8")
    assert (b"Read-only file system" in done.stderr) is read_only
    assert mount.end() == 0


def test_a_flood_of_refusals_takes_nothing_from_the_log(machine, public, tmp_path):
    """One process of nobody's, who may ask for names and no more."""
    file = tmp_path / "file"
    mount = Mount(machine, public, *SHARED, "--log", file)
    (mount.path / "8086:100e/x32/bar0@8").write_text("0x66666666")

    def flood():
        for n in range(30_000):
            with contextlib.suppress(FileNotFoundError):
                os.stat(mount.path / f"nope-{n}")

    as_other(flood)
    lines = [json.loads(line) for line in (mount.path / "log").read_bytes().splitlines()]
    assert [line["value"] for line in lines if line["event"] == "write"] == ["0x66666666"]
    wait_until(
        lambda: (
            sum(
                json.loads(line).get("times", 1)
                for line in (mount.path / "log").read_bytes().splitlines()
                if b'"refused"' in line
            )
            == 30_000
        ),
        "what was refused is not counted",
    )
    assert file.stat().st_size < 1 << 20
    assert mount.log_path.stat().st_size < 1 << 20
    assert mount.end() == 0


@pytest.mark.parametrize(
    "name",
    [
        *("sys/bus/pci/devices/0000:00:04.0/" + name for name in ("vendor", "resource", "config")),
        *("sys/bus/pci/devices/0000:00:04.0/" + name for name in ("resource0", "power_state")),
        *("proc/iomem", "mem"),
    ],
)
def test_a_pipe_in_a_saved_tree_holds_nobody_up(machine, tmp_path, name):
    """Nobody ever opens its other end."""
    file = machine.sysfs.parent / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    mount = Mount(machine, tmp_path)
    for path in ("1af4:1110/bar0", "pci/0000:00:04.0/info", "phys", "status", "8086:100e/bar0"):
        command = f"timeout 10 head -c 4 {mount.path}/{path}; timeout 10 ls {mount.path}/{path}"
        assert sh(command).returncode != 124, path
    assert sh(f"timeout 10 head -c 4 {mount.path}/pci/0000:00:03.0/config").returncode == 0
    assert mount.end() == 0
    assert "Traceback" not in mount.log
