"""`barfs save`, and a mount of what it wrote: every file as in the original's mount, or EIO."""

import errno
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from bench import machines
from mounted.conftest import barfs, is_mounted, machine_options, mounted, one_line, sh

ALL = ["--read=*/bar0", "--read=*/bar1", "--read=*/bar2", "--read=*/rom"]
NIC = "pci/0000:00:03.0"
RAM = "pci/0000:00:04.0"

LSPCI = """\
00:03.0 Ethernet controller [0200]: Intel Corporation 82540EM [8086:100e] (rev 03)
\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR+ FastB2B-
\tRegion 0: Memory at feb80000 (32-bit, non-prefetchable) [size=128K]
\tKernel driver in use: e1000
00: 86 80 0e 10 07 00 00 00 03 00 00 02 00 00 00 00
"""


class Recorded:
    """A mount of a recording, in the background as people make it."""

    def __init__(self, source, directory):
        self.path = directory
        directory.mkdir()
        done = barfs("mount", "--machine", source, directory)
        assert (done.returncode, done.stderr) == (0, "")

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        assert barfs("umount", self.path).returncode == 0
        assert not is_mounted(self.path)


def save(machine, path, *options):
    return barfs("save", "-o", path, *machine_options(machine), *options)


def names(directory):
    """All names in a mount, and how ls shows what functions have; only `sysfs` leads elsewhere."""
    done = sh(
        f"cd {directory} && find . | sort && ls -lR --time-style=+ pci | grep -v ' sysfs -> '"
    )
    assert done.stderr == b""
    return done.stdout.splitlines()


def contents(directory):
    """The bytes of each file of two functions, or the errno of reading it."""
    found = {}
    for path in sorted([*Path(directory, NIC).rglob("*"), *Path(directory, RAM).rglob("*")]):
        if path.is_file() and not path.is_symlink():
            try:
                found[str(path.relative_to(directory))] = path.read_bytes()
            except OSError as error:
                found[str(path.relative_to(directory))] = error.errno
    return found


def test_every_file_is_equal(machine, tmp_path):
    with (machine.sysfs / "bus/pci/devices/0000:00:04.0/resource2").open("r+b") as memory:
        memory.write(bytes(range(256)) * 4096)
    tar, unpacked = tmp_path / "lab7.tar", tmp_path / "lab7"
    done = save(machine, tar, *ALL)
    assert done.returncode == 0, done.stderr
    unpacked.mkdir()
    subprocess.run(["tar", "-C", unpacked, "-xf", tar], check=True)
    with (
        mounted(machine, tmp_path) as original,
        Recorded(tar, tmp_path / "there") as there,
        Recorded(unpacked, tmp_path / "too") as too,
    ):
        expected = contents(original.path)
        assert contents(there) == expected
        assert len([one for one in expected.values() if isinstance(one, bytes)]) > 1000
        shown = names(original.path)
        assert names(there) == shown
        assert names(too) == shown
        for name in ("1af4:1110", "1af4:1110.1", "8086:100e:1af4:1100", "1af4-1110"):
            assert os.readlink(there / name) == os.readlink(original.path / name)
        for other in (there, too):
            options = f"-r --no-dereference {original.path}/{RAM} {other}/{RAM}"
            done = sh(f"diff {options} | grep -v sysfs")
            assert done.stdout == b""


