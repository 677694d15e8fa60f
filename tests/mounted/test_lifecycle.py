"""How the command starts, says why it can't, and ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from barfs.daemon import background, serve
from barfs.daemon.mountpoint import MountError
from barfs.machine.simulated import NODENAME_ADDRESS
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

AS_NOBODY = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}


def test_in_the_background_it_returns_when_the_mount_answers(machine, where):
    done = barfs("mount", *machine_options(machine), where)
    # Before anything else, so that a mount that is late would be seen.
    names = os.listdir(where)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "1af4:1110" in names
    (process,) = daemons(where)
    assert os.getsid(process) == process
    assert os.readlink(f"/proc/{process}/cwd") == "/"
    assert {os.readlink(f"/proc/{process}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    assert barfs("umount", where).returncode == 0


def test_relative_mountpoints(machine, where):
    assert barfs("mount", *machine_options(machine), "bars", cwd=where.parent).returncode == 0
    assert is_mounted(where)
    assert barfs("umount", "./bars", cwd=where.parent).returncode == 0


def test_mountpoints_with_unusual_names(machine, tmp_path):
    odd = tmp_path / "a b\\c\té,"
    odd.mkdir()
    assert barfs("mount", *machine_options(machine), odd).returncode == 0
    assert "already mounted" in one_line(barfs("mount", *machine_options(machine), odd))
    assert barfs("umount", odd).returncode == 0
    assert os.listdir(odd) == []


@pytest.mark.parametrize("options", [[], ["-f"]])
def test_mountpoints_that_cannot_be(machine, tmp_path, options):
    mount = ["mount", *options, *machine_options(machine)]
    assert "does not exist; create it with: mkdir -p" in one_line(barfs(*mount, tmp_path / "no"))
    file = tmp_path / "file"
    file.touch()
    assert "is not a directory" in one_line(barfs(*mount, file))
    assert "is already a proc mount" in one_line(barfs(*mount, "/proc"))
    assert not daemons(file)


def test_a_mountpoint_that_would_hide_what_is_read(machine, tmp_path):
    devices = machine.sysfs / "bus/pci/devices"
    for where in (tmp_path, machine.sysfs, devices, devices / "0000:00:04.0", machine.proc):
        done = barfs("mount", *machine_options(machine), where)
        assert f"{where} would hide" in one_line(done)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    assert "would hide" in one_line(barfs("demo", tmp_path, env=environment))
    assert {path.name for path in tmp_path.iterdir()} == {"machine"}


@pytest.mark.parametrize("options", [[], ["-f"]])
def test_a_second_mount_in_the_same_place(mount, options):
    done = barfs("mount", *options, *machine_options(mount.machine), mount.path)
    assert f"already mounted; unmount with: barfs umount {mount.path}" in one_line(done)
    assert mount.alive()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "nonsense"], "unknown option(s): `-o nonsense'"),
        (["-o", "max_read=4096"], "max_read=4096 cuts requests"),
        (["-o", "ro,writeback_cache"], "writeback_cache writes later"),
        (["-o", "subtype=bar"], "subtype=bar hides from umount"),
        (["--sysfs", "/nowhere"], "--sysfs /nowhere is not a directory"),
        (["--proc", "/nowhere"], "--proc /nowhere is not a directory"),
    ],
)
@pytest.mark.parametrize("foreground", [[], ["-f"]])
def test_options_that_cannot_be(machine, where, options, words, foreground):
    arguments = ["mount", *foreground, *machine_options(machine), *options, where]
    assert words in one_line(barfs(*arguments))


def test_wrong_usage():
    for arguments in (["mount"], ["mount", "--bars-via", "magic", "/x"], ["fly"]):
        done = barfs(*arguments)
        assert done.returncode == 2
        assert "usage: barfs" in done.stderr
    assert "umount" in barfs("--help").stdout


def test_what_was_most_likely_not_meant_is_mentioned(machine, where):
    """The mount is made all the same."""
    (where / "hidden").touch()
    patterns = ["--allow-device", "1af4:9999", "--allow-device=00:05.0", "--read-only-device=00:"]
    done = barfs("mount", *machine_options(machine), *patterns, where)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "barfs: --allow-device 1af4:9999 matches none of the functions that are there now",
        f"barfs: {where} is not empty: what is in it is hidden until barfs umount",
    ]
    assert os.listdir(where / "pci") == ["0000:00:05.0"]
    assert barfs("umount", where).returncode == 0
    (where / "hidden").unlink()


def test_without_dev_fuse(machine, where):
    script = (
        "import pathlib; from barfs.commands import cli; from barfs.daemon import settings;"
        "settings.FUSE_DEVICE = pathlib.Path('/dev/fuse/not'); cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "mount", *machine_options(machine), where],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "/dev/fuse/not is missing; modprobe fuse" in one_line(done)


def test_not_being_root(where, tmp_path):
    for directory in (where, *where.parents):
        if "pytest" in directory.name or directory == where:
            directory.chmod(0o755)
    where.parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", RUN_AS_NOBODY, "mount", where],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "for root only; run it with sudo" in one_line(done)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("busy", [False, True])
def test_signals_end_it_cleanly_also_with_files_open(machine, tmp_path, number, busy):
    mount = Mount(machine, tmp_path)
    held = [
        os.open(mount.path / "1af4:1110/bar2", os.O_RDWR),
        os.open(mount.path / "pci", os.O_RDONLY),
    ]
    if not busy:
        while held:
            os.close(held.pop())
    mount.process.send_signal(number)
    assert mount.process.wait(TIMEOUT) == 0
    assert not is_mounted(mount.path)
    assert "Traceback" not in mount.log
    if busy:
        with pytest.raises(OSError):
            os.pread(held[0], 4, 0)
    for fd in held:
        with contextlib.suppress(OSError):  # what flush says to it
            os.close(fd)
    assert os.listdir(mount.path) == []


@pytest.mark.parametrize("command", ["umount", "fusermount3 -u", "umount -l"])
def test_unmounting_by_other_means_ends_it(machine, tmp_path, command):
    mount = Mount(machine, tmp_path)
    assert sh(f"{command} {mount.path}").returncode == 0
    assert mount.process.wait(TIMEOUT) == 0
    assert "Traceback" not in mount.log


def test_a_busy_mount_is_not_unmounted_but_says_so(mount):
    with (mount.path / "1af4:1110/bar0").open("rb"):
        line = one_line(barfs("umount", mount.path))
        name = Path("/proc/self/comm").read_text().strip()
        assert f"{mount.path} is busy: {name} ({os.getpid()}) has a file of it open" in line
        assert mount.alive()
    assert barfs("umount", mount.path).returncode == 0
    assert mount.process.wait(TIMEOUT) == 0


def test_it_is_unmounted_from_inside_too(mount):
    """The command itself is not in the way. It names the mount by its whole path."""
    with (mount.path / "1af4:1110/bar0").open("rb"):
        done = subprocess.run(
            [*BARFS, "umount", "."],
            cwd=mount.path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert f"barfs: {mount.path} is busy: " in one_line(done)
        assert "is in it" not in done.stderr
    done = subprocess.run([*BARFS, "umount", "."], cwd=mount.path, timeout=TIMEOUT, check=False)
    assert done.returncode == 0
    assert mount.process.wait(TIMEOUT) == 0


def test_unmounting_what_is_not_mounted(where):
    assert "is not a barfs mount" in one_line(barfs("umount", where))
    assert "is not a barfs mount" in one_line(barfs("umount", "/proc"))
    assert f"{where}/nowhere does not exist" in one_line(barfs("umount", where / "nowhere"))


@pytest.mark.parametrize(
    ("replacement", "words"),
    [
        (lambda *_: os._exit(9), "the daemon ended with status 9 before the mount answered"),
        (lambda *_: {}["x"], "KeyError: 'x'"),
    ],
)
def test_a_daemon_that_dies_before_it_answers(machine, where, monkeypatch, replacement, words):
    monkeypatch.setattr(background, "serve", replacement)
    settings = serve.Settings(where, **vars(machine))
    with pytest.raises(MountError, match=words):
        background.run_in_background(settings, lambda: None, lambda: None)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where demos make their directories, and nobody else does."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def test_demo_and_its_three_commands(fuse, tmp_path, temporary):
    where = tmp_path / "bars"
    where.mkdir()
    done = barfs("demo", where)
    assert done.returncode == 0, done
    assert done.stderr == ""
    for words in ("1af4:1110.1 -> pci/0000:00:05.0", "bar2  0x100000", "00100000-07fdffff"):
        assert words in done.stdout
    commands = done.stdout.split("Try:\n")[1].split("\n\n")[0].splitlines()
    assert len(commands) == 3
    output = b""
    for command in commands:
        result = sh(command)
        assert result.returncode == 0, result
        output += result.stdout
    assert b"|Dunia,vipi?.....|" in output
    assert sh(f"dd if={where}/phys/{NODENAME_ADDRESS:x}+b").stdout == b"NinjaNinja\0"
    (directory,) = temporary.iterdir()
    ending = done.stdout.splitlines()[-1].split(": ")[1]
    assert ending == f"barfs umount {where}"
    assert barfs(*ending.split()[1:]).returncode == 0
    wait_until(lambda: not directory.exists(), "the machine is left")
    assert os.listdir(where) == []


def test_demo_makes_its_own_mountpoint(fuse, temporary):
    done = barfs("demo")
    (directory,) = temporary.iterdir()
    assert f"is mounted on {directory}/mnt\n" in done.stdout
    assert barfs("umount", directory / "mnt").returncode == 0
    wait_until(lambda: not directory.exists(), "the machine is left")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_in_the_foreground_ends_with_ctrl_c(fuse, where, temporary, number):
    process = subprocess.Popen([*BARFS, "demo", "-f", where], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("To end it"):
            break
    (directory,) = temporary.iterdir()
    assert (where / "1af4:1110/bar2").exists()
    process.send_signal(number)
    assert process.wait(TIMEOUT) == 0
    process.stdout.close()
    assert not directory.exists()


def test_demo_takes_the_options_of_mount(fuse, where, machine):
    shutil.rmtree(machine.sysfs / "bus/pci/devices/0000:00:05.0")
    done = barfs("demo", "-o", "ro", "--bars-via", "devmem", "--sysfs", machine.sysfs, where)
    assert done.returncode == 0, done
    assert "1af4:1110.1" not in done.stdout
    assert b"Read-only file system" in sh(f"echo > {where}/1af4:1110/bar0").stderr
    assert len((where / "1b36:0010/bar0").read_bytes()) == 0x4000
    assert barfs("umount", where).returncode == 0


def test_demo_that_fails_leaves_nothing(fuse, tmp_path, where, temporary):
    assert "does not exist" in one_line(barfs("demo", tmp_path / "nowhere"))
    assert "unknown option" in one_line(barfs("demo", "-o", "nonsense", where))
    assert not list(temporary.iterdir())


def test_the_session_that_make_demo_runs(fuse, tmp_path):
    """Through a file: a daemon that kept the output open would hang whoever reads a pipe."""
    script = Path(__file__).parents[2] / "tools/article"
    environment = {**os.environ, "BARFS": str(Path(sys.executable).parent / "barfs")}
    done = subprocess.run(
        [script], capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment
    )
    assert done.returncode == 0, done
    assert done.stderr == ""
    for shown in ("|Dunia,vipi?.....|", "00000008: 8307 0880", "|lab.....|", "|NinjaNinja......|"):
        assert shown in done.stdout
    (where,) = {
        line.rsplit(" ", 1)[1] for line in done.stdout.splitlines() if "is mounted on" in line
    }
    assert not Path(where).exists()
    assert "unmounted again" in done.stdout
    assert ".venv/bin/barfs demo" in done.stdout
    assert len(done.stdout.splitlines()) < 40  # it fits a screen
