"""The real sysfs and /dev/mem: what is listed, plugged, shared and refused."""

import json
import time

import pytest

from vm.machine import COMMAND_TIMEOUT, program_line


def test_the_tree_is_the_machines(guest, bars):
    functions = guest.run("ls /sys/bus/pci/devices").text
    assert guest.run(f"ls {bars}/pci").text == functions
    views = "u16\nu32\nu64\nu8\nx16\nx32\nx64\nx8\n"
    listed = guest.run(f"ls {bars}/pci/0000:00:10.0").text
    assert listed == "bar0\nbar2\nconfig\ndecode\ninfo\nmem\nregs\nsysfs\n" + views
    assert (
        guest.run(f"ls {bars}/pci/0000:00:00.0").text
        == "config\ndecode\ninfo\nmem\nregs\nsysfs\n" + views
    )
    assert guest.run(f"ls {bars}/pci/0000:00:15.0/u8").text == "bar0\nbar1\n"
    assert guest.run(f"stat -c %s {bars}/pci/0000:00:10.0/bar0").text == "256\n"
    ranges = guest.run("grep -v '^ ' /proc/iomem | cut -d' ' -f1 | sort").text
    assert guest.run(f"ls {bars}/phys/u32 | sort").text == ranges
    assert guest.run(f"ls {bars}/phys | grep - | sort").text == ranges


@pytest.mark.each_machine("resource")
def test_config_space_is_the_kernels(guest, bars):
    for function in ("0000:00:10.0", "0000:00:16.0"):
        guest.run(f"cmp {bars}/pci/{function}/config /sys/bus/pci/devices/{function}/config")
    # The interrupt line register may be written at will (PCI 3.0, 6.2.4).
    config = f"{bars}/pci/0000:00:14.0/config"
    for value in ("07", "0b"):
        guest.run(rf"printf '\x{value}' | dd of={config} bs=1 seek=60 conv=notrunc")
        assert guest.run(f"xxd -p -s 60 -l 1 {config}").text == f"{value}\n"


def test_removed_and_rescanned_devices_are_right_at_the_next_look_up(guest, bars):
    for _ in range(3):
        guest.run(f"test -e {bars}/1b36:0005/bar0")
        guest.run("echo 1 > /sys/bus/pci/devices/0000:00:14.0/remove")
        guest.run(f"! test -e {bars}/1b36:0005 && ! ls {bars}/pci/0000:00:14.0")
        assert "0000:00:14.0" not in guest.run(f"ls {bars}/pci").text
        guest.run("echo 1 > /sys/bus/pci/rescan")
        guest.run(f"test -e {bars}/1b36:0005/bar0")


@pytest.fixture
def changes(guest, bars):
    """What the mount's log tells since the test began of functions that come and go."""
    last = guest.run(f"tail -n 1 {bars}/log").text

    def shown():
        text = guest.run(f"cat {bars}/log").text
        # Where that line is no longer kept, all the others are new.
        text = text.partition(last)[2] if last and last in text else text
        records = map(json.loads, text.splitlines())
        return [
            (record["event"], record["device"])
            for record in records
            if record["event"] in {"add", "remove"}
        ]

    return shown


@pytest.mark.each_machine
def test_an_open_file_is_given_up_when_its_device_is_removed(guest, bars, changes):
    """Its mapping would still reach the addresses, where the device is again after a rescan."""
    address = "0000:00:11.0"
    guest.program("given_up.py", bars, address, 2, "-")
    assert changes() == [("remove", address), ("add", address)]


def test_a_bar_that_moves_is_not_what_comes_to_its_address(guest, bars):
    """The kernel places both anew: the first lies where the second was, or where it was itself."""
    first, second = "0000:00:10.0", "0000:00:11.0"
    guest.poke(0, 0, b"one ")
    guest.poke(1, 0, b"two ")
    guest.program("moved_bars.py", bars, first, second)
    assert guest.peek(0, 0, 4) == b"one "
    assert guest.peek(1, 0, 4) == b"two "
    for address, data in ((first, b"one "), (second, b"two ")):
        assert guest.run(f"dd if={bars}/pci/{address}/bar2 bs=4 count=1").stdout == data


