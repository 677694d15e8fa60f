"""Decoding turned on while a file is open, on a real command register."""

import json

import pytest

from vm.architecture import BIN
from vm.machine import Access

ENABLING = "/run/enabling"
EDU, TESTDEV = "0000:00:13.0", "0000:00:14.0"


@pytest.fixture(scope="module")
def enabling(guest):
    """A mount with --enable."""
    guest.mount(ENABLING, "--enable", log=f"{ENABLING}.log")
    yield ENABLING
    guest.run(f"{BIN}/barfs umount {ENABLING}")


@pytest.fixture
def decoding(guest):
    """Sets the command register's decoding bits and the count of `enable`, and restores them."""

    def register(address):
        return int(guest.run(f"setpci -s {address} COMMAND").text, 16) & 3

    def count(address):
        return int(guest.run(f"cat /sys/bus/pci/devices/{address}/enable").text)

    def put(address, bits, enabled):
        device = f"/sys/bus/pci/devices/{address}"
        guest.run(f"while echo 0 > {device}/enable; do :; done; :")
        guest.run(f"for n in $(seq {enabled}); do echo 1 > {device}/enable; done")
        guest.run(f"setpci -s {address} COMMAND={bits}:3")

    before = {address: (register(address), count(address)) for address in (EDU, TESTDEV)}
    decoding.put, decoding.register, decoding.count = put, register, count
    yield decoding
    for address, (bits, enabled) in before.items():
        put(address, bits, enabled)


def until_off(guest, address, bits=0):
    """The last close reaches the daemon a moment after it has returned."""
    guest.run(
        f"for i in {{1..200}}; do (( (0x$(setpci -s {address} COMMAND) & 3) == {bits} )) && exit;"
        " sleep 0.05; done; exit 1"
    )


@pytest.mark.parametrize("enabled", [0, 1, 2])
@pytest.mark.parametrize("bits", [0, 1])
def test_memory_is_decoded_while_a_file_is_open(guest, enabling, edu, decoding, enabled, bits):
    decoding.put(EDU, bits, enabled)
    with guest.traced(edu) as seen:
        assert guest.run(f"cat {enabling}/pci/{EDU}/x32/bar0@0").text == "0x010000ed\n"
    assert seen == [Access("read", 0, 4)]
    until_off(guest, EDU, bits)
    assert decoding.count(EDU) == enabled
    # While it is open, and after the last of several.
    shown = guest.run(
        f"exec 3< {enabling}/pci/{EDU}/bar0 4<> {enabling}/pci/{EDU}/u32/bar0@4+4;"
        f" setpci -s {EDU} COMMAND; exec 3<&-; printf '\\1\\0\\0\\0' >&4; setpci -s {EDU} COMMAND;"
        f" exec 4>&-; dd if={enabling}/pci/{EDU}/u32/bar0@4+4 status=none | xxd -p"
    ).text.split()
    assert [int(word, 16) & 2 for word in shown[:2]] == [2, 2]
    assert shown[2] == "feffffff", "the inverse of what was written"
    until_off(guest, EDU, bits)
    assert decoding.count(EDU) == enabled


def test_the_first_of_two_mounts_to_close_leaves_it_on_for_the_other(
    guest, enabling, edu, decoding
):
    decoding.put(EDU, 0, 0)
    second = "/run/second"
    guest.mount(second, "--enable", log=f"{second}.log")
    for first, other in ((enabling, second), (second, enabling)):
        with guest.traced(edu) as seen:
            shown = guest.run(
                f"exec 3< {first}/pci/{EDU}/bar0 4< {other}/pci/{EDU}/x32/bar0@0; exec 3<&-;"
                " for i in {1..200}; do"
                f" grep -q 'another mount has it open' {first}.log && break; sleep 0.05; done;"
                f" setpci -s {EDU} COMMAND; cat <&4; exec 4<&-"
            ).text.split()
        assert int(shown[0], 16) & 2
        assert shown[1] == "0x010000ed"
        assert seen == [Access("read", 0, 4)]
        until_off(guest, EDU)
        assert decoding.count(EDU) == 0
    guest.run(f"{BIN}/barfs umount {second}")
    assert "not told" not in guest.run(f"cat {second}.log {enabling}.log").text


