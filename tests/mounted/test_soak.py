"""All at once for BARFS_SOAK_SECONDS seconds: clients, hostile users, two mounts, short-lived ones.

`make soak` has it take ten minutes. What the daemons hold stays the same meanwhile.
"""

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from mounted.conftest import BARFS, TIMEOUT, is_mounted, machine_options, sh, wait_until
from mounted.others import GROUP, NOBODY, as_other
from mounted.test_bad_input import add_device
from mounted.test_crowd import SHARED, SLOW_DAEMON, SLOWEST, crowd, started_by
from mounted.test_enable import ADDRESS, Command
from mounted.test_load import CLIENT, COMING_AND_GOING, Watched, unplug_and_plug
from mounted.test_unmounting import connection_of, connections  # noqa: F401 - a fixture

SECONDS = float(os.environ.get("BARFS_SOAK_SECONDS", "40"))
QUARTERS = 4
# What a daemon may have grown by from the second quarter to the last, in KiB. A short soak ends
# before its caches are full.
GROWTH = (8 << 10) if SECONDS > 120 else (24 << 10)
# What the end of a mount may take, in seconds; 2 on a machine that does nothing else.
ENDING = 6


class Actor(threading.Thread):
    """Does something again and again, until it is told to end. Counts what came of it."""

    def __init__(self, name, act):
        super().__init__(name=name, daemon=True)
        self._act, self._over = act, threading.Event()
        self.done, self.wrong = Counter(), []
        self.start()

    def run(self):
        while not self._over.is_set() and len(self.wrong) < 3:
            try:
                self.done[self._act()] += 1
            except Exception as error:  # noqa: BLE001 - for the thread that asserts
                self.wrong.append(f"{self.name}: {type(error).__name__}: {error}")

    def end(self):
        self._over.set()
        self.join(TIMEOUT)
        assert not self.is_alive(), self.name


def names_that_nobody_has(mount):
    """Somebody without any right asks for what is there and what is not, and lists."""
    turn = random.randrange(1 << 20)

    def ask():
        opened = [os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY) for _ in range(50)]
        for n in range(300):
            for name in (f"nope-{turn}-{n}", f"pci/0000:00:04.0/bar2@{(turn + n) % 99999:x}+4"):
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    os.stat(mount.path / name)
        for fd in opened:
            os.listdir(fd)
            os.close(fd)
        return "asked"

    return as_other(ask)


def opens_of_a_member(mount):
    """He opens as many files as he may, and looks into each at several places."""

    def take():
        held = []
        with contextlib.suppress(OSError):
            for n in range(200):
                held.append(os.open(mount.path / f"1af4:1110/bar2@{8 * n:x}", os.O_RDWR))
                for offset in (0, 0x8000, 0x80000):
                    os.pread(held[-1], 4, offset)
        for fd in held:
            os.close(fd)
        return "taken"

    return as_other(take, GROUP)


def decoding(mounts, command):
    """A BAR is on as long as any mount has it open."""
    for mount in random.sample(mounts, 2):
        fd = os.open(mount.path / "pci" / ADDRESS / "x16/bar1", os.O_RDONLY)
        for other in mounts:
            with open(other.path / "pci" / ADDRESS / "bar1", "rb", buffering=0):
                pass
            assert command.register & 1, "turned off under an open file"
        os.close(fd)
    return "on"


def short_life(machine, directory, fusectl):
    """A mount of its own with a request under way, and one of the ways to end."""
    where = directory / f"short-{random.randrange(1 << 30):x}"
    where.mkdir()
    how = random.choice(("SIGTERM", "SIGINT", "abort", "umount -l", "SIGKILL", "closed streams"))
    if how == "closed streams":
        return closed_streams(machine, where)
    mount = started_by([*SLOW_DAEMON, where / "record"], machine, where)
    fd = os.open(mount.path / SLOWEST, os.O_RDWR)
    reader = threading.Thread(target=_read, args=(fd,))
    reader.start()
    wait_until(lambda: (where / "record").stat().st_size, "no read begins")
    started, expected = time.monotonic(), 0
    if how == "abort":
        (fusectl / connection_of(mount.path) / "abort").write_text("1")
        expected = 1
    elif how == "umount -l":
        assert sh(f"umount -l {mount.path}").returncode == 0
        mount.process.terminate()
    else:
        mount.process.send_signal(signal.Signals[how])
        expected = -signal.SIGKILL if how == "SIGKILL" else 0
    assert mount.process.wait(TIMEOUT) == expected, how
    assert time.monotonic() - started < ENDING, how
    reader.join(TIMEOUT)
    assert not reader.is_alive(), f"a client is left after {how}"
    with contextlib.suppress(OSError):  # what flush says to it
        os.close(fd)
    assert "Traceback" not in mount.log
    if how == "SIGKILL":
        unmount(mount.path)
    assert not is_mounted(mount.path)
    return how


def _read(fd):
    with contextlib.suppress(OSError):
        os.pread(fd, 1 << 14, 0)


def unmount(path):
    """Once the children of other actors have ended, who were forked with a file of it open."""
    command = f"{sys.executable} -m barfs umount {path}"
    wait_until(lambda: sh(command).returncode == 0, f"{path} is busy")


