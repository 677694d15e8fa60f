"""Who may see and open what, as the options say."""

import os
import re
import shutil
import stat
import subprocess

import pytest

from mounted.conftest import BARFS, TIMEOUT, is_mounted, machine_options, mounted, sh
from mounted.others import (
    DEVICE,
    FLAGS,
    GROUP,
    NOBODY,
    PROTECTED,
    as_other,
    attempt,
    contents,
    files,
    opened,
)


def test_without_options_others_see_nothing(machine, public):
    with mounted(machine, public) as mount:
        assert set(as_other(lambda: os.listdir(public))) == {"bars", "log"}
        for name in ("", "pci", "1af4:1110", f"{DEVICE}/bar0", "phys/1000", "nowhere"):
            path = mount.path / name
            for call in (os.stat, os.lstat, os.listdir, opened, os.chdir):
                for groups in ((), (0,)):
                    assert as_other(lambda call=call, path=path: call(path), *groups) == "EACCES"


def test_allow_other_alone_opens_no_file(machine, public):
    with mounted(machine, public, "-o", "allow_other") as mount:
        everything = files(mount.path)
        for groups in ((), (0,), (GROUP,)):
            tried = as_other(
                lambda: {opened(path, flags) for path in everything for flags in FLAGS}, *groups
            )
            assert tried == {"EACCES"}
        assert as_other(lambda: sorted(os.listdir(mount.path))) == sorted(os.listdir(mount.path))
        assert as_other(lambda: os.listdir(mount.path / "phys")) == "EACCES"
        assert as_other(lambda: os.stat(mount.path / "phys/1000")) == "EACCES"
        assert stat.filemode(os.stat(mount.path / f"{DEVICE}/bar0").st_mode) == "-rw-------"


def expected(path, flags, *, member):
    """What the options of `lab` say."""
    name = os.path.basename(path)
    if not member or "/phys/" in path or name in {"log", "status"}:
        return "EACCES"
    if flags == os.O_RDONLY:
        return "ok"
    by_name = "/regs/" in path and "/regs/config/" not in path and name != "README"
    is_bars = name.startswith("bar") or by_name
    return "ok" if is_bars and PROTECTED not in path else "EACCES"


def is_by_name(path):
    """Whether a map says if it is read or written: what it forbids is EACCES to all."""
    return "/regs/" in path


@pytest.mark.parametrize("member", [True, False])
def test_every_file_opens_as_the_options_say(lab, unchanged, member):
    everything = files(lab.path)
    groups = (GROUP,) if member else (0, 1, GROUP + 1)
    tried = as_other(
        lambda: [(path, flags, opened(path, flags)) for path in everything for flags in FLAGS],
        *groups,
    )
    # u64 does not open on I/O ports, and one register of them has at most 4 bytes.
    ports = ("0000:00:03.0/u64/bar1", "0000:00:03.0/x64/bar1")
    wrong = [
        (path, flags, result)
        for path, flags, result in tried
        if result != expected(path, flags, member=member)
        and not (path.endswith(ports) and result == "EINVAL")
        and not (is_by_name(path) and result == "EACCES")
    ]
    assert wrong == []
    assert {result for *_, result in tried} >= ({"ok", "EACCES"} if member else {"EACCES"})
    named = {
        ("CTRL", os.O_RDWR): "ok",
        ("CTRL.RST", os.O_WRONLY): "ok",
        ("STATUS", os.O_RDONLY): "ok",
        ("STATUS", os.O_WRONLY): "EACCES",
        ("config/COMMAND", os.O_RDONLY): "ok",
        ("config/COMMAND.MEM", os.O_WRONLY): "EACCES",
        ("README", os.O_WRONLY): "EACCES",
    }
    regs = f"{lab.path}/pci/0000:00:03.0/regs"
    found = as_other(lambda: [opened(f"{regs}/{name}", flags) for name, flags in named], *groups)
    assert found == [result if member else "EACCES" for result in named.values()]


