"""A slow device holds up those who use it and nobody else, and its accesses are the same."""

import contextlib
import errno
import os
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from barfs.machine import simulated
from barfs.requests.workers import PER_DEVICE
from mounted import conftest
from mounted.conftest import TIMEOUT, Mount, sh, wait_until

NIC, NVME = 0xFEB00000, 0x800200000  # as in slow_daemon.py


class Access(NamedTuple):
    kind: str
    address: int
    width: int
    data: bytes
    place: str


class SlowMount(Mount):
    """A mount by slow_daemon.py, and what it has recorded since the test began."""

    @property
    def record(self):
        lines = self.record_path.read_text().splitlines()[self.start :]
        return [
            Access(kind, int(address, 16), int(width), bytes.fromhex(data), place)
            for kind, address, width, data, place in map(str.split, lines)
        ]

    def begin(self):
        self.start = 0
        self.start = len(self.record)

    def open(self, path):
        return os.open(self.path / path, os.O_RDWR)


@pytest.fixture(scope="module")
def slow_mounts(fuse, tmp_path_factory):
    """Makes such mounts, which are ended at the end."""
    mounts = []

    def make():
        directory = tmp_path_factory.mktemp("slow")
        (directory / "machine").mkdir()
        record = directory / "record"
        record.touch()
        daemon = [sys.executable, Path(__file__).with_name("slow_daemon.py"), record]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conftest, "BARFS", daemon)
            mounts.append(SlowMount(simulated.build(directory / "machine"), directory))
        mounts[-1].record_path = record
        mounts[-1].begin()
        return mounts[-1]

    yield make
    for mount in mounts:
        assert mount.end() == 0


@pytest.fixture(scope="module")
def slow_mount(slow_mounts):
    mount = slow_mounts()
    yield mount
    assert mount.alive()


@pytest.fixture
def slow(slow_mount):
    slow_mount.begin()
    return slow_mount


class Client(threading.Thread):
    """A request in a thread, and how long it took. A read or write waits without the GIL."""

    def __init__(self, call, *arguments):
        super().__init__()
        self._request = lambda: call(*arguments)
        self.result = self.error = None
        self.start()

    def run(self):
        started = time.monotonic()
        try:
            self.result = self._request()
        except OSError as error:
            self.error = error
        self.took = time.monotonic() - started

    def end(self):
        self.join(TIMEOUT)
        assert not self.is_alive()
        assert self.error is None
        return self.result


def longest_waits(*clients, requests):
    """Make requests in turn while clients wait for theirs; how long each kind waited at most.

    And how many rounds there were.
    """
    longest, rounds = dict.fromkeys(requests, 0.0), 0
    while any(client.is_alive() for client in clients):
        for name, request in requests.items():
            started = time.monotonic()
            request()
            longest[name] = max(longest[name], time.monotonic() - started)
        rounds += 1
    return longest, rounds


def test_while_one_reads_a_large_slow_bar_all_else_is_prompt(slow):
    length = 0x4000
    bar = slow.open("8086:100e/bar0")
    other, ports, config = map(slow.open, ("1af4:1110/bar0", "8086:100e/bar1", "8086:100e/config"))
    client = Client(os.pread, bar, length, 0)
    waits, rounds = longest_waits(
        client,
        requests={
            "another device": lambda: os.pread(other, 4, 0),
            "another BAR": lambda: os.pread(ports, 4, 0),
            "another file": lambda: os.pread(config, 4, 0),
            "the same BAR": lambda: os.pread(bar, 4, 0x1F000),
            "open": lambda: (slow.path / "1af4:1110/x32/bar0@8").read_text(),
            "write": lambda: os.pwrite(other, b"abcd", 8),
            "ls": lambda: os.listdir(slow.path / "pci"),
            "log": lambda: (slow.path / "log").read_bytes(),
        },
    )
    assert len(client.end()) == length
    assert client.took > 2
    assert rounds > 10
    # On a machine that is busy with other things all takes longer.
    assert max(waits.values()) < max(0.5, client.took / 4), waits
    made = [access for access in slow.record if access.address < NIC + length]
    assert [(access.kind, access.address, access.width) for access in made] == [
        ("load", NIC + at, 4) for at in range(0, length, 4)
    ]
    assert {access.place for access in made} == {"thread"}
    for fd in (bar, other, ports, config):
        os.close(fd)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_slow_register_learns_to_go_to_a_thread(slow, width):
    bar = slow.open("1b36:0010/bar0")
    for _ in range(2):
        assert len(os.pread(bar, width, 0)) == width
    os.pwrite(bar, bytes(width), 8)
    os.close(bar)
    assert len((slow.path / "1b36:0010/x32/bar0@8").read_bytes()) == 11
    *made, text = slow.record
    assert [(access.kind, access.address, access.width) for access in made] == [
        ("load", NVME, width),
        ("load", NVME, width),
        ("store", NVME + 8, width),
    ]
    assert text[:3] == ("load", NVME + 8, 4)
    # The first of all may have been made at once; who had to wait for it is past.
    assert [access.place for access in (*made, text)][1:] == ["thread"] * 3


