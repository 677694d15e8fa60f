"""Write-combining mappings, as the kernel has them: it says of each what it was made (debugpat)."""

import base64
import re

import pytest

from vm.architecture import BIN
from vm.conftest import MOUNTS, bar_address
from vm.machine import MIB

COMBINING = "/run/combining"
DEVICE = "0000:00:10.0"


@pytest.fixture(scope="module")
def combining(guest):
    """A mount with --write-combining."""
    guest.mount(COMBINING, "--write-combining", log=f"{COMBINING}.log")
    yield COMBINING
    guest.run(f"{BIN}/barfs umount {COMBINING}")


@pytest.fixture
def types(guest):
    """What BAR 2 of the device has been mapped as since it was last asked: wanted and got."""
    address = bar_address(guest, DEVICE, 2)

    def types():
        log = guest.run("dmesg -c").text
        found = re.findall(r"added \[mem 0x0*([0-9a-f]+)-.*req ([a-z-]+), ret ([a-z-]+)", log)
        return [pair[1:] for pair in found if address <= int(pair[0], 16) < address + MIB]

    types()
    return types


WC, UNCACHED = "write-combining", "uncached-minus"


def test_writes_are_combined_and_done_when_they_return(guest, combining, types):
    bar = f"{combining}/pci/{DEVICE}/bar2"
    guest.run(
        "head -c 70001 /dev/urandom > /run/data && sha256sum < /run/data > /run/sum &&"
        f" dd if=/run/data of={bar} bs=1M seek=3 oflag=seek_bytes conv=notrunc"
    )
    assert types() == [(WC, WC)]
    data = guest.run("base64 -w0 /run/data").text
    assert guest.peek(0, 3, 70001) == base64.b64decode(data)
    guest.run(f"tail -c +4 {bar} | head -c 70001 | sha256sum | cmp - /run/sum")
    assert types() == [(UNCACHED, UNCACHED)]


def test_registers_and_exact_views_are_not(guest, combining, types):
    guest.run(
        f"cd {combining}/pci/{DEVICE} && echo 42 > x32/bar2@40 &&"
        " printf abcd | dd of=u32/bar2 conv=notrunc && printf ab | dd of=bar0 bs=1 seek=8"
    )
    assert types() == [(UNCACHED, UNCACHED)] * 2
    assert guest.peek(0, 0x40, 4) == bytes([42, 0, 0, 0])


def test_only_where_it_was_asked_for(guest, bars, types):
    guest.run(f"printf abcd | dd of={bars}/pci/{DEVICE}/bar2 conv=notrunc")
    assert [got for _, got in types()] == [UNCACHED]


def test_an_exact_file_would_be_write_combining_too(guest, combining, types):
    """What the claims are for: of two mappings the second gets the first one's type."""
    held = f"exec 3<>/{combining}/pci/{DEVICE}/bar2"
    other = f"{MOUNTS['resource']}/pci/{DEVICE}/u32/bar2"
    guest.run(f"{held}; head -c 4 {other}")
    assert types() == [(WC, WC), (UNCACHED, WC)]
    for path in (f"pci/{DEVICE}/u32/bar2", f"phys/{bar_address(guest, DEVICE, 2):x}+4"):
        done = guest.try_run(f"{held}; head -c 4 {combining}/{path}")
        assert b"Device or resource busy" in done.stderr
        assert types() == [(WC, WC)]
    assert "is open for writing with write-combining" in guest.run(f"cat {COMBINING}.log").text


def test_and_not_while_exact_files_are_open(guest, combining, types):
    bar = f"{combining}/pci/{DEVICE}/bar2"
    exact = f"{combining}/pci/{DEVICE}/u32/bar2"
    guest.run(f"exec 3< {exact} && printf Dunia | dd of={bar} conv=notrunc")
    assert types() == [(UNCACHED, UNCACHED)] * 2
    assert guest.peek(0, 0, 5) == b"Dunia"