def test_modes_and_groups_as_stat_shows_them(lab):
    shown = {}
    for name in (
        *("", "log", "pci", "phys", "phys/u32", "phys/1000+4", DEVICE, f"{DEVICE}/x8", "1af4:1110"),
        "status",
        *(f"{DEVICE}/{name}" for name in ("bar0", "u32/bar0@40+4", "config", "info")),
        *(f"{PROTECTED}/{name}" for name in ("bar0", "x32/bar0@40", "config", "info")),
        "pci/0000:00:03.0/rom",
    ):
        status = os.lstat(lab.path / name)
        shown[name] = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    assert shown == {
        "": "dr-xr-xr-x 0:0",
        "log": "-r-------- 0:0",
        "status": "-r-------- 0:0",
        "pci": "dr-xr-xr-x 0:0",
        "phys": "dr-x------ 0:0",
        "phys/u32": "dr-x------ 0:0",
        "phys/1000+4": "-rw------- 0:0",
        DEVICE: f"dr-xr-xr-x 0:{GROUP}",
        f"{DEVICE}/x8": f"dr-xr-xr-x 0:{GROUP}",
        "1af4:1110": f"lrwxrwxrwx 0:{GROUP}",
        f"{DEVICE}/bar0": f"-rw-rw---- 0:{GROUP}",
        f"{DEVICE}/u32/bar0@40+4": f"-rw-rw---- 0:{GROUP}",
        f"{DEVICE}/config": f"-rw-r----- 0:{GROUP}",
        f"{DEVICE}/info": f"-r--r----- 0:{GROUP}",
        f"{PROTECTED}/bar0": f"-r--r----- 0:{GROUP}",
        f"{PROTECTED}/x32/bar0@40": f"-r--r----- 0:{GROUP}",
        f"{PROTECTED}/config": f"-r--r----- 0:{GROUP}",
        f"{PROTECTED}/info": f"-r--r----- 0:{GROUP}",
        "pci/0000:00:03.0/rom": f"-r--r----- 0:{GROUP}",
    }


def test_a_member_reads_and_writes_and_nobody_else(lab):
    path = f"{lab.path}/1af4:1110/bar2"
    write = f"printf member | dd of={path} bs=1 seek=64 conv=notrunc"
    read = f"dd if={path} bs=1 skip=64 count=6"
    nobody = {"user": NOBODY, "group": NOBODY, "cwd": "/"}
    assert sh(write, **nobody, extra_groups=[GROUP]).returncode == 0
    assert sh(read, **nobody, extra_groups=[GROUP]).stdout == b"member"
    assert sh(read, user=NOBODY, group=GROUP, extra_groups=[], cwd="/").stdout == b"member"
    for command in (write, read):
        assert b"Permission denied" in sh(command, **nobody, extra_groups=[GROUP + 1]).stderr
    assert lab.alive()


def test_what_is_read_only_is_so_for_root_too(lab, unchanged):
    everything = [path.removeprefix(f"{lab.path}/") for path in files(lab.path)]
    refused = {"EROFS": set(), "EACCES": set(), "EINVAL": set()}
    # Maps say of registers by name which are only read; of this device they are none.
    everything = [path for path in everything if not re.search("/(regs|decode)/", path)]
    for path in everything:
        (how,) = {opened(lab.path / path, flags) for flags in (os.O_RDWR, os.O_WRONLY)}
        if how != "ok":
            refused[how].add(path)
    # What is there to be read is not written by anybody.
    assert refused["EACCES"] == {
        *(f"pci/{address}/info" for address in os.listdir(lab.path / "pci")),
        *("pci/0000:00:03.0/rom", "log", "status"),
    }
    assert refused["EROFS"] == {
        *(path for path in everything if path.startswith(PROTECTED) and "info" not in path),
        # In these ranges of /proc/iomem lie its BARs; the last name runs to the end of its range.
        *(
            f"phys/{view}{name}"
            for view in ("", "u8/", "u16/", "u32/", "u64/", "mem/")
            for name in ("c0000000-febfffff", "800000000-8ffffffff")
        ),
        "phys/feb20000",
    }
    for name in ("feb21000+4", "feb210fe+4", "x32/feb21040", "u8/feb21000", "80017fff0+20"):
        assert opened(lab.path / "phys" / name, os.O_WRONLY) == "EROFS"
        assert opened(lab.path / "phys" / name) == "ok"
    for name in ("feb20000+100", "x32/feb20040", "feb21100+4", "x32/c0000000"):
        assert opened(lab.path / "phys" / name, os.O_RDWR) == "ok"
    assert "0000:00:05.0 is read-only in this mount (--read-only-device) (EROFS)" in lab.log
    assert b"Read-only file system" in sh(f"echo 1 > {lab.path}/{PROTECTED}/x32/bar0@8").stderr


