"""Nonsense from users and from the machine: an errno, a line in the log, and the mount lives on."""

import errno
import os
import shutil
import subprocess

import pytest
from machines import set_bar

from mounted.conftest import Mount, mounted, sh


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("phys/xyz", errno.ENOENT, "'xyz' is no <addr>"),
        ("phys/-1", errno.ENOENT, "'-1' is no <addr>"),
        ("phys/fffffffffffffffff", errno.ENOENT, "is no <addr>"),
        ("phys/20-10", errno.ENOENT, "'20-10' is no <addr>"),
        ("phys/1000+0", errno.ENOENT, "'1000+0' is no <addr>"),
        ("phys/0x", errno.ENOENT, "'0x' is no <addr>"),
        ("phys/1000-2000-3000", errno.ENOENT, "is no <addr>"),
        ("phys/ffffffffffffffff", errno.ENXIO, "0xffffffffffffffff is in no range"),
        ("phys/8000000", errno.ENXIO, "0x8000000 is in no range"),
        ("phys/7fffff0-8000000", errno.ENXIO, "0x8000000 is in no range"),
        ("phys/7ffffff+ffffffffffffffff", errno.ENOENT, "is no <addr>"),
        ("1AF4:1110", errno.ENOENT, "'1AF4:1110'"),
        ("1af4:1110.2", errno.ENOENT, "no device 1af4:1110.2 (2 of that name)"),
        ("1af4:1110.0", errno.ENOENT, "'1af4:1110.0'"),
        ("1af4:1110:dead:beef", errno.ENOENT, "no device 1af4:1110:dead:beef"),
        ("pci/0000:00:1F.0", errno.ENOENT, "'0000:00:1F.0'"),
        ("pci/0000:00:1f.0", errno.ENOENT, "'0000:00:1f.0'"),
        ("pci/00:04.0", errno.ENOENT, "'00:04.0'"),
        ("1af4:1110/bar1", errno.ENOENT, "there is no BAR 1"),
        ("1af4:1110/bar7", errno.ENOENT, "'bar7'"),
        ("1af4:1110/bar", errno.ENOENT, "'bar'"),
        ("1af4:1110/bar2/x", errno.ENOTDIR, None),
        ("x" * 255, errno.ENOENT, "x" * 255),
        ("phys/" + "1" * 255, errno.ENOENT, "is no <addr>"),
        ("y" * 256, errno.ENAMETOOLONG, None),
        ("bell\a and\nline", errno.ENOENT, r"'bell\x07 and\nline'"),
        ("phys/1000\n", errno.ENOENT, r"'1000\n'"),
        (b"\xff\xfe", errno.ENOENT, r"'\udcff\udcfe'"),
        ("phys/\N{ARABIC-INDIC DIGIT ONE}", errno.ENOENT, r"'\u0661'"),
        ("\N{PILE OF POO}", errno.ENOENT, r"'\U0001f4a9'"),
    ],
)
def test_names(shared, name, number, message):
    path = os.path.join(os.fsencode(shared.path), os.fsencode(name))
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT):
        before = len(shared.log)
        with pytest.raises(OSError) as caught:
            os.open(path, flags)
        expected = number
        if name == "y" * 256:  # the kernel's own limit for FUSE is 1024 bytes
            expected = caught.value.errno
            assert expected in {errno.ENAMETOOLONG, errno.ENOENT}
        assert caught.value.errno == expected
        if message:
            line = shared.log[before:]
            assert message in line
            assert errno.errorcode[number] in line
    assert shared.alive()


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda root: os.mkdir(root / "new"), errno.EPERM),
        (lambda root: os.mkdir(root / "phys/1000-2000"), errno.EEXIST),
        (lambda root: os.mknod(root / "new"), errno.EPERM),
        (lambda root: os.symlink("x", root / "new"), errno.EPERM),
        (lambda root: os.link(root / "pci/0000:00:04.0/bar0", root / "new"), errno.EPERM),
        (lambda root: os.unlink(root / "1af4:1110"), errno.EPERM),
        (lambda root: os.unlink(root / "1af4:1110/bar0"), errno.EPERM),
        (lambda root: os.rmdir(root / "phys"), errno.EPERM),
        (lambda root: os.rename(root / "1af4:1110/bar0", root / "x"), errno.EPERM),
        (lambda root: os.chmod(root / "pci", 0o777), errno.EPERM),
        (lambda root: os.chmod(root / "1af4:1110/bar0", 0o666), errno.EPERM),
        (lambda root: os.chown(root / "1af4:1110/bar0", 1, 1), errno.EPERM),
        (lambda root: os.chown(root / "1af4:1110/bar0", -1, 1), errno.EPERM),
        (lambda root: os.chmod(root / "status", 0o600), errno.EPERM),
        (lambda root: os.open(root / "pci", os.O_RDWR), errno.EISDIR),
        (lambda root: os.listdir(root / "1af4:1110/bar0"), errno.ENOTDIR),
        (lambda root: os.readlink(root / "1af4:1110/bar0"), errno.EINVAL),
    ],
)
def test_changes_to_the_tree(shared, call, number):
    before = len(shared.log)
    with pytest.raises(OSError) as caught:
        call(shared.path)
    assert caught.value.errno == number
    if number == errno.EPERM:
        assert "cannot be changed (EPERM)" in shared.log[before:]
    assert shared.alive()