def test_what_was_not_recorded_fails_and_what_writes_is_refused(machine, tmp_path):
    path = tmp_path / "lab7.tar"
    assert save(machine, path, "--read", "04.0/bar0@0-f:u32").returncode == 0
    before = path.read_bytes()
    with Recorded(path, tmp_path / "there") as there:
        assert (there / RAM / "u32/bar0@0-f").read_bytes() == bytes(16)
        for name in (
            *(f"{RAM}/bar0@10-1f", f"{RAM}/bar0", f"{RAM}/bar2", f"{RAM}/x32/bar2@0"),
            *(f"{NIC}/rom", f"{NIC}/bar1", "phys/00001000-0009fbff", "phys/x32/feb20000"),
            *("ksym/init_uts_ns", f"{NIC}/regs/CTRL"),
        ):
            with pytest.raises(OSError, match="Input/output error") as refused:
                (there / name).read_bytes()
            assert refused.value.errno == errno.EIO, name
        for name in (f"{RAM}/bar0", f"{RAM}/config", f"{RAM}/x32/bar0@0"):
            with pytest.raises(OSError, match="Read-only"):
                os.close(os.open(there / name, os.O_WRONLY))
        log = (there / "log").read_text()
        assert " is not in this recording, which has 0-f of it" in log
        status = (there / "status").read_text().splitlines()
        assert status[0].startswith("ok       recording     recorded on ")
        assert any("recorded: bar0@0-f" in line for line in status)
        listed = barfs("ls", "--machine", path)
        assert listed.stdout == barfs("ls", "--sysfs", machine.sysfs).stdout
        assert barfs("doctor", "--machine", path).stdout.splitlines() == status
    assert path.read_bytes() == before
    wanted = barfs("regs", "list", "8086:100e", "CTRL", "--machine", path)
    assert wanted.stdout.split()[:4] == ["bar0@0", "32", "rw", "CTRL"]


def test_text_of_lspci(fuse, tmp_path):
    path = tmp_path / "lspci.txt"
    path.write_text(LSPCI)
    with Recorded(path, tmp_path / "there") as there:
        assert sorted(os.listdir(there)) == ["8086:100e", "log", "pci", "status"]
        assert (there / NIC / "bar0").stat().st_size == 128 << 10
        assert sh(f"head -c 4 {there / NIC / 'config'}").stdout == b"\x86\x80\x0e\x10"
        cut = sh(f"cat {there / NIC / 'config'}")
        assert len(cut.stdout) == 16
        assert b"Input/output error" in cut.stderr
        with pytest.raises(OSError, match="Input/output error"):
            (there / NIC / "bar0").read_bytes()
        info = (there / NIC / "info").read_text()
        assert "power state: unknown\n" in info
        assert "driver: e1000\n" in info
        assert "does not say whose machine" in (there / "status").read_text()
        assert sh(f"find {there}").stderr == b""


def test_what_is_refused_is_said_and_the_rest_is_saved(machine, tmp_path):
    with (machine.sysfs / "bus/pci/devices/0000:00:04.0/config").open("r+b") as config:
        config.seek(4)
        config.write(bytes(2))
    path = tmp_path / "lab7.tar"
    done = save(machine, path, "--read", "1af4:1110/bar0")
    assert done.returncode == 1
    assert "not saved: 0000:00:04.0 bar0: memory decoding is off" in done.stderr
    with Recorded(path, tmp_path / "there") as there:
        assert (there / "1af4:1110.1/bar0").read_bytes() == bytes(256)
        with pytest.raises(OSError, match="Input/output error"):
            (there / "1af4:1110/bar0").read_bytes()
        assert "memory decoding is off" in (there / "log").read_text()
        assert "not recorded: bar0: 0000:00:04.0 bar0: memory" in (there / "status").read_text()


@pytest.mark.parametrize("options", [["--sysfs", "/tmp"], ["--enable"], ["--bars-via", "devmem"]])
def test_options_that_mean_nothing_for_a_recording(where, tmp_path, options):
    path = tmp_path / "lspci.txt"
    path.write_text(LSPCI)
    assert "--machine" in one_line(barfs("mount", "--machine", path, *options, where))


@pytest.mark.parametrize("command", [["ls"], ["doctor"], ["regs", "list", "8086:100e"], ["mount"]])
def test_a_hostile_tar_is_refused_in_a_line(where, tmp_path, command):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("pci/0000:00:04.0/config")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(info)
    more = [where] if command == ["mount"] else []
    assert "symbolic link" in one_line(barfs(*command, "--machine", path, *more))


def test_ten_thousand_functions(fuse, tmp_path):
    """It takes seconds, and a mount begins and lists no later than that of the files it is of."""
    machine = machines.build(tmp_path / "machine", 10_000)
    begun = time.monotonic()
    assert save(machine, tmp_path / "lab7.tar").returncode == 0
    assert time.monotonic() - begun < 30
    begun = time.monotonic()
    with Recorded(tmp_path / "lab7.tar", tmp_path / "there") as there:
        assert len(os.listdir(there / "pci")) == 10_000
        assert os.readlink(there / machines.link_to_last(10_000))
        assert time.monotonic() - begun < 20