def closed_streams(machine, where):
    path = where / "bars"
    path.mkdir()
    words = " ".join(map(str, (sys.executable, "-m", "barfs", "mount", *machine_options(machine))))
    closed = random.choice((">&-", "2>&-", "<&- >&- 2>&-"))
    assert sh(f"{words} {path} {closed}").returncode == 0
    assert len((path / "1af4:1110/bar2").read_bytes()) == 1 << 20
    unmount(path)
    return "closed streams"


def rotation(log):
    """The log file is moved away, as logrotate does it."""
    time.sleep(0.5)
    with contextlib.suppress(FileNotFoundError):
        log.rename(log.with_suffix(".1"))
    return "rotated"


def prompt(mount):
    """How long root waits for what others have no part in, in seconds."""
    started = time.perf_counter()
    os.stat(mount.path / "1af4:1110/bar2")
    os.listdir(mount.path / "pci")
    (mount.path / "8086:100e/config").read_bytes()
    return time.perf_counter() - started


def figures(samples, waits, actors, load):
    """What the soak has seen, as a few lines."""
    for name, quarters in samples.items():
        for what in ("KiB", "descriptors", "mappings"):
            found = [[one[what] for one in quarter] for quarter in quarters]
            medians = [round(statistics.median(some)) for some in found if some]
            print(f"{name}: {what} in each quarter: {medians}")
    print(f"root waited {statistics.median(waits) * 1e3:.1f} ms, at most {max(waits) * 1e3:.0f} ms")
    for actor in actors:
        print(f"{actor.name}: {dict(actor.done)}")
    print(f"clients: {dict(load)}")


@pytest.fixture
def two(machine, public):
    """Two mounts of one machine, the second with slow BARs; by their names."""
    mounts = {}
    for name in ("fast", "slow"):
        (public / name).mkdir()
        command = [*SLOW_DAEMON, public / "record"] if name == "slow" else BARFS
        log = ["--log", public / "log.json"] if name == "fast" else []
        mounts[name] = started_by(command, machine, public / name, *SHARED, "--enable", *log)
    yield mounts
    for mount in mounts.values():
        assert mount.end() == 0


def test_all_at_once_and_what_is_held_stays_the_same(machine, public, two, connections, capsys):  # noqa: F811
    command = Command(machine)
    command.set(0)
    log = public / "log.json"
    mounts, fast, slow = two, two["fast"], two["slow"]
    (public / "short").mkdir()
    for number in COMING_AND_GOING:
        add_device(fast, number)
    watched = {name: Watched(mount) for name, mount in mounts.items()}
    before = {name: (one.descriptors(), one.mappings()) for name, one in watched.items()}
    samples = {name: [[] for _ in range(QUARTERS)] for name in mounts}
    clients = [
        subprocess.Popen(
            [sys.executable, CLIENT, fast.path, str(n * 8), "8", str(SECONDS)],
            stdout=subprocess.PIPE,
        )
        for n in range(2)
    ]
    actors = [
        Actor("names", lambda: names_that_nobody_has(fast)),
        Actor("opens", lambda: opens_of_a_member(fast)),
        Actor("decoding", lambda: decoding([fast, slow], command)),
        Actor("mounts", lambda: short_life(machine, public / "short", connections)),
        Actor("log", lambda: rotation(log)),
    ]
    waits, start = [], time.monotonic()
    try:
        with crowd(slow, SLOWEST, 100, uid=NOBODY):
            while any(client.poll() is None for client in clients):
                quarter = min(QUARTERS - 1, int(QUARTERS * (time.monotonic() - start) / SECONDS))
                for number in COMING_AND_GOING:
                    unplug_and_plug(fast, number)
                waits.append(prompt(slow))
                for name, one in watched.items():
                    samples[name][quarter].append(
                        {
                            "KiB": one.memory(),
                            "descriptors": one.descriptors(),
                            "mappings": one.mappings(),
                        }
                    )
    finally:
        for actor in actors:
            actor.end()
        results = [json.loads(client.communicate(timeout=TIMEOUT)[0]) for client in clients]
        load = sum((Counter(result["done"]) for result in results), Counter())
        with capsys.disabled():
            print()
            figures(samples, waits, actors, load)
    assert [wrong for result in results for wrong in result["wrong"]] == []
    assert all(all(part) for part in samples.values())
    assert 100 * load["ESTALE"] < load["comes_and_goes"]
    assert [wrong for actor in actors for wrong in actor.wrong] == []
    assert all(actor.done.total() for actor in actors)
    assert statistics.median(waits) < 0.25
    for name, one in watched.items():
        descriptors, mappings = before[name]
        wait_until(lambda: one.descriptors() == descriptors, f"{name} loses descriptors")  # noqa: B023
        assert one.mappings() == mappings
        used = [statistics.median(sample["KiB"] for sample in part) for part in samples[name]]
        assert used[-1] < used[1] + GROWTH, (name, used)
        assert mounts[name].alive()
    wait_until(lambda: command.register == 0, "decoding stays on")
    logs = [one for one in (log, log.with_suffix(".1")) if one.exists()]
    lines = [json.loads(line) for one in logs for line in one.read_text().splitlines()]
    assert lines