def test_an_update_is_never_mixed_with_a_large_write_but_not_held_up_elsewhere(slow):
    length = 0x2000
    bar = slow.open("8086:100e/bar0")
    writer = Client(os.pwrite, bar, b"\xff" * length, 0)
    wait_until(lambda: len(slow.record) > 100, "nothing is written")
    (slow.path / "8086:100e/x32/bar0@2000").write_text("0x1:0xff")
    assert writer.is_alive(), "held up"
    inside = [
        Client((slow.path / f"8086:100e/x32/bar0@{offset:x}").write_text, f"0x{n}:0x0f")
        for n, offset in enumerate((0x0, 0x1000, 0x1FFC))
    ]
    assert writer.end() == length
    for client in inside:
        client.end()
    made = slow.record
    bulk = [access for access in made if access.data == b"\xff" * 4 and access.kind == "store"]
    assert len(bulk) == length // 4
    last = made.index(bulk[-1])
    for n, offset in enumerate((0x0, 0x1000, 0x1FFC)):
        at = [i for i, access in enumerate(made) if access.address == NIC + offset]
        assert [made[i].kind for i in at] == ["store", "load", "store"]
        assert made[at[1]].data == b"\xff" * 4
        assert made[at[2]].data == bytes([0xF0 | n]) + b"\xff" * 3
        assert at[1] > last
    (load, store) = (access for access in made if access.address == NIC + 0x2000)
    assert (load.kind, store.kind, store.data) == ("load", "store", b"\1\0\0\0")
    assert made.index(store) < last
    os.close(bar)


def test_a_large_write_waits_for_an_update_that_is_under_way(slow):
    bar = slow.open("1b36:0010/bar0")
    os.pwrite(bar, bytes(8), 0x100)
    slow.begin()
    update = Client((slow.path / "1b36:0010/x32/bar0@100").write_text, "0x5:0x0f")
    wait_until(lambda: slow.record, "no update begins")
    assert os.pwrite(bar, b"\xff" * 12, 0xFC) == 12
    update.end()
    made = [access for access in slow.record if access.address == NVME + 0x100]
    assert [(access.kind, access.data) for access in made] == [
        ("load", b"\0\0\0\0"),
        ("store", b"\5\0\0\0"),
        ("store", b"\xff" * 4),
    ]
    os.close(bar)


def test_twenty_clients_of_a_slow_device_starve_nobody(slow):
    other = slow.open("1af4:1110/bar0")
    bars = [slow.open("1b36:0010/bar0") for _ in range(20)]
    os.pread(bars[0], 4, 0)  # it is known to be slow
    slow.begin()
    started = time.monotonic()
    clients = [Client(os.pread, bar, 16, 0x10) for bar in bars]
    waits, rounds = longest_waits(
        *clients,
        requests={
            "read": lambda: os.pread(other, 4, 0),
            "ls": lambda: os.listdir(slow.path),
            "open": lambda: (slow.path / "1af4:1110.1/x32/bar0@8").read_text(),
        },
    )
    took = time.monotonic() - started
    assert {client.end() for client in clients} == {bytes(16)}
    assert len(slow.record) == 20 * 4
    # 80 accesses of 50 ms in so many threads.
    assert took > 80 * 0.05 / PER_DEVICE * 0.9
    assert rounds > 10
    assert max(waits.values()) < took / 2
    for fd in (*bars, other):
        os.close(fd)


def test_a_long_request_ends_with_its_device(slow_mounts):
    """Nothing is accessed twice until then, and others go on."""
    slow = slow_mounts()
    bar, other = slow.open("1b36:0010/bar0"), slow.open("1af4:1110/bar0")
    client = Client(os.pread, bar, 0x4000, 0)  # it would take 200 s
    wait_until(lambda: len(slow.record) > 3, "no read begins")
    started = time.monotonic()
    (slow.machine.sysfs / "bus/pci/devices/0000:01:00.0").rename(slow.machine.sysfs / "gone")
    (slow.machine.sysfs / "gone/resource").unlink()
    client.join(TIMEOUT)
    assert time.monotonic() - started < 10
    assert client.error.errno == errno.ENODEV
    made = [(access.kind, access.address, access.width) for access in slow.record]
    assert made == [("load", NVME + at, 4) for at in range(0, 4 * len(made), 4)]
    assert len(os.pread(other, 4, 0)) == 4
    for fd in (bar, other):
        os.close(fd)


@pytest.mark.parametrize("write", [False, True])
def test_the_mount_ends_soon_whatever_is_under_way(slow_mounts, write):
    """Long requests, and more that wait for their turn. Each of them is told."""
    slow = slow_mounts()
    bars = [slow.open("1b36:0010/bar0") for _ in range(12)]
    calls = [(os.pwrite, bytes(0x4000)) if write else (os.pread, 0x4000) for _ in bars]
    clients = [Client(call, bar, what, 0) for bar, (call, what) in zip(bars, calls, strict=True)]
    wait_until(lambda: len(slow.record) > 8, "nothing begins")
    started = time.monotonic()
    slow.process.terminate()
    assert slow.process.wait(TIMEOUT) == 0
    assert time.monotonic() - started < 10
    for client in clients:
        client.join(TIMEOUT)
        assert client.error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    assert "Traceback" not in slow.log
    for fd in bars:
        with contextlib.suppress(OSError):  # what flush says to it
            os.close(fd)


@pytest.mark.parametrize("ending", ["SIGTERM", "umount -l"])
def test_it_ends_with_a_request_under_way(slow_mounts, ending):
    """Cleanly, once that has ended: no accesses to a BAR that is unmapped."""
    slow = slow_mounts()
    bar = slow.open("8086:100e/bar0")
    client = Client(os.pread, bar, 0x2000, 0)
    wait_until(lambda: slow.record, "no read begins")
    if ending == "SIGTERM":
        slow.process.terminate()
    else:
        assert sh(f"umount -l {slow.path}").returncode == 0
        client.end()
        os.close(bar)
    assert slow.process.wait(TIMEOUT) == 0
    assert "Traceback" not in slow.log
    client.join(TIMEOUT)
    assert client.error or len(client.result) == 0x2000
    if ending == "SIGTERM":
        with contextlib.suppress(OSError):  # what flush says to it
            os.close(bar)
