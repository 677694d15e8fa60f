"""`info` in a mount, and demo's output when nobody reads it."""

import ctypes
import errno
import os
import re
import shutil
import struct

import pytest

from mounted.conftest import sh

LIBC = ctypes.CDLL(None, use_errno=True)
IN_OPEN = 0x20


class Opened:
    """Which files in a directory anybody opens, from inotify(7)."""

    def __init__(self, directory):
        self._fd = LIBC.inotify_init1(os.O_NONBLOCK)
        assert self._fd >= 0
        assert LIBC.inotify_add_watch(self._fd, os.fsencode(directory), IN_OPEN) >= 0

    def names(self):
        """Since the last call; of the directory itself an empty one."""
        found = set()
        while True:
            try:
                events = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            while events:
                _, _, _, length = struct.unpack_from("iIII", events)
                found.add(events[16 : 16 + length].rstrip(b"\0").decode())
                events = events[16 + length :]

    def close(self):
        os.close(self._fd)


def test_cat_shows_it(shared):
    text = sh(f"cat {shared.path}/1af4:1110/info").stdout.decode()
    keys = [line.partition(": ")[0] for line in text.splitlines()]
    assert keys == [
        *("address", "id", "subsystem", "class", "revision", "driver", "power state"),
        *("memory decoding", "I/O decoding", "bus master", "NUMA node", "bar0", "bar2"),
        "registers",
    ]
    assert text.startswith("address: 0000:00:04.0\nid: 1af4:1110")
    assert "file pci/0000:00:04.0/bar2, read as memory" in text
    assert text.endswith("\nregisters: 1af4:1110.json (ivshmem)\n")


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("grep -h ^driver: pci/*/info", "driver: e1000\n" + "driver: none\n" * 3),
        ("grep -l '^driver: e1000' pci/*/info", "pci/0000:00:03.0/info\n"),
        ("awk -F': ' '/^bus master/ { print $2 }' 8086:100e/info", "off\n"),
        ("head -n 1 1af4:1110.1/info", "address: 0000:00:05.0\n"),
        ("tail -n 2 8086:100e/info | head -n 1 | cut -d, -f1", "rom: address 0xfeb30000\n"),
        ("wc -l < 1af4:1110/info", "14\n"),
        ("dd if=1af4:1110/info bs=1 count=8 status=none", "address:"),
        ("dd if=1af4:1110/info bs=1 skip=9 count=12 status=none", "0000:00:04.0"),
        ("dd if=1af4:1110/info bs=4096 skip=1 status=none", ""),
        ("cat 1af4:1110/info | cmp - 1af4:1110:1af4:1100/info", ""),
        ("cp 1af4:1110/info {copy} && cmp {copy} pci/0000:00:04.0/info", ""),
    ],
)
def test_tools(shared, tmp_path, command, output):
    done = sh(command.replace("{copy}", f"{tmp_path}/copy"), cwd=shared.path)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, output, b"")


def test_the_files_that_it_names_are_there_in_the_size_that_it_says(shared):
    named = 0
    for address in os.listdir(shared.path / "pci"):
        for line in (shared.path / "pci" / address / "info").read_text().splitlines():
            if ", file " in line:
                size, file = re.search(r", size (\w+) .*, file ([^,]*)", line).groups()
                assert (shared.path / file).stat().st_size == int(size, 16)
                named += 1
    assert named == 8


def test_stat_and_listing_touch_nothing_and_reading_only_config_space(shared):
    devices = shared.machine.sysfs / "bus/pci/devices"
    touching = {"config", "rom", *(f"resource{index}" for index in range(6))}
    for address in os.listdir(devices):
        opened = Opened(devices / address)
        directory = shared.path / "pci" / address
        # Which capabilities there are is in config space alone.
        find = f"find {directory} -path '*/config' -prune -o -print"
        assert sh(f"ls -l {directory} && stat {directory}/info && {find}").returncode == 0
        assert sh(f"stat {directory}/regs/config/COMMAND.MEM").returncode == 0
        assert os.stat(directory / "info").st_size == 0
        assert opened.names() & touching == set()
        assert sh(f"cat {directory}/info").returncode == 0
        assert opened.names() & touching == {"config"}
        assert sh(f"ls {directory}/regs/config").returncode == 0
        assert opened.names() & touching <= {"config"}
        opened.close()


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
def test_it_cannot_be_opened_for_writing(shared, flags):
    path = shared.path / "1af4:1110/info"
    before = path.read_text()
    with pytest.raises(OSError) as caught:
        os.open(path, flags)
    assert caught.value.errno == errno.EACCES
    assert "pci/0000:00:04.0/info is read-only (EACCES)" in shared.log
    assert path.read_text() == before


@pytest.mark.parametrize(
    "command", ["echo x > {}", "printf x | dd of={} conv=notrunc", "cp /etc/passwd {}"]
)
def test_writes_are_refused(shared, command):
    done = sh(command.format(shared.path / "1af4:1110/info"))
    assert done.returncode != 0
    assert b"Permission denied" in done.stderr


def test_what_the_machine_changes_is_in_the_next_open(mount):
    devices = mount.machine.sysfs / "bus/pci/devices"
    path = mount.path / "1af4:1110/info"
    assert "\ndriver: none\n" in path.read_text()
    (devices / "0000:00:04.0/driver").symlink_to(devices.parent / "drivers/ivshmem")
    assert "\ndriver: ivshmem\n" in path.read_text()
    with (mount.path / "1af4:1110/config").open("r+b", buffering=0) as config:
        config.seek(4)
        config.write(b"\x04\x00")
    assert "\nmemory decoding: off\nI/O decoding: off\nbus master: on\n" in path.read_text()
    for name in ("numa_node", "power_state"):
        (devices / "0000:00:04.0" / name).unlink()
    text = path.read_text()
    assert "\npower state: unknown\n" in text
    assert "\nNUMA node: unknown\n" in text
    assert mount.alive()


def test_an_unplugged_device(mount):
    directory = mount.path / "pci/0000:00:05.0"
    text = (directory / "info").read_text()
    with (directory / "info").open() as opened_before:
        shutil.rmtree(mount.machine.sysfs / "bus/pci/devices/0000:00:05.0")
        # Made when it was opened, so that it can be read in pieces.
        assert opened_before.read() == text
    assert b"No such file" in sh(f"cat {directory}/info").stderr
    assert b"No such file" in sh(f"cat {mount.path}/1af4:1110.1/info").stderr
    done = sh(f"grep -h ^address: {mount.path}/pci/*/info")
    assert done.stdout.decode().split()[1::2] == ["0000:00:03.0", "0000:00:04.0", "0000:01:00.0"]
    assert done.returncode == 0
    assert mount.alive()
