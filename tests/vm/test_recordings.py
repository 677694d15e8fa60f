"""A machine that is recorded in the guest and mounted on the host; the bus says what was read."""

import json
import tarfile
import time
from pathlib import Path

import pytest
from mounted.conftest import barfs, is_mounted, sh

from vm.architecture import BIN
from vm.conftest import MOUNTS, bar_address
from vm.machine import COMMAND_TIMEOUT, Access, Region

EDU, IVSHMEM, NIC = "0000:00:13.0", "0000:00:10.0", "0000:00:15.0"
REGIONS = {
    "edu-mmio": (EDU, 0),
    "ivshmem-mmio": (IVSHMEM, 0),
    "e1000-mmio": (NIC, 0),
    "nvme": ("0000:00:16.0", 0),
}
READ = (f"{EDU}/bar0@0-7:u32", f"{EDU}/bar0@80-9f:u64", f"{IVSHMEM}/bar0@8-b")
MEMORY = f"{IVSHMEM}/bar2@0-fff"

# What of each function is compared, and what of BARs.
FILES = ["config", "info", "regs/README"]
PARTS = [
    f"pci/{EDU}/u32/bar0@0-7",
    f"pci/{EDU}/x64/bar0@80",
    f"pci/{EDU}/decode/ID",
    f"pci/{IVSHMEM}/x32/bar0@8",
    f"pci/{IVSHMEM}/bar2@0-fff",
    f"pci/{NIC}/decode/STATUS",
    f"pci/{NIC}/regs/CTRL",
]


@pytest.fixture(scope="module")
def regions(guest):
    return {
        name: Region(name, bar_address(guest, address, bar))
        for name, (address, bar) in REGIONS.items()
    }


@pytest.fixture(scope="module")
def saved(guest, regions, tmp_path_factory):
    """A recording, what the bus saw when it was made, and what was said of it."""
    guest.poke(0, 0, bytes(range(256)) * 16)
    words = " ".join(f"--read {one}" for one in (*READ, MEMORY))
    with guest.traced(*regions.values()) as seen:
        done = guest.run(f"{BIN}/barfs save -o /run/lab7.tar {words}")
    path = tmp_path_factory.mktemp("recordings") / "lab7.tar"
    path.write_bytes(guest.run("cat /run/lab7.tar").stdout)
    return path, seen, done.stderr.decode()


def test_the_bus_saw_what_was_asked_for_and_nothing_else(saved):
    _, seen, said = saved
    assert sorted(seen, key=repr) == sorted(
        [
            *(Access("read", offset, 4) for offset in (0, 4)),
            *(Access("read", offset, 8) for offset in (0x80, 0x88, 0x90, 0x98)),
            Access("read", 8, 4),
        ],
        key=repr,
    )
    for one in READ:
        assert f"reads {one.partition(':u')[0].replace('/', ' ')}" in said


def test_without_read_the_bus_sees_nothing(guest, regions):
    with guest.traced(*regions.values()) as seen:
        guest.run(f"{BIN}/barfs save -o /run/other.tar --redact")
    assert seen == []


def test_registers_of_a_map_are_read_once_each_and_none_with_an_effect(guest, regions, tmp_path):
    with guest.traced(*regions.values()) as seen:
        guest.run(f"{BIN}/barfs save -o /run/other.tar --registers {NIC} {EDU}")
    path = tmp_path / "other.tar"
    path.write_bytes(guest.run("cat /run/other.tar").stdout)
    listed = [
        one
        for address in (NIC, EDU)
        for one in json.loads(barfs("regs", "list", "--json", address, "--machine", path).stdout)
    ]
    expected = {
        (one["owner"], one["offset"] + at, one["access_width"])
        for one in listed
        if one["space"] == "bar" and "r" in one["access"] and not one["read_has_effect"]
        for at in range(0, one["width"], one["access_width"])
    }
    assert len(expected) > 100
    assert {one.kind for one in seen} == {"read"}
    wanted = sorted((offset, width) for _, offset, width in expected)
    assert sorted((one.offset, one.width) for one in seen) == wanted


