"""Whatever becomes of a command's terminal, nothing is left behind, and no traceback shows."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mounted.conftest import (
    TIMEOUT,
    barfs,
    daemons,
    is_mounted,
    machine_options,
    wait_until,
)

SESSION = Path(__file__).parents[2] / "tools/article"
PROGRAM = Path(sys.executable).with_name("barfs")

# The trials of a command end after so many, or so many seconds, whichever comes first; the machine
# may be slow.
TRIALS = 120
SECONDS = 60
AT_LEAST = 20

INTERRUPTED = {-signal.SIGINT, 128 + signal.SIGINT}


@pytest.fixture
def private(fuse, tmp_path, monkeypatch):
    """A directory for what commands make in /tmp."""
    path = tmp_path / "private"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def mounts_below(directory):
    return [
        line.split()[1]
        for line in Path("/proc/mounts").read_text().splitlines()
        if line.split()[1].startswith(f"{directory}/")
    ]


def left(directory):
    """What lies below a directory, and what is mounted there."""
    return [*mounts_below(directory), *os.listdir(directory)]


def interrupted(command, directory, delay, number=signal.SIGINT):
    """The exit status and standard error of a command that gets a signal after a time.

    It has a process group of its own, all of which gets the signal, as from a terminal.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(directory)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    _, said = process.communicate(timeout=TIMEOUT)
    return process.returncode, said.decode()


def duration(command, directory):
    """How long a command takes when it is let alone."""
    start = time.monotonic()
    subprocess.run(
        command, env={**os.environ, "TMPDIR": str(directory)}, capture_output=True, check=False
    )
    return time.monotonic() - start


def trials(tmp_path, words, check, seed):
    """Interrupt a command at random times, and check what is left in a directory of its own."""
    rng = random.Random(seed)
    base = tmp_path / "alone"
    base.mkdir()
    longest = 1.3 * duration([PROGRAM, *words(base)], base)
    check(base, 0)
    deadline = time.monotonic() + SECONDS

    def one(number):
        if number >= AT_LEAST and time.monotonic() > deadline:
            return None
        directory = tmp_path / f"trial-{number}"
        directory.mkdir()
        delay = rng.uniform(0, longest)
        status, said = interrupted([PROGRAM, *words(directory)], directory, delay)
        where = f"after {delay:.4f} s of {longest:.4f}"
        assert said == "", where
        assert status in {0, *INTERRUPTED}, where
        check(directory, status)
        return status

    with ThreadPoolExecutor(2) as pool:
        statuses = [status for status in pool.map(one, range(TRIALS)) if status is not None]
    # Some came in time, and not all.
    assert set(statuses) & INTERRUPTED
    return statuses


def test_ctrl_c_on_a_demo(fuse, tmp_path):
    def check(directory, status):
        found = mounts_below(directory)
        assert bool(found) == (status == 0)
        for mountpoint in found:
            assert barfs("umount", mountpoint).returncode == 0
        wait_until(lambda: not left(directory), "something is left")

    trials(tmp_path, lambda _: ["demo"], check, 1)
    assert not daemons(tmp_path)


def test_ctrl_c_on_a_mount(machine, tmp_path):
    options = [f"--{name}={path}" for name, path in vars(machine).items()]

    def words(directory):
        (directory / "bars").mkdir()
        return ["mount", *options, directory / "bars"]

    def check(directory, status):
        where = directory / "bars"
        assert is_mounted(where) == (status == 0)
        if status == 0:
            assert barfs("umount", where).returncode == 0
        wait_until(lambda: not daemons(where), "a daemon is left")

    trials(tmp_path, words, check, 2)