def test_an_instance_that_goes_makes_the_next_one_move_up(guest, bars):
    guest.run("echo 1 > /sys/bus/pci/devices/0000:00:10.0/remove")
    assert guest.run(f"readlink {bars}/1af4:1110").text == "pci/0000:00:11.0\n"
    guest.run(f"! test -e {bars}/1af4:1110.2")
    guest.run("echo 1 > /sys/bus/pci/rescan")
    assert guest.run(f"readlink {bars}/1af4:1110").text == "pci/0000:00:10.0\n"
    guest.run("echo 1 > /sys/bus/pci/devices/0000:00:10.0/enable")


def plug_twins(guest):
    """Plug them in, together; their addresses."""
    for function in (1, 0):  # function 0 last: that is what makes the kernel look
        memory = guest.directory / f"twin{function}"
        memory.write_bytes(b"twin %d" % function + bytes((1 << 20) - 6))
        properties = {"size": 1 << 20, "share": True, "mem-path": str(memory)}
        guest.qmp.cmd(
            "object-add", **{"qom-type": "memory-backend-file", "id": f"t{function}", **properties}
        )
        guest.qmp.cmd(
            "device_add",
            driver="ivshmem-plain",
            id=f"twin{function}",
            memdev=f"t{function}",
            bus="slot1",
            addr=f"0.{function}",
            multifunction=True,
        )
    listed = guest.run(
        "for i in {1..200}; do ls -d /sys/bus/pci/devices/0000:01:00.[01] 2>/dev/null | wc -l"
        " | grep -q 2 && break; sleep 0.1; done; ls /sys/bus/pci/devices"
    ).text
    assert "0000:01:00.1" in listed
    return ["0000:01:00.0", "0000:01:00.1"]


@pytest.fixture(scope="module")
def twins(guest):
    """Two functions plugged in together, with small BARs that share a page."""
    return plug_twins(guest)