def device(mount, address="0000:00:04.0"):
    return mount.machine.sysfs / "bus/pci/devices" / address


def add_device(mount, number):
    """One more ivshmem, in slot `number`."""
    shutil.copytree(device(mount), device(mount, f"0000:00:{number:02x}.0"))


def test_plug_and_unplug_are_right_at_the_next_look_up(mount):
    root = mount.path
    held = os.open(root / "1af4:1110/bar0", os.O_RDONLY)
    for _ in range(3):
        add_device(mount, 2)
        assert os.readlink(root / "1af4:1110") == "pci/0000:00:02.0"
        assert os.readlink(root / "1af4:1110.2") == "pci/0000:00:05.0"
        assert (root / "1af4:1110.2/bar2").stat().st_size == 1 << 20
        shutil.rmtree(device(mount, "0000:00:02.0"))
        assert os.readlink(root / "1af4:1110") == "pci/0000:00:04.0"
        assert not (root / "1af4:1110.2").exists()
        assert not (root / "pci/0000:00:02.0").exists()
    shutil.rmtree(device(mount))
    with pytest.raises(OSError) as caught:
        os.fstat(held)
    assert caught.value.errno == errno.ENODEV
    os.close(held)


def test_an_open_file_of_a_device_that_goes_is_given_up_for_good(mount):
    files = ["bar0", "bar2", "u32/bar0", "x32/bar0@40", "bar2@1000+10"]
    held = [os.open(mount.path / "pci/0000:00:04.0" / name, os.O_RDWR) for name in files]
    other = os.open(mount.path / "pci/0000:00:05.0/bar0", os.O_RDWR)
    copy = device(mount).with_name("copy")
    shutil.copytree(device(mount), copy)
    assert all(os.pread(fd, 4, 0) for fd in held)
    for plugged in (False, True):
        if plugged:
            copy.rename(device(mount))
        else:
            shutil.rmtree(device(mount))
        for fd in held:
            for call in (
                lambda fd=fd: os.pread(fd, 4, 0),
                lambda fd=fd: os.pwrite(fd, b"0x4\n", 0),
            ):
                with pytest.raises(OSError) as caught:
                    call()
                assert caught.value.errno == errno.ENODEV
        assert len(os.pread(other, 4, 0)) == 4
    assert "0000:00:04.0: the device is gone (ENODEV)" in mount.log
    assert (mount.path / "pci/0000:00:04.0/bar0").read_bytes() == bytes(256)
    for fd in (*held, other):
        os.close(fd)