@pytest.mark.parametrize("enabled", [0, 1])
def test_ports_are_decoded_while_a_file_is_open(guest, enabling, decoding, enabled):
    decoding.put(TESTDEV, 0, enabled)
    bar = f"{enabling}/pci/{TESTDEV}"
    shown = guest.run(
        f"echo 1 > {bar}/x8/bar1; for i in 10 11 12 13; do cat {bar}/x8/bar1@$i; done"
    ).text
    assert bytes(int(word, 16) for word in shown.split()) == b"port"
    until_off(guest, TESTDEV)
    assert decoding.count(TESTDEV) == enabled
    # Memory and ports together.
    shown = guest.run(
        f"exec 3< {bar}/bar0 4< {bar}/bar1; setpci -s {TESTDEV} COMMAND; exec 3<&-;"
        f" setpci -s {TESTDEV} COMMAND"
    ).text.split()
    assert [int(word, 16) & 3 for word in shown] == [3, 3]
    until_off(guest, TESTDEV)


@pytest.mark.parametrize("via", ["config", "enable"])
def test_what_somebody_else_turned_on_stays_on(guest, enabling, decoding, via):
    decoding.put(EDU, 2 if via == "config" else 0, 0)
    if via == "enable":
        guest.run(f"echo 1 > /sys/bus/pci/devices/{EDU}/enable")
    before = decoding.register(EDU), decoding.count(EDU)
    assert before[0] & 2
    guest.run(f"cat {enabling}/pci/{EDU}/x32/bar0@0")
    # Once the daemon has answered anything else it has closed the file.
    guest.run(f"cat {enabling}/pci/{TESTDEV}/x32/bar0@0; ls {enabling}")
    assert (decoding.register(EDU), decoding.count(EDU)) == before


@pytest.mark.parametrize("enabled", [0, 1])
def test_without_it_the_error_names_the_mend(guest, bars, edu, decoding, enabled):
    """In the mount's own log, with the words that work when they are typed."""
    for address, name, bit in ((EDU, "bar0", 2), (TESTDEV, "bar1", 1)):
        decoding.put(address, 0, enabled)
        with guest.traced(edu) as seen:
            done = guest.try_run(f"dd if={bars}/pci/{address}/{name} bs=4 count=1")
        assert b"Input/output error" in done.stderr
        assert seen == []
        record = json.loads(guest.run(f"tail -n 1 {bars}/log").text)
        assert (record["event"], record["errno"]) == ("refused", "EIO")
        assert (record["path"], record["process"]) == (f"pci/{address}/{name}", "dd")
        assert decoding.register(address) == 0
        guest.run(record["message"].split("; ")[1])
        assert decoding.register(address) & bit
        assert len(guest.run(f"dd if={bars}/pci/{address}/{name} bs=4 count=1").stdout) == 4


def test_a_removed_device_is_not_turned_off_for_the_one_before(guest, enabling, decoding):
    device = f"/sys/bus/pci/devices/{TESTDEV}"
    decoding.put(TESTDEV, 0, 0)
    guest.run(
        f"exec 3< {enabling}/pci/{TESTDEV}/bar0; echo 1 > {device}/remove;"
        f" echo 1 > /sys/bus/pci/rescan; echo 1 > {device}/enable;"
        " ! dd bs=4 count=1 <&3; exec 3<&-"
    )
    guest.run(f"ls {enabling}")
    assert decoding.register(TESTDEV) == 3
    assert decoding.count(TESTDEV) == 1
    assert len(guest.run(f"cat {enabling}/pci/{TESTDEV}/x8/bar0@0").text) == 5


def test_it_is_off_when_the_mount_is_ended_by_a_signal(guest, decoding):
    decoding.put(EDU, 0, 0)
    where = "/run/ended"
    guest.run(
        f"mkdir {where}; {BIN}/barfs mount -f --enable {where} > {where}.log 2>&1 &"
        f" for i in {{1..600}}; do grep -q 'mounted on' {where}.log && break; sleep 0.1; done;"
        f" exec 3< {where}/pci/{EDU}/bar0; (( 0x$(setpci -s {EDU} COMMAND) & 2 )) || exit 1;"
        " kill $!; wait $!"
    )
    assert decoding.register(EDU) & 2 == 0
    assert decoding.count(EDU) == 0
