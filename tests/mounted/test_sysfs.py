"""`sysfs` in a function's directory: programs find the function's own files by its name."""

import dataclasses
import errno
import mmap
import os
import shutil

import pytest

from mounted.conftest import barfs, machine_options, mounted, sh

FIRST = "1af4:1110"


def own(machine, address="0000:00:04.0"):
    return machine.sysfs / "bus/pci/devices" / address


def test_it_leads_to_the_functions_own_directory(shared):
    for name, address in ((FIRST, "0000:00:04.0"), ("8086:100e", "0000:00:03.0")):
        link = shared.path / name / "sysfs"
        target = os.readlink(link)
        assert target == str(own(shared.machine, address))
        assert link.is_symlink()
        assert link.lstat().st_size == len(target)
        assert link.samefile(own(shared.machine, address))
        assert (link / "vendor").read_text().strip() == f"0x{name[:4]}"
    assert "sysfs" not in os.listdir(shared.path / FIRST / "u32")


def test_a_bar_is_mapped_by_its_name(shared, require):
    data = bytes(range(1, 17))
    resource = shared.path / FIRST / "sysfs/resource2"
    with resource.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        mapped[:16] = data
    with (own(shared.machine) / "resource2").open("rb") as file:
        assert file.read(16) == data
    require(shutil.which("memtool"), "memtool: apt install memtool")
    done = sh(f"memtool md -s {resource} 0+16")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split(b":", 1)[1].split()[:4]
    assert words == [data[at : at + 4][::-1].hex().encode() for at in range(0, 16, 4)]


def test_an_attribute_is_written_by_its_name(mount):
    assert sh(f"echo 1 > {mount.path}/{FIRST}/sysfs/enable").returncode == 0
    assert (own(mount.machine) / "enable").read_text() == "1\n"
    assert (own(mount.machine, "0000:00:05.0") / "enable").read_text() == "0\n"


def test_it_goes_with_its_function(mount):
    shutil.rmtree(own(mount.machine))
    with pytest.raises(OSError, match="No such file") as caught:
        os.readlink(mount.path / "pci/0000:00:04.0/sysfs")
    assert caught.value.errno == errno.ENOENT


def test_a_mount_amid_sysfs_and_a_relative_path_to_it(machine, where, monkeypatch):
    """The daemon leaves the directory that it was started in."""
    here = machine.sysfs.parent
    monkeypatch.chdir(here)
    relative = dataclasses.replace(
        machine, **{name: path.relative_to(here) for name, path in vars(machine).items()}
    )
    assert barfs("mount", *machine_options(relative), where).returncode == 0
    try:
        assert os.readlink(where / FIRST / "sysfs") == str(own(machine))
    finally:
        assert barfs("umount", where).returncode == 0
    with mounted(machine, machine.sysfs) as mount:
        assert (mount.path / FIRST / "sysfs/vendor").read_text() == "0x1af4\n"