def test_on_the_host_every_file_is_equal(guest, saved, require, tmp_path):
    require(Path("/dev/fuse").exists(), "/dev/fuse")
    guest.run(
        f"{BIN}/barfs save -o /run/other.tar --registers {NIC} "
        + " ".join(f"--read {one}" for one in (*READ, MEMORY))
    )
    path = tmp_path / "lab7.tar"
    path.write_bytes(guest.run("cat /run/other.tar").stdout)
    # All functions are in the one, and registers in the other.
    for recording, parts in ((saved[0], None), (path, PARTS)):
        there = tmp_path / f"there-{recording.parent.name}"
        there.mkdir()
        done = barfs("mount", "--machine", recording, there)
        assert done.returncode == 0, done.stderr
        try:
            files = parts
            if files is None:
                names = "find . -path ./ksym -prune -o -print | sort"
                expected = guest.run(f"cd {MOUNTS['resource']} && {names}").text
                assert sh(f"cd {there} && {names}").stdout.decode() == expected
                functions = guest.run(f"ls {MOUNTS['resource']}/pci").text.split()
                assert len(functions) > 10
                files = [f"pci/{one}/{name}" for one in functions for name in FILES]
            sums = f"sha256sum {' '.join(files)}"
            expected = guest.run(f"cd {MOUNTS['resource']} && {sums}").text
            assert sh(f"cd {there} && {sums}").stdout.decode() == expected
            assert "recorded on" in (there / "status").read_text()
        finally:
            assert barfs("umount", there).returncode == 0
            assert not is_mounted(there)


@pytest.fixture
def numbered(guest):
    """A function with a serial number in its config space, in slot 2.

    Slots are not quite as they were afterwards.
    """
    guest.qmp.cmd("device_add", driver="e1000e", id="numbered", bus="slot2", romfile="")
    yield guest.run(
        "for i in {1..200}; do ls /sys/bus/pci/devices | grep -m 1 ^0000:02: && exit;"
        " sleep 0.1; done; exit 1"
    ).text.strip()
    guest.qmp.cmd("device_del", id="numbered")
    deadline = time.monotonic() + COMMAND_TIMEOUT
    while "numbered" in str(guest.qmp.cmd("qom-list", path="/machine/peripheral")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_redacted_it_has_no_serial_number_and_no_range_that_is_not_a_devices(
    guest, numbered, tmp_path
):
    """The serial number as setpci reads it, and what the kernel shows in /proc/iomem."""
    words = guest.run(f"setpci -s {numbered} ECAP03+4.L ECAP03+8.L").text.split()
    halves = [int(word, 16).to_bytes(4, "little") for word in words]
    iomem = guest.run("cat /proc/iomem").text.splitlines()
    guest.run(f"{BIN}/barfs save -o /run/other.tar --redact")
    redacted = guest.run("cat /run/other.tar").stdout
    for half in halves:
        assert half.strip(b"\0\xff")
        assert half not in redacted
    path = tmp_path / "redacted.tar"
    path.write_bytes(redacted)
    with tarfile.open(path) as tar:
        kept = tar.extractfile("proc/iomem").read().decode().splitlines()
    own = [line for line in kept if not line.startswith(" ")]
    assert f" : {numbered}" in "\n".join(own)
    functions = guest.run("ls /sys/bus/pci/devices").text.split()
    assert {line.partition(" : ")[2] for line in own} <= set(functions)
    left_out = {line.strip() for line in iomem} - {line.strip() for line in kept}
    assert any("System RAM" in line for line in left_out)
    for line in left_out:
        place, _, name = line.partition(" : ")
        for word in (place, f" : {name}"):
            assert word.encode() not in redacted
