"""Vast BARs and ranges, many functions and open files: what is not asked for costs nothing."""

import os
import re
from pathlib import Path

import pytest

from barfs.access.apertures import GLANCE, WINDOW
from barfs.access.files import PAGE_SIZE
from barfs.machine.index import SOME
from bench import machines
from mounted.conftest import mounted, wait_until

SUBJECT = f"pci/{machines.SUBJECT}"
TIB = 1 << 40  # of VAST the start, too


@pytest.fixture
def vast(fuse, tmp_path):
    """A mount of a machine with a BAR of 64 GiB and a range of a TiB, and the machine."""
    (tmp_path / "machine").mkdir()
    machine = machines.build(tmp_path / "machine", 16)
    with mounted(machine, tmp_path) as mount:
        yield mount, machine


def mapped(mount, file):
    """How much of a file the daemon has mapped, in bytes."""
    total = 0
    for line in Path(f"/proc/{mount.process.pid}/maps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if line.endswith(str(file)):
            total += int(found[2], 16) - int(found[1], 16)
    return total


@pytest.mark.parametrize("kind", ["BAR", "range"])
def test_of_what_is_vast_only_what_is_touched_is_mapped(vast, kind):
    mount, machine = vast
    if kind == "BAR":
        path, size = mount.path / SUBJECT / f"bar{machines.HUGE}", machines.HUGE_SIZE
        file, start = next(machine.sysfs.glob(f"**/{SUBJECT[4:]}/resource{machines.HUGE}")), 0
    else:
        path, size = mount.path / "phys" / machines.VAST, TIB
        file, start = machine.devmem, TIB
    assert path.stat().st_size == size
    fd = os.open(path, os.O_RDWR)
    assert 0 < mapped(mount, file) <= GLANCE + PAGE_SIZE
    for offset in (size - 4, size // 2 + 8, 0x1000):
        word = offset.to_bytes(8, "little")[:4]
        assert os.pwrite(fd, word, offset) == 4
        assert os.pread(fd, 4, offset) == word
        with file.open("rb") as backing:
            assert os.pread(backing.fileno(), 4, start + offset) == word
        assert 0 < mapped(mount, file) <= GLANCE + PAGE_SIZE
    os.pread(fd, 4, 2 * GLANCE)  # the same place once more
    assert 0 < mapped(mount, file) <= WINDOW + PAGE_SIZE
    assert os.pread(fd, 8, size) == b""
    os.close(fd)
    wait_until(lambda: mapped(mount, file) == 0, "it stays mapped")


def test_a_thousand_open_files(vast):
    mount, _ = vast
    path = mount.path / SUBJECT / f"bar{machines.REGISTERS}"
    before = len(os.listdir(f"/proc/{mount.process.pid}/fd"))
    files = [os.open(path, os.O_RDWR) for _ in range(1000)]
    for number, fd in enumerate(files):
        assert os.pwrite(fd, number.to_bytes(4, "little"), 4 * number) == 4
    for number, fd in enumerate(reversed(files)):
        assert os.pread(fd, 4, 4 * number) == number.to_bytes(4, "little")
    for fd in files:
        os.close(fd)
    wait_until(
        lambda: len(os.listdir(f"/proc/{mount.process.pid}/fd")) <= before, "descriptors stay"
    )


def reads(mount):
    """How often the daemon has read from files or devices, and made other such calls."""
    text = Path(f"/proc/{mount.process.pid}/io").read_text()
    return int(re.search(r"syscr: (\d+)", text)[1])


@pytest.mark.parametrize("what", ["link", "stat", "open"])
def test_one_among_thousands_of_functions_costs_what_one_of_a_few_does(fuse, tmp_path, what):
    counts = []
    for functions in (16, 3000):
        directory = tmp_path / str(functions)
        (directory / "machine").mkdir(parents=True)
        machine = machines.build(directory / "machine", functions)
        last = f"pci/{machines.address_of_last(functions)}/bar0"
        link = machines.link_to_last(functions)
        with mounted(machine, directory) as mount:
            calls = {
                "link": lambda: os.readlink(mount.path / link),  # noqa: B023 - called at once
                "stat": lambda: os.stat(mount.path / last),  # noqa: B023
                "open": lambda: os.close(os.open(mount.path / last, os.O_RDONLY)),  # noqa: B023
            }
            assert calls["link"]() == last.removesuffix("/bar0")  # the ids are read once
            calls[what]()
            start = reads(mount)
            for _ in range(50):
                calls[what]()
            counts.append(reads(mount) - start)
            if what == "link":
                absent = ("ffff:ffff", f"{link.partition('.')[0]}:0001:0001")
                for name in absent:
                    assert not os.path.lexists(mount.path / name)  # the ids are read once
                start = reads(mount)
                for name in absent * 25:
                    assert not os.path.lexists(mount.path / name)
                assert reads(mount) - start < 50 * (4 * SOME + 20)
            assert len(os.listdir(mount.path)) == functions + len(
                ("pci", "phys", "ksym", "log", "status")
            )
    few, many = counts
    assert few >= 50
    assert many <= few * 1.2 + 20


def memory(mount):
    """What the daemon uses, in KiB."""
    status = Path(f"/proc/{mount.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def test_open_directories_and_made_up_names_take_no_memory(fuse, tmp_path):
    """Nobody needs a right in the mount for either."""
    (tmp_path / "machine").mkdir()
    machine = machines.build(tmp_path / "machine", 500)
    with mounted(machine, tmp_path) as mount:
        os.listdir(mount.path)
        before = memory(mount)
        opened = [os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY) for _ in range(400)]
        assert memory(mount) < before + 4096  # 90 MiB if each had its own listing
        for fd in opened:
            assert len(os.listdir(fd)) > 500
            os.close(fd)
        bar = mount.path / SUBJECT / f"bar{machines.HUGE}"
        grown = []
        for begin in (0, 20_000):
            for offset in range(begin, begin + 20_000):
                os.stat(f"{bar}@{offset:x}+4")
            grown.append(memory(mount))
        # Caches of some thousands of names are full by then.
        assert grown[1] - grown[0] < 8192
        assert grown[1] - before < 40 << 10
        kept = os.open(f"{bar}@0+4", os.O_RDWR)
        for offset in range(9000):
            os.stat(f"{bar}@{offset:x}+8")
        assert os.pwrite(kept, b"abcd", 0) == 4  # its name is forgotten, and it is not
        os.close(kept)
