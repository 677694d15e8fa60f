"""What the bus sees of width and text views, windows, I/O ports and the expansion ROM."""

import pytest

from vm.architecture import BIN
from vm.conftest import bar_address
from vm.machine import Region
from vm.test_accesses import reads, writes

WIDTHS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
EDU = "1234:11e8"
E1000 = "8086:100e"
ICR = 0xC0  # Intel 82540EM: reading the interrupt causes clears them


@pytest.fixture(scope="session")
def ports(guest):
    """The I/O BAR of e1000: takes 1, 2 and 4 bytes, and has no effect at these offsets."""
    first = guest.architecture.ports
    return Region("e1000-io", first + bar_address(guest, "0000:00:15.0", 1))


@pytest.fixture(scope="session")
def ivshmem(guest):
    """A register BAR of 256 bytes, which QEMU serves 4 bytes at a time."""
    return Region("ivshmem-mmio", bar_address(guest, "0000:00:10.0", 0))


@pytest.mark.each_machine
@pytest.mark.parametrize("view", WIDTHS)
@pytest.mark.parametrize("units", [1, 2, 16])
def test_a_view_makes_accesses_of_its_width_only(guest, bars, takers, view, units):
    width = WIDTHS[view]
    device = takers[width]
    expected = [(0x80 + n * width, width) for n in range(units)]
    path = f"{bars}/{device.device}/{view}/bar0"
    length = width * units
    with guest.traced(device) as seen:
        guest.run(f"dd if={path} bs={length} count=1 skip={0x80} iflag=skip_bytes")
    assert seen == reads(*expected)
    with guest.traced(device) as seen:
        guest.run(
            f"head -c {length} /dev/zero"
            f" | dd of={path} bs={length} seek={0x80} oflag=seek_bytes conv=notrunc"
        )
    assert seen == writes(*expected)


