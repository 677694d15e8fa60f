"""What is read as memory, and what only is if somebody says so."""

import json
import os
import sys
from pathlib import Path

import pytest

from mounted.conftest import barfs, machine_options, mounted, one_line, sh

BIN = Path(sys.executable).parent
NVME, NIC, FIRST = "pci/0000:01:00.0", "pci/0000:00:03.0", "pci/0000:00:04.0"


def block_sizes(mount, *names):
    return [os.stat(mount.path / name).st_blksize for name in names]


def test_mem_has_the_bars_and_ranges_as_memory(shared):
    names = [f"{FIRST}/mem/bar0", f"{FIRST}/mem/bar2", f"{NVME}/mem/bar0@100+80"]
    names += ["phys/mem/feb00000+100", "phys/mem/00100000-07fdffff", "phys/mem/9fbf0+20"]
    assert block_sizes(shared, *names) == [1 << 20] * len(names)
    for name in (*names[:4], names[5]):
        data = os.urandom(0x20)
        with (shared.path / name).open("r+b", buffering=0) as file:
            assert file.write(data) == 0x20
            file.seek(0)
            assert file.read(0x20) == data
        plain = shared.path / name.replace("mem/", "")
        with plain.open("rb", buffering=0) as file:
            assert file.read(0x20) == data
    assert sh(f"ls {shared.path}/{NIC}/mem").stdout == b"bar0\n"
    assert b"No such file" in sh(f"cat {shared.path}/{NIC}/mem/bar1").stderr
    assert "0000:00:03.0 bar1: is in I/O ports, and mem/ is for memory" in shared.log


def test_copies_through_mem_are_whole(shared, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(1 << 17))
    bar = shared.path / NIC / "mem/bar0"
    assert (
        sh(
            f"cp {image} {bar} && cmp {image} {bar} && cmp {image} {shared.path}/{NIC}/bar0"
        ).returncode
        == 0
    )


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ([], [4, 4, 1 << 20, 4]),
        (["--memory", "1b36:0010"], [1 << 20, 4, 1 << 20, 4]),
        (["--memory", "1b36-0010/bar0"], [1 << 20, 4, 1 << 20, 4]),
        (["--memory", "1af4:1110/bar0"], [4, 1 << 20, 1 << 20, 4]),
        (["--registers", "1af4:1110/bar2"], [4, 4, 4, 4]),
        (["--memory", "*", "--registers", "0000:00:04.0"], [1 << 20, 4, 4, 4]),
    ],
)
def test_options_say_what_is_memory(machine, tmp_path, options, sizes):
    names = [f"{NVME}/bar0", f"{FIRST}/bar0", f"{FIRST}/bar2", f"{NIC}/bar1"]
    with mounted(machine, tmp_path, *options) as mount:
        assert block_sizes(mount, *names) == sizes
        for name, size in zip(names, sizes, strict=True):
            info = (mount.path / name).parent / "info"
            (line,) = [
                line for line in info.read_text().splitlines() if line.startswith(f"{name[-4:]}: ")
            ]
            word = "memory" if size > 4 else "registers"
            assert f", read as {word} (" in line
            (mount.path / name).write_bytes(b"abcdefgh")
        records = map(json.loads, (mount.path / "log").read_bytes().splitlines())
        widths = {one["path"]: one.get("width") for one in records if one["event"] == "write"}
        expected = {4: 8, 1 << 20: None}
        assert [widths[name] for name in names[:3]] == [expected[size] for size in sizes[:3]]


def test_mount_options_too(machine, tmp_path):
    path = tmp_path / "bars"
    path.mkdir()
    options = ["memory=1b36:0010/bar0", "registers=1af4:1110", "memory=8086:*"]
    for name, value in zip(
        ("sysfs", "proc", "devmem"), machine_options(machine)[1::2], strict=True
    ):
        options.append(f"{name}={value}")
    done = sh(f"{BIN}/mount.barfs none {path} -o {','.join(options)}")
    try:
        assert done.returncode == 0, done
        names = [f"{NVME}/bar0", f"{FIRST}/bar2", f"{NIC}/bar0"]
        assert [os.stat(path / name).st_blksize for name in names] == [1 << 20, 4, 1 << 20]
    finally:
        assert barfs("umount", path).returncode == 0


def test_a_pattern_and_a_directory_are_told_apart(machine, tmp_path):
    directory = tmp_path / "1af4:1110"
    directory.mkdir()
    where = tmp_path / "there"
    where.mkdir()
    command = ["mount", *map(str, machine_options(machine)), "--registers"]
    done = barfs(*command, "1af4:1110", where, cwd=tmp_path)
    assert done.returncode == 2
    assert "put ./ in front" in done.stderr
    assert "bar7" in barfs(*command[:-1], "--memory", "1af4:1110/bar7", where).stderr
    assert "is not a directory" in one_line(barfs(*command, "maps", where, cwd=tmp_path))
    assert barfs(*command, "./1af4:1110", where, cwd=tmp_path).returncode == 0
    try:
        assert os.stat(where / FIRST / "bar2").st_blksize == 1 << 20
    finally:
        assert barfs("umount", where).returncode == 0