def test_an_open_file_of_a_bar_that_moves_is_given_up(mount):
    fd = os.open(mount.path / "1af4:1110/bar0", os.O_RDWR)
    resource = device(mount) / "resource"
    resource.write_text(resource.read_text().replace("00feb200", "00feb280"))
    set_bar(device(mount), 0, 0xFEB28000)
    with pytest.raises(OSError) as caught:
        os.pread(fd, 4, 0)
    assert caught.value.errno == errno.ENODEV
    assert "its resources have changed since it was opened (ENODEV)" in mount.log
    os.close(fd)
    assert len((mount.path / "1af4:1110/bar0").read_bytes()) == 256


def test_a_bar_that_changes_its_size_has_the_new_one(mount):
    resource = device(mount) / "resource"
    text = resource.read_text()
    resource.write_text(text.replace("0x00000000feb200ff", "0x00000000feb20fff"))
    os.truncate(device(mount) / "resource0", 4096)
    assert (mount.path / "1af4:1110/bar0").stat().st_size == 4096
    assert len((mount.path / "1af4:1110/bar0").read_bytes()) == 4096


def test_devices_that_vanish_in_the_middle_of_a_listing(mount):
    """A large directory is read in pieces; what has gone by then is left out."""
    for number in range(8, 32):
        add_device(mount, number)
    with os.scandir(mount.path / "pci") as entries:
        names = [next(entries).name]
        for number in range(20, 32):
            shutil.rmtree(device(mount, f"0000:00:{number:02x}.0"))
        names += [entry.name for entry in entries]
    assert "0000:00:08.0" in names
    assert sorted(os.listdir(mount.path / "pci")) == sorted(
        os.listdir(mount.machine.sysfs / "bus/pci/devices")
    )
    assert mount.alive()


def test_listing_while_devices_come_and_go(mount):
    listing = subprocess.Popen(
        ["bash", "-c", f"for i in {{1..8}}; do ls -lR {mount.path} 2>/dev/null; done; true"],
        stdout=subprocess.DEVNULL,
    )
    while listing.poll() is None:
        add_device(mount, 9)
        shutil.rmtree(device(mount, "0000:00:09.0"))
    assert listing.wait() == 0
    assert mount.alive()


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"garbage\n",
        b"\xff\x00\xfe\n" * 7,
        b"0x1 0x2\n" * 7,
        b"0x-1 0x10 0x200\n" * 7,
        b"0x0 0xffffffffffffffffffff 0x200\n" * 7,
        b"0x10 0x0 0x200\n" * 7,
        b"9" * 100000,
    ],
)
def test_a_resource_file_that_is_garbage(mount, garbage):
    (device(mount) / "resource").write_bytes(garbage)
    assert not {f"bar{n}" for n in range(6)} & set(os.listdir(mount.path / "1af4:1110"))
    with pytest.raises(FileNotFoundError):
        os.open(mount.path / "1af4:1110/bar0", os.O_RDONLY)
    assert "0000:00:04.0: there is no BAR 0" in mount.log
    assert mount.alive()


def test_one_garbage_line_leaves_the_other_bars(mount):
    resource = device(mount) / "resource"
    lines = resource.read_text().splitlines()
    resource.write_text("\n".join(["nonsense", *lines[1:]]))
    assert os.listdir(mount.path / "1af4:1110")[:2] == ["bar2", "config"]
    assert "0000:00:04.0: line 0 of resource is garbage: 'nonsense'" in mount.log


@pytest.mark.parametrize("name", ["vendor", "device"])
@pytest.mark.parametrize("text", ["", "zzz\n", None])
def test_ids_that_are_garbage(mount, name, text):
    if text is None:
        (device(mount) / name).unlink()
    else:
        (device(mount) / name).write_text(text)
    assert os.readlink(mount.path / "1af4:1110") == "pci/0000:00:05.0"
    assert len((mount.path / "pci/0000:00:04.0/bar0").read_bytes()) == 256
    assert mount.alive()