@pytest.mark.each_machine("resource")
@pytest.mark.parametrize("view", WIDTHS)
def test_a_whole_window(guest, bars, takers, view):
    width = WIDTHS[view]
    device = takers[width]
    expected = [(0x80 + n * width, width) for n in range(64 // width)]
    path = f"{bars}/{device.device}/{view}/bar0@80-bf"
    with guest.traced(device) as seen:
        guest.run(f"cat {path}")
        guest.run(f"head -c 64 /dev/zero > {path}")
    assert seen == reads(*expected) + writes(*expected)


@pytest.mark.parametrize("view", WIDTHS)
def test_a_whole_small_bar(guest, bars, ivshmem, view):
    """QEMU tells of each access as 4 bytes, of one of 8 as two."""
    width = WIDTHS[view]
    offsets = range(0, 256, min(width, 4))
    path = f"{bars}/1af4:1110/{view}/bar0"
    with guest.traced(ivshmem) as seen:
        guest.run(f"cat {path}")
    assert seen == reads(*((offset, 4) for offset in offsets))
    with guest.traced(ivshmem) as seen:
        guest.run(f"head -c 256 /dev/zero > {path}")
    assert seen == writes(*((offset, 4) for offset in offsets))


def test_a_whole_large_bar_in_large_requests(guest, bars, edu):
    """dd bs=4M arrives as one request of 1 MiB."""
    with guest.traced(edu) as seen:
        guest.run(f"dd if={bars}/{EDU}/u32/bar0@80+10000 of=/dev/null bs=4M")
    assert seen == reads(*((0x80 + offset, 4) for offset in range(0, 0x10000, 4)))


@pytest.mark.each_machine("resource")
def test_views_of_physical_addresses(guest, bars, edu, sdhci):
    with guest.traced(edu, sdhci) as seen:
        guest.run(f"cat {bars}/phys/u64/{edu.address + 0x80:x}+10")
        guest.run(f"cat {bars}/phys/x32/{edu.address + 0x88:x}")
        guest.run(f"dd if={bars}/phys/u8/{sdhci.address + 0x83:x} bs=3 count=1")
    assert seen == reads((0x80, 8), (0x88, 8), (0x88, 4), (0x83, 1), (0x84, 1), (0x85, 1))


@pytest.mark.parametrize("offset", [0x81, 0x82, 0x84])
def test_what_does_not_fit_makes_no_access(guest, bars, edu, offset):
    with guest.traced(edu) as seen:
        for command in (
            f"dd if={bars}/{EDU}/u64/bar0 bs=8 count=1 skip={offset} iflag=skip_bytes",
            f"dd if={bars}/{EDU}/u32/bar0 bs=6 count=1 skip={0x80} iflag=skip_bytes",
            f"dd if=/dev/zero of={bars}/{EDU}/u32/bar0 bs=7 count=1 conv=notrunc",
            f"cat {bars}/{EDU}/u64/bar0@{offset:x}",
            f"cat {bars}/{EDU}/x64/bar0@{offset:x}",
            f"echo 1 > {bars}/{EDU}/x64/bar0@{offset:x}",
            f"echo 0x100 > {bars}/{EDU}/x8/bar0@80",
            f"echo 1:0x100 > {bars}/{EDU}/x8/bar0@80",
            f"echo 1 2 > {bars}/{EDU}/x32/bar0@80",
            f"echo > {bars}/{EDU}/x32/bar0@80",
        ):
            assert b"Invalid argument" in guest.try_run(command).stderr, command
        views = [f"{bars}/{EDU}/{view}/bar0" for view in ("u16", "u32", "u64")]
        guest.program("odd_buffers.py", *views)
    assert seen == []


@pytest.mark.each_machine("resource")
def test_a_text_register(guest, bars, edu):
    register = f"{bars}/{EDU}/x32/bar0"
    with guest.traced(edu) as seen:
        assert guest.run(f"cat {register}@0").text == "0x010000ed\n"
    assert seen == reads((0, 4))
    with guest.traced(edu) as seen:
        assert guest.run(f"echo 0xfffffffe > {register}@4 && cat {register}@4").text == (
            "0x00000001\n"
        )
    assert seen == [*writes((4, 4)), *reads((4, 4))]
    with guest.traced(edu) as seen:
        guest.run(f"echo 0x2:0xff > {register}@4")
    assert seen == [*reads((4, 4)), *writes((4, 4))]
    # It held 1 and keeps the inverse of what is written: of 0x00000002.
    assert guest.run(f"cat {register}@4").text == "0xfffffffd\n"


@pytest.mark.each_machine("resource")
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_text_registers_of_each_width(guest, bars, takers, width):
    register = f"{bars}/{takers[width].device}/x{8 * width}/bar0@88"
    with guest.traced(takers[width]) as seen:
        guest.run(f"cat {register}")
        guest.run(f"echo 0 > {register}")
    assert seen == [*reads((0x88, width)), *writes((0x88, width))]


def test_the_factorial(guest, bars):
    register = f"{bars}/{EDU}/x32/bar0"
    shown = guest.run(
        f"echo 5 > {register}@8; while (( $(<{register}@20) & 1 )); do :; done; cat {register}@8"
    )
    assert shown.text == "0x00000078\n"


def test_a_loop_on_one_descriptor_samples_each_time(guest, bars, edu):
    with guest.traced(edu) as seen:
        guest.program("sampling.py", f"{bars}/{EDU}/x32/bar0", "0x010000ed")
    assert seen == reads((0, 4), (0, 4), (0, 4))


READERS = (
    "xxd -s {offset} -l 4 {path}",
    "hexdump -s {offset} -n 4 {path}",
    "od -j {offset} -N 4 {path}",
    "dd if={path} bs=4 skip=$(({offset} / 4)) count=1",
    f'{BIN}/python -c \'f = open("{{path}}", "rb"); f.seek({{offset}}); f.read(4)\'',
)


@pytest.mark.parametrize("view", ["", "/u32"])
def test_no_other_register_than_the_one_that_is_read(guest, bars, view):
    """e1000 clears its interrupt causes when they are read; nothing may do that by the way."""
    region = Region("e1000-mmio", bar_address(guest, "0000:00:15.0", 0))
    path = f"{bars}/{E1000}{view}/bar0"
    for offset in (0x0, 0x8, ICR - 8, ICR - 4, ICR + 4, ICR + 8, 0x100, 0x5400):
        for reader in READERS:
            with guest.traced(region) as seen:
                guest.run(reader.format(offset=offset, path=path))
            assert seen == reads((offset, 4)), reader
    with guest.traced(region) as seen:
        guest.run(f"cat {bars}/{E1000}{view}/bar0@{ICR - 16:x}+10 {bars}/{E1000}/x32/bar0@c4")
    assert ICR not in [access.offset for access in seen]
    assert len(seen) == 5


@pytest.mark.each_machine("resource")
@pytest.mark.parametrize("width", [1, 2, 4])
def test_ports(guest, bars, ports, width):
    bar = f"{bars}/{E1000}/bar1"
    with guest.traced(ports) as seen:
        guest.run(f"dd if={bar} bs={width} skip={8 // width} count=1")
        guest.run(f"dd if=/dev/zero of={bar} bs={width} seek={8 // width} count=1 conv=notrunc")
        guest.run(f"cat {bars}/{E1000}/u{8 * width}/bar1@20+8")
        guest.run(f"cat {bars}/{E1000}/x{8 * width}/bar1@10")
        guest.run(f"echo 0 > {bars}/{E1000}/x{8 * width}/bar1@10")
    run = [(0x20 + n * width, width) for n in range(8 // width)]
    assert seen == [
        *reads((8, width)),
        *writes((8, width)),
        *reads(*run, (0x10, width)),
        *writes((0x10, width)),
    ]


@pytest.mark.each_machine("resource")
def test_other_requests_to_ports(guest, bars, ports):
    bar = f"{bars}/{E1000}/bar1"
    with guest.traced(ports) as seen:
        guest.run(f"dd if={bar} bs=8 count=1")
        guest.run(f"dd if={bar} bs=7 skip=1 count=1 iflag=skip_bytes")
    assert seen == reads((0, 4), (4, 4), (1, 1), (2, 2), (4, 4))
    with guest.traced(ports) as seen:
        guest.run(f"cat {bars}/{E1000}/u16/bar1")
        for view in ("u64", "x64"):
            done = guest.try_run(f"cat {bars}/{E1000}/{view}/bar1")
            assert b"Invalid argument" in done.stderr
    assert seen == reads(*((offset, 2) for offset in range(0, 64, 2)))
    assert guest.run(f"stat -c %s {bars}/pci/0000:00:15.0/bar1").text == "64\n"


def test_data_through_ports(guest, bars):
    """pci-testdev: a test is chosen at 0, and its name can be read at 16."""
    bar = f"{bars}/1b36:0005/bar1"
    names = []
    for number in range(3):
        guest.run(rf"printf '\x{number:02x}' | dd of={bar} bs=1 count=1 conv=notrunc")
        names.append(guest.run(f"dd if={bar} bs=1 skip=16 count=32").stdout.split(b"\0")[0])
    assert len(set(names)) == 3
    assert all(name.startswith(b"portio-") for name in names)
    guest.run(f"echo 1 > {bars}/1b36:0005/x8/bar1")
    shown = guest.run(f"for i in 10 11 12 13; do cat {bars}/1b36:0005/x8/bar1@$i; done").text
    assert bytes(int(word, 16) for word in shown.split()) == names[1][:4]


@pytest.mark.each_machine("resource")
def test_io_decoding_off(guest, bars, refusals):
    address = "0000:00:14.0"
    guest.run(f"setpci -s {address} COMMAND=2")
    try:
        done = guest.try_run(f"dd if={bars}/pci/{address}/bar1 bs=1 count=1")
        assert b"Input/output error" in done.stderr
        assert f"{address} bar1: I/O decoding is off" in refusals(bars)
    finally:
        guest.run(f"setpci -s {address} COMMAND=3")


def rom_state(guest):
    """The enable bit of e1000's ROM BAR, and whether sysfs gives the ROM."""
    sysfs = "/sys/bus/pci/devices/0000:00:15.0/rom"
    enabled = int(guest.run("setpci -s 0000:00:15.0 ROM_ADDRESS").text, 16) & 1
    return enabled, guest.try_run(f"head -c 1 {sysfs}").status


@pytest.mark.each_machine("resource")
def test_the_rom_is_the_file_given_to_qemu(guest, bars):
    rom = f"{bars}/{E1000}/rom"
    off = rom_state(guest)
    assert off == (0, 1)
    for reader in (f"cat {rom}", f"dd if={rom} bs=4M", f"dd if={rom} bs=1000"):
        guest.run(f"{reader} | cmp - {guest.rom}")
    size = guest.rom.stat().st_size
    assert guest.run(f"stat -Lc %s {rom}").text == f"{size}\n"
    assert guest.run(f"dd if={rom} bs=3 skip=1 count=1").stdout == guest.rom.read_bytes()[3:6]
    assert rom_state(guest) == off


def test_the_rom_is_off_again_when_its_reader_dies(guest, bars):
    rom = f"{bars}/{E1000}/rom"
    guest.run(
        f"exec 3< {rom}; head -c 512 <&3 > /dev/null;"
        f" (exec 4< {rom}; head -c 100 <&4 > /dev/null; kill -9 $BASHPID); true"
    )
    assert rom_state(guest) == (0, 1)
    guest.run(f"cmp {rom} {guest.rom}")
    assert b"Permission denied" in guest.try_run(f"echo > {rom}").stderr
    assert guest.try_run(f"test -e {bars}/{EDU}/rom").status == 1