def test_read_only_mounts_are_so_in_all_paths(machine, public):
    before = contents(machine)
    with mounted(
        machine, public, "-o", "ro,allow_other", "--group", str(GROUP), "--mode", "660"
    ) as mount:
        everything = files(mount.path)
        assert {opened(path, flags) for path in everything for flags in FLAGS[1:]} == {"EROFS"}
        bar = f"{mount.path}/{DEVICE}/bar0"
        assert as_other(lambda: [opened(bar, flags) for flags in FLAGS], GROUP) == [
            *("ok", "EROFS", "EROFS")
        ]
        for flags in (os.O_RDONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT):
            assert opened(bar, flags) == "EROFS"
        # The kernel would let it be written to after this; the daemon does not. By mount(2): the
        # newer system calls, which mount(8) takes from util-linux 2.41 on, FUSE refuses.
        remount = f"LIBMOUNT_FORCE_MOUNT2=always mount -i -o remount,rw {mount.path}"
        assert sh(remount).returncode == 0
        writable = {opened(path, flags) for path in everything for flags in FLAGS[1:]}
        assert writable == {"EROFS"}
        assert "mounted read-only (EROFS)" in mount.log
        assert opened(bar) == "ok"
        assert contents(machine) == before


# Only some devices


def names(root):
    return sorted(os.listdir(root)), sorted(os.listdir(root / "pci"))


def add(machine, like, address, **ids):
    devices = machine.sysfs / "bus/pci/devices"
    shutil.copytree(devices / like, devices / "new", symlinks=True)
    for name, text in ids.items():
        (devices / "new" / name).write_text(text + "\n")
    (devices / "new").rename(devices / address)


def test_only_devices_that_are_allowed_exist(machine, tmp_path):
    with mounted(
        machine, tmp_path, "--allow-device", "1AF4:*", "--allow-device", "0000:01:00.?"
    ) as mount:
        assert names(mount.path) == (
            ["1af4:1110", "1af4:1110.1", "1b36:0010", "ksym", "log", "pci", "phys", "status"],
            ["0000:00:04.0", "0000:00:05.0", "0000:01:00.0"],
        )
        ways = ["pci/0000:00:03.0", "8086:100e", "8086:100e:1af4:1100"]
        for hidden in (*ways, "pci/0000:00:04.0/../0000:00:03.0", "1af4:1110/../0000:00:03.0"):
            for name in ("", "/bar0", "/config", "/info", "/u32", "/x32/bar0@8", "/rom"):
                path = f"{mount.path}/{hidden}{name}"
                assert opened(path) == "ENOENT"
                with pytest.raises(FileNotFoundError):
                    os.lstat(path)
        assert b"8086" not in sh(f"find {mount.path}; ls -lR {mount.path}").stdout
        # What comes later is judged then.
        add(machine, "0000:00:03.0", "0000:01:00.7")
        add(machine, "0000:00:03.0", "0000:02:00.0")
        add(machine, "0000:00:04.0", "0000:00:02.0")
        add(machine, "0000:00:04.0", "0000:00:06.0", vendor="0x1af5")
        assert names(mount.path)[0] == [
            *("1af4:1110", "1af4:1110.1", "1af4:1110.2", "1b36:0010", "8086:100e"),
            *("ksym", "log", "pci", "phys", "status"),
        ]
        assert os.readlink(mount.path / "8086:100e") == "pci/0000:01:00.7"
        assert os.readlink(mount.path / "1af4:1110") == "pci/0000:00:02.0"
        assert opened(mount.path / "pci/0000:00:06.0/bar0") == "ENOENT"
        assert opened(mount.path / "8086:100e/bar0", os.O_RDWR) == "ok"


