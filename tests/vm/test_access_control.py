"""Who gets in at real devices, and that refused opens and strange calls reach none."""

import json

import pytest

from vm.architecture import BIN
from vm.machine import Access

GROUP = 4242
EDU, NVME = "1234:11e8", "1b36:0010"
WHERE, LOG = "/mnt/shared", "/run/shared.log"


@pytest.fixture(scope="module")
def shared(guest):
    """A mount for a group, of two devices, one of them read-only."""
    guest.run(f"mkdir -p {WHERE} && chmod 755 /mnt {WHERE}")
    allowed = ("--allow-device", EDU, "--allow-device", "1b36:00[1]*", "--read-only-device", NVME)
    sharing = ("-o", "allow_other", "--group", GROUP, "--mode", "660")
    guest.mount(WHERE, *sharing, *allowed, log=LOG)
    yield WHERE
    assert "Traceback" not in guest.run(f"cat {LOG}").text
    guest.run(f"{BIN}/barfs umount {WHERE}")


@pytest.fixture
def as_other(guest):
    """Run a command as nobody, in one group."""

    def run(command, group=GROUP):
        who = f"setpriv --reuid 65534 --regid 65534 --groups {group}"
        return guest.try_run(f"cd / && {who} {command}")

    return run


def test_a_member_makes_the_one_access_that_was_meant(shared, guest, as_other, edu):
    with guest.traced(edu) as seen:
        done = as_other(f"dd if={shared}/{EDU}/bar0 bs=4 count=1")
        assert len(done.stdout) == 4, done
        assert as_other(f"cat {shared}/{EDU}/x32/bar0@88").status == 0
        write = f"dd if=/dev/zero of={shared}/{EDU}/bar0 bs=8 seek=18 count=1 conv=notrunc"
        assert as_other(write).status == 0
    assert seen == [Access("read", 0, 4), Access("read", 0x88, 4), Access("write", 0x90, 8)]


def test_refused_opens_reach_no_device(shared, guest, as_other, edu, nvme):
    address = f"{edu.address:x}"
    with guest.traced(edu, nvme) as seen:
        for command, group in (
            (f"dd if={shared}/{EDU}/bar0 bs=4 count=1", GROUP + 1),
            (f"dd of={shared}/{EDU}/bar0 if=/dev/zero bs=4 count=1 conv=notrunc", 0),
            (f"dd if={shared}/{EDU}/config bs=4 count=1", GROUP + 1),
            (f"dd of={shared}/{EDU}/config if=/dev/zero bs=4 count=1 conv=notrunc", GROUP),
            (f"dd of={shared}/{NVME}/bar0 if=/dev/zero bs=4 count=1 conv=notrunc", GROUP),
            (f"dd if={shared}/phys/{address}+4 bs=4 count=1", GROUP),
            (f"ls {shared}/phys", GROUP),
            (f"cat {shared}/phys/x32/{address}", GROUP),
        ):
            done = as_other(command, group)
            assert done.status != 0, done
            assert b"Permission denied" in done.stderr, done
        for name in (f"{NVME}/bar0", f"{NVME}/config", f"phys/{nvme.address:x}+4"):
            command = f"dd of={shared}/{name} if=/dev/zero bs=4 count=1 conv=notrunc"
            assert b"Read-only file system" in guest.try_run(command).stderr
        for name in ("8086:100e/bar0", "1af4:1110/bar0", "pci/0000:00:10.0/bar2"):
            assert b"No such file" in guest.try_run(f"cat {shared}/{name}").stderr
    assert seen == []
    assert "0000:00:16.0 is read-only in this mount (--read-only-device) (EROFS)" in (
        guest.run(f"cat {LOG}").text
    )
    assert guest.run(f"ls {shared}/pci").text == "0000:00:13.0\n0000:00:16.0\n"


def test_what_is_read_only_is_read(shared, guest, as_other, nvme):
    with guest.traced(nvme) as seen:
        for command in (
            f"dd if={shared}/{NVME}/bar0 bs=4 skip=2 count=1",
            f"dd if={shared}/phys/{nvme.address + 8:x}+4 bs=4",
        ):
            assert guest.run(command).stdout == (0x00010400).to_bytes(4, "little")
        assert len(as_other(f"dd if={shared}/{NVME}/bar0 bs=4 skip=2 count=1").stdout) == 4
    assert seen == [Access("read", 8, 4)] * 3


def test_strange_calls_reach_no_device(shared, guest, edu):
    with guest.traced(edu) as seen:
        done = guest.program("strange_calls.py", f"{shared}/{EDU}/bar0")
    assert json.loads(done.text) == ["ENODEV", "ENOTSUP", "ENOTTY"]
    assert seen == []


def test_without_phys_no_dev_mem_is_needed(guest, edu):
    where = "/mnt/no-phys"
    guest.run("mv /dev/mem /dev/mem.away")
    try:
        guest.run(f"mkdir -p {where} && {BIN}/barfs mount --no-phys {where}")
        assert "phys" not in guest.run(f"ls {where}").text.split()
        assert b"No such file" in guest.try_run(f"ls {where}/phys").stderr
        with guest.traced(edu) as seen:
            guest.run(f"dd if={where}/{EDU}/bar0 bs=4 count=1")
        assert seen == [Access("read", 0, 4)]
        guest.run(f"{BIN}/barfs umount {where}")
    finally:
        guest.run("mv /dev/mem.away /dev/mem")
