"""Inode numbers as programs see them that take 32 bits of one."""

import errno
import os
import platform
import subprocess
from pathlib import Path

import pytest

from mounted.conftest import TIMEOUT

SOURCE = Path(__file__).parent / "small_inodes.c"
FLAGS = ["-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-fno-stack-protector"]


@pytest.fixture(scope="module")
def small(require, tmp_path_factory):
    """The program; None where the machine has no such programs."""
    if platform.machine() != "x86_64":
        return None
    program = tmp_path_factory.mktemp("small") / "inodes"
    built = subprocess.run(
        ["gcc", *FLAGS, "-O1", "-o", program, SOURCE],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    try:
        ran = subprocess.run([program, "/"], timeout=TIMEOUT, check=False)
    except OSError:
        ran = None
    require(ran is not None and ran.returncode == 0, "a kernel that runs 32-bit programs")

    def run(*paths):
        done = subprocess.run(
            [program, *paths], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        assert done.returncode == 0, (errno.errorcode.get(done.returncode), paths)
        return sorted(set(done.stdout.split()) - {".", ".."})

    return run


def test_all_that_is_listed_and_windows_have_numbers_of_32_bits(shared, small):
    numbers = set()
    windows = [
        shared.path / name
        for name in ("1af4:1110/bar0@8", "1af4:1110/x32/bar0@8", "phys/1e102c5", "phys/u8/1000+4")
    ]
    for directory, directories, files in os.walk(shared.path):
        names = directories + files
        listed = [os.path.join(directory, name) for name in names]
        found = [os.lstat(path).st_ino for path in (*listed, *windows)]
        assert all(0 < number < 1 << 32 for number in found), directory
        numbers.update(found)
        if small is not None:
            assert small(f"{directory}/") == sorted(names)
            # Larger ones it can't look at whatever their number is (MAX_NON_LFS).
            fitting = [path for path in listed if os.lstat(path).st_size < 1 << 31]
            assert small(*fitting, *windows) == []
    assert len(numbers) > len(windows)


def test_names_of_one_thing_have_one_number_and_different_things_do_not(shared):
    bar, window = shared.path / "1af4:1110/bar0", shared.path / "1af4:1110/bar0@8"
    with bar.open("rb"), window.open("rb"):
        assert bar.stat().st_ino == (shared.path / "pci/0000:00:04.0/bar0").stat().st_ino
        assert window.stat().st_ino == (shared.path / "1af4:1110/bar0@8-ff").stat().st_ino
        assert window.stat().st_ino not in {
            bar.stat().st_ino,
            (shared.path / "1af4:1110/u8/bar0@8").stat().st_ino,
            (shared.path / "1af4:1110.1/bar0@8").stat().st_ino,
        }