def test_iomem_that_is_garbage(mount):
    iomem = mount.machine.proc / "iomem"
    iomem.write_bytes(b"\xff\xff\n100-1ff : System RAM\nzz-yy : x\n500-400 : backwards\n")
    assert os.listdir(mount.path / "phys/u8") == ["00000100-000001ff"]
    iomem.write_text("00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n")
    assert os.listdir(mount.path / "phys/u8") == []
    assert b"No such device or address" in sh(f"cat {mount.path}/phys/1000").stderr
    iomem.unlink()
    with pytest.raises(OSError):
        os.listdir(mount.path / "phys")
    assert mount.alive()


def test_decoding_off(mount):
    config = device(mount) / "config"
    with config.open("r+b") as file:
        file.seek(4)
        file.write(b"\0\0")
    with pytest.raises(OSError) as caught:
        os.open(mount.path / "1af4:1110/bar2", os.O_RDONLY)
    assert caught.value.errno == errno.EIO
    assert "0000:00:04.0 bar2: memory decoding is off" in mount.log
    assert "/0000:00:04.0/enable" in mount.log


def test_a_device_that_does_not_answer(mount):
    (device(mount) / "config").write_bytes(b"\xff" * 256)
    with pytest.raises(OSError) as caught:
        os.open(mount.path / "1af4:1110/bar2", os.O_RDONLY)
    assert caught.value.errno == errno.EIO
    assert "0000:00:04.0 bar2: the device does not answer" in mount.log


def test_virtual_functions_have_no_memory_space_bit(mount):
    (device(mount) / "physfn").symlink_to("../0000:00:05.0")
    with (device(mount) / "config").open("r+b") as file:
        file.seek(4)
        file.write(b"\0\0")
    assert len((mount.path / "pci/0000:00:04.0/bar0").read_bytes()) == 256


def test_memory_that_goes_away_under_an_open_file(mount):
    """A plain file that is truncated answers with SIGBUS, as a revoked mapping does."""
    fd = os.open(mount.path / "1af4:1110/bar2", os.O_RDWR)
    os.truncate(device(mount) / "resource2", 4096)
    assert len(os.pread(fd, 4096, 0)) == 4096
    other = os.open(mount.path / "1af4:1110/bar2", os.O_RDWR)
    for offset in (0xFFFF8, 4096, 0):
        with pytest.raises(OSError) as caught:
            os.pread(fd, 8, offset)
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(OSError) as caught:
            os.pwrite(fd, b"12345678", offset)
        assert caught.value.errno == errno.ENODEV
    assert "0000:00:04.0 bar2: read at 0xffff8: its mapping was revoked" in mount.log
    assert "0000:00:04.0 bar2: its mapping was revoked since it was opened" in mount.log
    assert len(os.pread(other, 8, 0)) == 8
    os.close(fd)
    os.close(other)
    assert mount.alive()


def test_read_only(machine, tmp_path):
    mount = Mount(machine, tmp_path, "-o", "ro")
    bar = mount.path / "1af4:1110/bar2"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with pytest.raises(OSError) as caught:
            os.open(bar, flags)
        assert caught.value.errno == errno.EROFS
    for call in (lambda: os.truncate(bar, 0), lambda: os.mkdir(mount.path / "x")):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EROFS
    assert len(bar.read_bytes()) == 1 << 20
    assert mount.end() == 0


AS_NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}


def test_others_are_kept_out(machine, public):
    with mounted(machine, public) as mount:
        done = sh(f"ls {mount.path}", **AS_NOBODY)
        assert b"Permission denied" in done.stderr


def test_allow_other_is_passed_on_and_files_stay_private(machine, public):
    with mounted(machine, public, "-o", "allow_other") as mount:
        assert b"1af4:1110" in sh(f"ls {mount.path}", **AS_NOBODY).stdout
        done = sh(f"cat {mount.path}/1af4:1110/bar0", **AS_NOBODY)
        assert b"Permission denied" in done.stderr