def forget_twins(guest):
    """Once QEMU has let go of them, drop their memory: QEMU 7.2 cannot plug it in again."""
    deadline = time.monotonic() + COMMAND_TIMEOUT
    while "twin" in str(guest.qmp.cmd("qom-list", path="/machine/peripheral")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for function in (0, 1):
        guest.qmp.cmd("object-del", id=f"t{function}")


@pytest.mark.parametrize("enabled", [0, 1])
def test_decoding_off_is_an_error_that_names_its_mend(guest, bars, refusals, enabled):
    """Reads would give all ones on hardware, and 0 in QEMU: no data either way."""
    for address, name in (("0000:00:14.0", "bar0"), ("0000:00:10.0", "bar2")):
        device = f"/sys/bus/pci/devices/{address}"
        read = f"dd if={bars}/pci/{address}/{name} bs=4 count=1"
        guest.run(f"while echo 0 > {device}/enable; do :; done")
        guest.run(f"for n in $(seq {enabled}); do echo 1 > {device}/enable; done")
        guest.run(f"setpci -s {address} COMMAND=0")
        done = guest.try_run(read)
        assert b"Input/output error" in done.stderr
        assert done.stdout == b""
        line = [line for line in refusals(bars).splitlines() if address in line][-1]
        assert f"{address} {name}: memory decoding is off" in line
        mend = line.split("; ")[1].removesuffix(" (EIO)")
        assert mend.startswith("setpci" if enabled else "echo")
        guest.run(mend)
        assert len(guest.run(read).stdout) == 4
        guest.run(f"setpci -s {address} COMMAND=3")


def test_bars_smaller_than_a_page_may_share_one(guest, bars, twins):
    addresses = []
    for twin in twins:
        resource = guest.run(f"cat /sys/bus/pci/devices/{twin}/resource").text
        addresses.append(int(resource.split()[0], 16))
    assert addresses[0] >> 12 == addresses[1] >> 12, "not the case that this test is for"
    # IntrMask at 0 of each function's own registers (QEMU, docs/specs/ivshmem-spec.txt).
    for number, twin in enumerate(twins):
        guest.run(rf"printf '\x{0x51 + number:x}\0\0\0' | dd of={bars}/pci/{twin}/bar0 bs=4")
    for number, twin in enumerate(twins):
        read = guest.run(f"dd if={bars}/pci/{twin}/bar0 bs=4 count=1").stdout
        assert read == bytes([0x51 + number, 0, 0, 0])
        assert guest.run(f"head -c 6 {bars}/pci/{twin}/bar2").stdout == b"twin %d" % number


def test_ranges_that_are_partly_ram(guest, bars):
    """System RAM ends inside a page at 9fc00; reserved and cached memory lies beside it."""
    assert len(guest.run(f"dd if={bars}/phys/9f000-9ffff bs=4096").stdout) == 4096
    assert len(guest.run(f"dd if={bars}/phys/0-9ffff bs=64K").stdout) == 0xA0000
    # As a kernel without STRICT_DEVMEM gives it to those who read /dev/mem.
    guest.run(f"cmp -n $((0x9f000)) {bars}/phys/0-9ffff /dev/mem")
    # The page that is partly RAM can be mapped, though not read through /dev/mem.
    part = guest.run(f"dd if={bars}/phys/9f800+400 bs=1K").stdout
    assert part == guest.run(f"dd if={bars}/phys/0-9ffff bs=1K skip=638 count=1").stdout
    assert len(part) == 1024
    rom = guest.run(f"dd if={bars}/phys/f0000-fffff bs=64K").stdout
    assert b"SeaBIOS" in rom or b"QEMU" in rom


def test_tables_that_the_kernel_keeps_cached_can_be_read(guest, bars):
    """ACPI tables in reserved memory: an uncached mapping of them is refused."""
    rsdp = guest.run(f"dd if={bars}/phys/e0000-fffff bs=64K; true").stdout
    for line in guest.run("grep -v '^ ' /proc/iomem | grep Reserved").text.splitlines():
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if end < 1 << 20 or start >= 512 << 20:
            continue
        data = guest.run(f"dd if={bars}/phys/{start:x}-{end:x} bs=128K").stdout
        assert len(data) == end + 1 - start
        assert b"BOCHS " in data + rsdp


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phys/8000000000000000", "No such device or address"),
        ("phys/9fc00-fffffffff", "No such device or address"),
        ("phys/xyz", "No such file or directory"),
        ("1AF4:1110", "No such file or directory"),
        ("1af4:1110.9", "No such file or directory"),
        ("pci/0000:00:10.0/bar1", "No such file or directory"),
        ("pci/0000:00:10.0/bar2/x", "Not a directory"),
    ],
)
def test_names_that_are_not_there(guest, bars, name, message):
    done = guest.try_run(f"dd if={bars}/{name} bs=4 count=1")
    assert message in done.stderr.decode()


def test_a_device_that_is_unplugged_is_unmapped_and_logged(guest, bars, twins, changes):
    """By device_del, which takes both functions of the slot."""
    guest.run(f"for a in {' '.join(twins)}; do echo 1 > /sys/bus/pci/devices/$a/enable; done")
    program = program_line("given_up.py", bars, twins[0], 2, "/run/unplug")
    guest.run(
        f"rm -f /run/unplug; setsid {program} > /run/log 2>&1 & echo $! > /run/pid;"
        " for i in {1..600}; do test -e /run/unplug && exit; sleep 0.1; done;"
        " cat /run/log; exit 1"
    )
    guest.qmp.cmd("device_del", id="twin0")
    done = guest.run(
        "for i in {1..600}; do test -e /proc/$(cat /run/pid)/exe || break; sleep 0.1; done;"
        " cat /run/log"
    )
    assert done.text == ""
    assert sorted(changes()) == [("remove", address) for address in twins]
    forget_twins(guest)
    plug_twins(guest)