@pytest.mark.parametrize("command", ["ls", "ls -v", "doctor", "help mount", "umount -q ."])
def test_ctrl_c_on_what_leaves_nothing(machine, tmp_path, monkeypatch, command):
    monkeypatch.setitem(globals(), "TRIALS", 30)
    words = command.split()
    if words[0] == "ls":
        words += ["--sysfs", machine.sysfs]
    elif words[0] == "doctor":
        words += machine_options(machine)
    trials(tmp_path, lambda _: words, lambda directory, _: None, 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_closes_before_the_mount_is_there(fuse, tmp_path, number):
    """As Ctrl-C: the signals that end a mount."""
    longest = duration([PROGRAM, "demo"], tmp_path)
    for mountpoint in mounts_below(tmp_path):
        assert barfs("umount", mountpoint).returncode == 0
    wait_until(lambda: not left(tmp_path), "something is left")
    for part in range(10):
        status, said = interrupted([PROGRAM, "demo"], tmp_path, longest * part / 10, number)
        assert said == ""
        assert status in {0, -number}
        found = mounts_below(tmp_path)
        assert bool(found) == (status == 0)
        for mountpoint in found:
            assert barfs("umount", mountpoint).returncode == 0
        wait_until(lambda: not left(tmp_path), "something is left")


SIMULATED = "--sysfs {0.sysfs} --proc {0.proc} --devmem {0.devmem}"
NO_SPACE = "barfs: standard output: No space left on device\n"
CLOSED = "barfs: standard output: Bad file descriptor\n"
GONE = "barfs: the working directory is gone; go to another one: cd\n"


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        # A standard output that takes nothing.
        ("ls --sysfs {0.sysfs} >/dev/full", 1, NO_SPACE),
        (f"doctor {SIMULATED} >/dev/full", 1, NO_SPACE),
        ("help >/dev/full", 1, NO_SPACE),
        ("mount --help >/dev/full", 1, NO_SPACE),
        ("--version >/dev/full", 1, NO_SPACE),
        ("demo >/dev/full", 1, NO_SPACE),
        ("demo bars >/dev/full", 1, NO_SPACE),
        ("ls --sysfs {0.sysfs} >&-", 1, CLOSED),
        (f"doctor {SIMULATED} >&-", 1, CLOSED),
        ("help >&-", 1, CLOSED),
        ("demo >&-", 1, CLOSED),
        ("demo -f >&-", 1, None),  # its log comes before
        ("demo -f >/dev/full", 1, None),
        # There is nobody to be told.
        ("demo >&- 2>&-", 1, ""),
        ("demo >/dev/full 2>/dev/full", 1, ""),
        ("ls --sysfs /nowhere >&- 2>&-", 1, ""),
        ("mont 2>/dev/full", 2, ""),
        ("mount 2>&-", 2, ""),
        # Whoever reads has gone.
        ("ls --sysfs {0.sysfs} | true", 141, ""),
        ("help | true", 141, ""),
        ("demo | true", 141, ""),
        # Whoever reads wants the beginning.
        ("ls --sysfs {0.sysfs} | head -n 1 | grep -q e1000", 0, ""),
        # A working directory that was removed.
        *(
            (f"{words}", 1, GONE)
            for words in (
                f"mount {SIMULATED} mnt",
                "mount --log x {1}/bars",
                "umount mnt",
                "demo mnt",
                "doctor --sysfs sys",
            )
        ),
    ],
)
def test_where_it_cannot_say_or_do_it(machine, private, where, command, status, said):
    """One line or nothing, and nothing is left."""
    program, *after = command.format(machine, where.parent).split(" | ")
    # A pipe's reader ends before anything is written to it.
    pause = "sleep 0.3; " if after == ["true"] else ""
    line = " | ".join([f"{{ {pause}{PROGRAM} {program}; echo $? >&3; }}", *after])
    if said == GONE:
        line = f"mkdir gone; cd gone; rmdir ../gone; {line}"
    done = subprocess.run(
        ["bash", "-c", f"exec 3>status; {line}"],
        cwd=where.parent,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT,
        check=False,
    )
    assert int((where.parent / "status").read_text()) == status
    assert said is None or done.stderr.decode() == said
    assert b"Traceback" not in done.stderr
    assert not is_mounted(where)
    wait_until(lambda: not left(private), "something is left")


def test_a_mount_says_nothing_to_a_closed_stdout(machine, where):
    """It has nothing to say there, and works; no file takes the place of the stream."""
    options = " ".join(f"--{name}={path}" for name, path in vars(machine).items())
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"):
        done = subprocess.run(
            ["bash", "-c", f"{PROGRAM} mount {options} {where} {closed}"],
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), closed
        assert "1af4:1110" in os.listdir(where)
        assert barfs("umount", where).returncode == 0


def test_the_beginning_of_what_a_demo_says(private):
    """Who reads no more than the first line has it all, and the mount stays."""
    done = subprocess.run(
        ["bash", "-c", f"{PROGRAM} demo | head -n 1"], capture_output=True, text=True, check=True
    )
    mountpoint = done.stdout.split()[-1]
    assert done.stderr == ""
    assert is_mounted(mountpoint)
    assert barfs("umount", mountpoint).returncode == 0


def session(tmp_path, line):
    """The session that `make demo` runs, as a part of a line of bash; its exit status and words."""
    done = subprocess.run(
        ["bash", "-c", line.format(f"{{ {SESSION}; echo $? >{tmp_path}/status; }}")],
        env={**os.environ, "BARFS": str(PROGRAM)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return int((tmp_path / "status").read_text()), done.stdout, done.stderr


def test_the_session_whose_beginning_is_enough(private, tmp_path):
    for line in ("{0} | head -n 3", "{0} | true", "{0} >/dev/full 2>/dev/null"):
        status, _, said = session(tmp_path, line)
        assert status != 0
        assert "Traceback" not in said
        # The daemon ends a little after its mount.
        wait_until(lambda: not left(private), "something is left behind")


def test_ctrl_c_on_the_session(fuse, tmp_path):
    environment = {**os.environ, "BARFS": str(PROGRAM), "TMPDIR": str(tmp_path)}
    start = time.monotonic()
    subprocess.run([SESSION], env=environment, capture_output=True, check=True)
    longest = time.monotonic() - start
    rng = random.Random(4)
    for _ in range(12):
        process = subprocess.Popen(
            [SESSION],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        time.sleep(rng.uniform(0, longest))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT)
        assert b"Traceback" not in said
        wait_until(lambda: not left(tmp_path), "something is left")
