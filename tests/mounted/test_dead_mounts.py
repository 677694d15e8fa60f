"""What a killed or stopped daemon leaves, and that one command mends it."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from barfs.daemon import mountpoint, serve
from barfs.daemon.background import run_in_background
from barfs.daemon.mountpoint import MountError
from barfs.machine import simulated
from mounted.conftest import (
    BARFS,
    TIMEOUT,
    Mount,
    barfs,
    daemons,
    is_mounted,
    machine_options,
    one_line,
    sh,
    wait_until,
)
from mounted.others import RUN_AS_NOBODY


def mount_in_background(machine, where, *options):
    """The id of the daemon."""
    done = barfs("mount", *machine_options(machine), *options, where)
    assert done.returncode == 0, done.stderr
    (process,) = daemons(where)
    return process


def kill(process, where):
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: not daemons(where), "it lives on")


@contextlib.contextmanager
def users(where, kind):
    """Somebody who uses the mount; what he does after the daemon's end is his affair."""
    commands = {
        "nobody": "exec sleep infinity",
        "a shell": f"cd {where}/pci; exec sleep infinity",
        "an open file": f"exec 3<>{where}/1af4:1110/bar2; exec sleep infinity",
        "load": f"while :; do dd if={where}/1af4:1110/bar2 bs=4K; ls -lR {where}; done",
    }
    command = f"echo ready; ({commands[kind]}) >/dev/null 2>&1"
    process = subprocess.Popen(
        ["bash", "-c", command], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        if kind != "nobody":
            wait_until(lambda: process.poll() is None and busy(where, kind), "it uses nothing")
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(TIMEOUT)
        process.stdout.close()


def busy(where, kind):
    if kind == "load":
        return True
    return sh(f"fuser -m {where}").returncode == 0


KINDS = ["nobody", "a shell", "an open file", "load"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_mount_is_replaced_with_force_only(machine, where, kind):
    process = mount_in_background(machine, where)
    with users(where, kind):
        kill(process, where)
        line = one_line(barfs("mount", *machine_options(machine), where))
        assert f"{where} holds a dead mount; replace it with the option --force" in line
        assert f"barfs umount {where}" in line
        assert one_line(barfs("demo", where)) == line
        mount_in_background(machine, where, "--force")
        assert "1af4:1110" in os.listdir(where)
        with open("/proc/mounts") as table:
            assert table.read().count(f" {where} ") == 1
    assert barfs("umount", where).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_mount_is_cleared(machine, where, kind):
    process = mount_in_background(machine, where)
    with users(where, kind):
        kill(process, where)
        done = barfs("umount", where)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert os.listdir(where) == []


def test_demo_replaces_a_dead_mount(machine, where):
    kill(mount_in_background(machine, where), where)
    assert barfs("demo", "--force", where).returncode == 0
    assert barfs("umount", where).returncode == 0


def test_several_dead_mounts_in_one_place(machine, where, tmp_path):
    """As one gets by moving mounts."""
    other = tmp_path / "other"
    other.mkdir()
    for path in (where, other):
        kill(mount_in_background(machine, path), path)
    sh(f"mount --bind {other} {where} && umount -l {other}")
    mount_in_background(machine, where, "--force")
    with open("/proc/mounts") as table:
        assert table.read().count(f" {where} ") == 1
    assert barfs("umount", where).returncode == 0


@pytest.mark.parametrize("foreground", [[], ["-f"]])
def test_a_live_mount_is_never_replaced(mount, foreground):
    options = ["--force", *foreground, *machine_options(mount.machine)]
    for command in (["mount", *options], ["demo", *options]):
        assert "already mounted; unmount with" in one_line(barfs(*command, mount.path))
    assert mount.alive()


def test_other_mounts_are_never_replaced(machine):
    assert "is already a proc mount" in one_line(
        barfs("mount", "--force", *machine_options(machine), "/proc")
    )


def test_a_stopped_daemon_holds_nobody_up(machine, where):
    """No question to it without an end; it is no dead mount, as it may go on."""
    process = mount_in_background(machine, where)
    os.kill(process, signal.SIGSTOP)
    started = time.monotonic()
    try:
        for options in ([], ["--force"]):
            done = barfs("mount", *options, *machine_options(machine), where)
            assert "its daemon does not answer; find and kill it" in one_line(done)
        inside = where / "pci"
        done = barfs("mount", *machine_options(machine), where.parent / "nowhere")
        assert "does not exist" in one_line(done)
        with users(where.parent, "nobody"):
            held = os.open(where, os.O_PATH)
            try:
                done = barfs("umount", where)
                assert "its daemon does not answer: find and kill it" in one_line(done)
            finally:
                os.close(held)
        assert "is not a barfs mount" in one_line(barfs("umount", inside))
        assert time.monotonic() - started < 5 * mountpoint.ANSWER_TIMEOUT
    finally:
        os.kill(process, signal.SIGCONT)
    assert "1af4:1110" in os.listdir(where)
    os.kill(process, signal.SIGSTOP)
    try:
        assert barfs("umount", where).returncode == 0
    finally:
        os.kill(process, signal.SIGCONT)


# Root gets no answer of somebody else's mounts, nor he of root's. In a mount namespace of its own,
# for a /dev/fuse as systems have it: everybody's.
AS_SOMEBODY = """
set -e
mount --make-rprivate /
mknod -m 666 {directory}/fuse c 10 229
mount --bind {directory}/fuse /dev/fuse
root() {{ {python} -m barfs "$@"; }}
somebody() {{ {python} -c '{program}' "$@"; }}
# All of its threads: the last one closes its files. Its parent may not have asked for it yet.
ended() {{
    while [ -e /proc/$1/stat ]; do
        threads=$(ls /proc/$1/task 2>/dev/null | wc -l)
        ! grep -qs ') Z' /proc/$1/stat || [ $threads -gt 1 ] || break
    done
}}
mounting="mount --sysfs {machine.sysfs} --proc {machine.proc} --devmem {machine.devmem} {where}"
somebody $mounting
grep -c ' {where} fuse.barfs .*user_id=65534' /proc/mounts
! root $mounting --force
! somebody $mounting --force
process=$(pgrep -f -- '[-]-sysfs {machine.sysfs} ')
# A shell of his in it.
setpriv --reuid 65534 --regid 65534 --clear-groups \\
    bash -c 'cd {where} && echo in && exec sleep infinity >/dev/null' > {directory}/shell &
until grep -q in {directory}/shell; do kill -0 $!; done
kill -9 $process
ended $process
! {clearer} $mounting
{clearer} umount {where}
! grep ' {where} ' /proc/mounts
somebody $mounting
kill $!
process=$(pgrep -f -- '[-]-sysfs {machine.sysfs} ')
kill -9 $process
ended $process
{clearer} $mounting --force
{clearer} umount {where}
! grep ' {where} ' /proc/mounts
"""


# The interpreter may lie where nobody else can look, so it changes its user itself.
@pytest.fixture
def open_to_all(fuse):
    """A directory that somebody else may enter; a start of pytest closes those that it makes."""
    with tempfile.TemporaryDirectory(prefix="barfs-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "machine").mkdir()
        (directory / "bars").mkdir()
        yield directory


@pytest.mark.parametrize("clearer", ["somebody", "root"])
def test_the_dead_mount_of_somebody_else(open_to_all, clearer):
    machine = simulated.build(open_to_all / "machine")
    where = open_to_all / "bars"
    sh(f"chown -R nobody {open_to_all}/machine {where}")
    script = AS_SOMEBODY.format(
        directory=open_to_all,
        python=sys.executable,
        program=RUN_AS_NOBODY,
        machine=machine,
        where=where,
        clearer=clearer,
    )
    done = subprocess.run(
        ["unshare", "-m", "bash", "-s"],
        input=script,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done
    assert done.stdout == "1\n"
    # bash may have a word on the shell that was ended.
    lines = [line for line in done.stderr.splitlines() if line.startswith("barfs: ")]
    assert len(lines) == 3, done.stderr
    assert all("is already mounted; unmount with" in line for line in lines[:2])
    assert "holds a dead mount" in lines[2]


def test_killed_before_it_is_ready(machine, where, monkeypatch):
    """It has mounted, and nobody has heard of it yet."""
    monkeypatch.setattr(
        serve.trio, "run", lambda *_: is_mounted(where) and os.kill(os.getpid(), signal.SIGKILL)
    )
    settings = serve.Settings(where, **vars(machine))
    finished = []
    with pytest.raises(MountError, match=r"was ended by signal 9 \(Killed\) before the mount"):
        run_in_background(settings, lambda: None, lambda: finished.append(True))
    assert not is_mounted(where)


def test_signals_before_it_is_ready_wait(machine, where, monkeypatch):
    """Their default would leave a dead mount."""
    run = serve.trio.run
    monkeypatch.setattr(
        serve.trio,
        "run",
        lambda *arguments: os.kill(os.getpid(), signal.SIGTERM) or run(*arguments),
    )
    settings = serve.Settings(where, **vars(machine))
    with contextlib.suppress(MountError):  # it may end before it is asked for anything
        run_in_background(settings, lambda: None, lambda: None)
    wait_until(lambda: not is_mounted(where), "it lives on")


def test_without_memory_nobody_hangs_and_no_dead_mount_is_left(machine, tmp_path):
    """pyfuse3 can't copy what is written, so it can't answer: it ends, as for a signal."""
    mount = Mount(machine, tmp_path)
    bar = os.open(mount.path / "1af4:1110/bar2", os.O_RDWR)
    with open(f"/proc/{mount.process.pid}/statm") as sizes:
        used = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.prlimit(mount.process.pid, resource.RLIMIT_AS, (used // 2, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match=r"abort|not connected"):
        os.pwrite(bar, bytes(1 << 20), 0)
    with contextlib.suppress(OSError):  # what flush says to it
        os.close(bar)
    assert mount.process.wait(TIMEOUT) == 1
    assert not is_mounted(mount.path)
    # It runs out in Python or in libfuse, whichever is the first to ask for some.
    assert "MemoryError" in mount.log or "Cannot allocate memory" in mount.log


def test_a_handler_without_memory_fails_and_the_mount_lives(machine, where):
    """An allocation that fails in barfs itself is EIO."""
    script = (
        "from barfs import nodes\n"
        "from barfs.commands import cli\n"
        "def fail(*_): raise MemoryError\n"
        "nodes.Tree.entries = fail\n"
        "cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "mount", "-f", *machine_options(machine), where],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: is_mounted(where) and (where / "pci").exists(), "no mount")
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output error"):
                os.listdir(where)
        assert (where / "1af4:1110/bar2").exists()
    finally:
        process.terminate()
        assert process.wait(TIMEOUT) == 0


def test_a_log_on_a_full_disk(machine, where):
    with open("/dev/full", "wb") as full:
        check_unwritable_log(machine, where, full)


def test_a_log_that_nobody_reads(machine, where):
    """A pipe, full from the start; what is lost is counted once there is room again."""
    receive, send = os.pipe()
    os.set_blocking(send, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(send, b"x" * 4096)
    os.set_blocking(send, True)

    def drain():
        while len(os.read(receive, 1 << 20)) == 1 << 20:
            pass

    with os.fdopen(send, "wb") as pipe:
        check_unwritable_log(machine, where, pipe, drain)
    said = os.read(receive, 1 << 16).decode()
    os.close(receive)
    assert "lines of the log were lost here\nbarfs: open: 1af4:1110: cannot be" not in said
    assert "lines of the log were lost here" in said


def check_unwritable_log(machine, where, file, then=lambda: None):
    """In the foreground, with the log into a file that takes nothing."""
    process = subprocess.Popen(
        [*BARFS, "mount", "-f", *machine_options(machine), where], stderr=file
    )
    try:
        wait_until(lambda: is_mounted(where) and (where / "1af4:1110").exists(), "no mount")
        for _ in range(200):
            with pytest.raises(FileNotFoundError):
                os.stat(where / "pci/0000:00:04.0/bar9")
        then()
        with pytest.raises(OSError, match="No such device or address"):
            os.stat(where / "pci/0000:00:04.0/bar2@fffffffff")
        assert process.poll() is None
        assert "1af4:1110" in os.listdir(where)
    finally:
        process.terminate()
        assert process.wait(TIMEOUT) == 0


def test_the_mount_of_a_private_home(machine, tmp_path):
    """Below a directory that is its owner's alone the daemon has to unmount once more."""
    home = tmp_path / "home"
    home.mkdir()
    mount = Mount(machine, home)
    os.chown(home, 65534, 65534)
    home.chmod(0o700)
    assert mount.end() == 0