def test_a_directory_that_is_held_shows_no_device_that_is_not_allowed(machine, tmp_path):
    """Another device comes to the same address, which is the same inode number."""
    with mounted(machine, tmp_path, "--allow-device", "1af4:*") as mount:
        held = os.open(mount.path / DEVICE, os.O_RDONLY)
        view = os.open(mount.path / DEVICE / "u32", os.O_RDONLY)
        assert os.listdir(view) == ["bar0", "bar2"]
        shutil.rmtree(machine.sysfs / "bus/pci/devices/0000:00:04.0")
        add(machine, "0000:00:03.0", "0000:00:04.0")
        for name in ("bar0", "config", "info", "rom", "u32", "u32/bar0", "bar0@4", "."):
            assert opened(name, dir_fd=held) in {"ENOENT", "ENODEV"}
        assert opened("bar0", dir_fd=view) in {"ENOENT", "ENODEV"}
        assert opened(f"/proc/self/fd/{held}/bar0") in {"ENOENT", "ENODEV"}
        for fd in (held, view):
            assert attempt(lambda fd=fd: os.stat(fd)) == "ENODEV"
            os.close(fd)


@pytest.mark.parametrize("via", ["resource", "devmem"])
def test_without_phys(machine, tmp_path, via):
    shutil.rmtree(machine.proc)
    if via == "resource":
        machine.devmem.unlink()
    with mounted(machine, tmp_path, "--no-phys", "--bars-via", via) as mount:
        assert names(mount.path)[0] == [
            "1af4:1110",
            "1af4:1110.1",
            "1b36:0010",
            "8086:100e",
            "log",
            "pci",
            "status",
        ]
        for name in ("phys", "phys/1000", "phys/u32", "phys/x32/feb20000", "pci/../phys/1000"):
            assert opened(mount.path / name, os.O_RDONLY) == "ENOENT"
        assert len((mount.path / DEVICE / "bar0").read_bytes()) == 256


def test_demo_suggests_what_there_is(fuse, tmp_path):
    where = tmp_path / "bars"
    where.mkdir()
    options = ["--no-phys", "--allow-device", "8086:*", "--allow-device", "*:*:00.0"]
    done = subprocess.run(
        [*BARFS, "demo", *options, where], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "8086:100e" in done.stdout
    assert "0000:01:00.0" in done.stdout
    assert "1af4:1110" not in done.stdout
    assert "phys" not in done.stdout
    assert sh(f"{' '.join(BARFS)} umount {where}").returncode == 0


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--group", "0"], "add --mode 660"),
        (["--group", "0", "-o", "allow_other"], "add --mode 660"),
        (["--mode", "660"], "add -o allow_other"),
        (["--mode", "660", "--group", "0"], "add -o allow_other"),
        (["--mode", "660", "-o", "allow_root"], "add -o allow_other"),
        (["--mode", "660", "-o", "allow_other", "--group", "no such"], "no group 'no such'"),
        (["--mode", "660", "-o", "allow_other", "--group", ""], "no group ''"),
        (["--mode", "660", "-o", "allow_other", "--group=-1"], "no group '-1'"),
        (["--mode", "660", "-o", "allow_other", "--group", "4294967295"], "no group '429"),
    ],
)
def test_rights_that_nobody_could_use_are_refused(machine, tmp_path, options, words):
    command = [*BARFS, "mount", *machine_options(machine), *options]
    done = subprocess.run(
        [*command, tmp_path], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert words in done.stderr
    assert not is_mounted(tmp_path)


@pytest.mark.parametrize(
    "option",
    [
        *("--mode=770", "--mode=440", "--mode=4660", "--mode=rw", "--mode=66", "--mode="),
        *("--allow-device=e1000", "--allow-device=", "--allow-device=03"),
        *("--read-only-device=111", "--read-only-device=1af4:1110.1", "--read-only-device=[:]:*"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path, option):
    done = subprocess.run(
        [*BARFS, "mount", option, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    name, _, value = option.partition("=")
    assert f"barfs mount: argument {name}: {value!a} " in done.stderr.splitlines()[0]


def test_a_group_by_its_name(machine, public):
    options = ["-oallow_other", "--mode=0640", "--group=daemon"]
    with mounted(machine, public, *options) as mount:
        bar = f"{mount.path}/{DEVICE}/bar0"
        assert [as_other(lambda f=f: opened(bar, f), 1) for f in FLAGS] == [
            *("ok", "EACCES", "EACCES")
        ]
        assert os.stat(bar).st_gid == 1
