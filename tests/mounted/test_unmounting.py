"""The end of a mount: that mount goes, wherever it is by then, and no other."""

import contextlib
import os
import signal
import subprocess

import pytest

from mounted.conftest import TIMEOUT, Mount, barfs, is_mounted, one_line, sh, wait_until

OTHER = 65534


def run(*command):
    subprocess.run(list(map(str, command)), check=True, timeout=TIMEOUT)


@pytest.fixture
def ground(fuse, tmp_path):
    """A directory in which mounts can be moved, whatever the machine's mounts propagate to."""
    ground = tmp_path / "ground"
    ground.mkdir()
    run("mount", "-t", "tmpfs", "ground", ground)
    run("mount", "--make-private", ground)
    yield ground
    wait_until(lambda: sh(f"umount -R {ground}").returncode == 0, "it can't be unmounted")


def mount_in(ground, machine, *options):
    return Mount(machine, ground, *options)


def somebodys(path):
    """A file system of somebody else, with data."""
    run("mount", "-t", "tmpfs", "theirs", path)
    (path / "data").write_text("kept")


def end(mount):
    """Its exit status after SIGTERM."""
    mount.process.terminate()
    return mount.process.wait(TIMEOUT)


def barfs_mounts(below):
    with open("/proc/mounts") as table:
        lines = [line.split() for line in table]
    return [line[1] for line in lines if line[2] == "fuse.barfs" and line[1].startswith(str(below))]


@pytest.mark.parametrize("link", ["the mountpoint", "a directory above it"])
def test_a_link_in_its_place_leads_nowhere(ground, machine, link):
    """The owner of a directory on the way can put one there, also while it is mounted."""
    theirs = ground / "elsewhere/bars"
    theirs.mkdir(parents=True)
    somebodys(theirs)
    home = ground / "home"
    home.mkdir()
    mount = mount_in(home, machine)
    home.rename(ground / "moved")
    if link == "the mountpoint":
        home.mkdir()
        (home / "bars").symlink_to(theirs)
    else:
        home.symlink_to(theirs.parent)
    assert end(mount) == 0
    assert barfs_mounts(ground) == []
    assert (theirs / "data").read_text() == "kept"


@pytest.mark.parametrize("successor", ["barfs", "tmpfs"])
def test_what_has_been_mounted_after_it_stays(ground, machine, successor):
    """Its own mount is detached, and lives on only for who has a file open."""
    first = mount_in(ground, machine)
    held = os.open(first.path / "1af4:1110/bar2", os.O_RDONLY)
    run("umount", "-l", first.path)
    second = None
    if successor == "barfs":
        first.path.rmdir()
        second = mount_in(ground, machine)
    else:
        somebodys(first.path)
    assert end(first) == 0
    with pytest.raises(OSError, match="not connected"):
        os.close(held)
    if second is None:
        assert (first.path / "data").read_text() == "kept"
    else:
        assert second.alive()
        assert second.end() == 0


def test_one_that_takes_over_its_numbers_stays(ground, machine):
    """The kernel gives the numbers of a mount to the next one, once it is gone."""
    first = mount_in(ground, machine)
    os.kill(first.process.pid, signal.SIGSTOP)  # it does not hear of its end yet
    run("umount", "-c", first.path)
    first.path.rmdir()
    second = mount_in(ground, machine)
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.process.wait(TIMEOUT) == 0
    assert second.alive()
    assert second.end() == 0


def test_one_that_lies_over_it_stays(ground, machine):
    mount = mount_in(ground, machine)
    somebodys(mount.path)
    assert end(mount) == 1
    assert "a dead mount is left" in mount.log
    assert "something else is mounted over it" in mount.log
    assert (mount.path / "data").read_text() == "kept"
    run("umount", mount.path)
    assert barfs("umount", mount.path).returncode == 0
    assert not is_mounted(mount.path)


def test_it_is_unmounted_where_it_has_been_moved_to(ground, machine):
    mount = mount_in(ground, machine)
    moved = ground / "moved"
    moved.mkdir()
    run("mount", "--move", mount.path, moved)
    somebodys(mount.path)
    assert (moved / "1af4:1110").is_symlink()
    assert end(mount) == 0
    assert barfs_mounts(ground) == []
    assert (mount.path / "data").read_text() == "kept"


def connection_of(path):
    """Its directory in fusectl's file system: the minor number of its device."""
    return str(os.minor(path.stat().st_dev))


@pytest.fixture
def connections(fuse, tmp_path):
    path = tmp_path / "connections"
    path.mkdir()
    run("mount", "-t", "fusectl", "none", path)
    yield path
    run("umount", path)


@pytest.mark.parametrize("by", ["umount -f", "abort"])
def test_an_aborted_mount_is_unmounted_and_that_is_an_error(machine, tmp_path, connections, by):
    """So that a service manager starts it again, and nobody finds a dead one."""
    mount = Mount(machine, tmp_path)
    bar = os.open(mount.path / "1af4:1110/bar2", os.O_RDWR)
    if by == "abort":
        (connections / connection_of(mount.path) / "abort").write_text("1")
    else:
        assert b"busy" in sh(f"umount -f {mount.path}").stderr
    assert mount.process.wait(TIMEOUT) == 1
    with contextlib.suppress(OSError):  # what flush says to it
        os.close(bar)
    assert f"the mount on {mount.path} was aborted" in mount.log
    assert not is_mounted(mount.path)


def test_umount_follows_nobodys_links(machine, tmp_path):
    mount = Mount(machine, tmp_path)
    link = tmp_path / "link"
    link.symlink_to(mount.path)
    os.lchown(link, OTHER, OTHER)
    for command in (["umount"], ["umount", "-q"], ["umount", "--dead"]):
        line = one_line(barfs(*command, link))
        assert f"{link} is a symbolic link that somebody else has made" in line
    assert mount.alive()
    os.lchown(link, 0, 0)
    assert barfs("umount", link).returncode == 0
    assert mount.process.wait(TIMEOUT) == 0


def test_what_is_called_for_after_a_service_leaves_a_live_mount_alone(machine, tmp_path):
    mount = Mount(machine, tmp_path)
    assert barfs("umount", "-q", "--dead", mount.path).returncode == 0
    assert mount.alive()
    mount.process.kill()
    mount.process.wait(TIMEOUT)
    assert is_mounted(mount.path)
    for _ in range(2):
        assert barfs("umount", "-q", "--dead", mount.path).returncode == 0
        assert not is_mounted(mount.path)
    assert "is not a barfs mount" in one_line(barfs("umount", "--dead", mount.path))
