"""What the bus sees of each request."""

import struct

import pytest

from vm.architecture import BIN
from vm.conftest import MOUNTS, bar_address
from vm.machine import Access, Region

BAR = "1234:11e8/bar0"


def reads(*pieces):
    return [Access("read", offset, width) for offset, width in pieces]


def writes(*pieces):
    return [Access("write", offset, width) for offset, width in pieces]


@pytest.mark.each_machine
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_request_is_one_access_of_its_width(guest, bars, takers, width):
    at = 0x88 // width
    path = f"{bars}/{takers[width].device}/bar0"
    with guest.traced(takers[width]) as seen:
        guest.run(f"dd if={path} bs={width} skip={at} count=1")
    assert seen == reads((0x88, width))
    with guest.traced(takers[width]) as seen:
        guest.run(f"head -c {width} /dev/zero | dd of={path} bs={width} seek={at} count=1")
    assert seen == writes((0x88, width))


@pytest.mark.each_machine
def test_values_arrive_in_their_width(guest, bars):
    """edu inverts what is written at 4; from 0x80 it keeps 64 bits."""
    guest.run(rf"printf '\x01\x02\x03\x04' | dd of={bars}/{BAR} bs=4 seek=1 conv=notrunc")
    read = guest.run(f"dd if={bars}/{BAR} bs=4 skip=1 count=1")
    assert read.stdout == bytes([0xFE, 0xFD, 0xFC, 0xFB])
    guest.run(rf"printf '\1\2\3\4\5\6\7\10' | dd of={bars}/{BAR} bs=8 seek=16 conv=notrunc")
    assert guest.run(f"dd if={bars}/{BAR} bs=8 skip=16 count=1").stdout == bytes(range(1, 9))
    guest.run(rf"printf '\5\0\0\0' | dd of={bars}/{BAR} bs=4 seek=2 conv=notrunc")
    factorial = f"dd if={bars}/{BAR} bs=4 skip=2 count=1"
    assert guest.run(f"sleep 0.5; {factorial}").stdout == (120).to_bytes(4, "little")


@pytest.mark.each_machine
@pytest.mark.parametrize(
    ("offset", "length", "pieces"),
    [
        (0x80, 16, [(0x80, 4), (0x84, 4), (0x88, 4), (0x8C, 4)]),
        (0x81, 7, [(0x81, 1), (0x82, 2), (0x84, 4)]),
        (0x83, 7, [(0x83, 1), (0x84, 4), (0x88, 2)]),
        (0x82, 4, [(0x82, 2), (0x84, 2)]),
        (0x84, 8, [(0x84, 4), (0x88, 4)]),
        (0x81, 2, [(0x81, 1), (0x82, 1)]),
        (0x86, 3, [(0x86, 2), (0x88, 1)]),
        (0xFC, 64, [(0xFC, 4)]),
        (0xFF, 2, [(0xFF, 1)]),
    ],
)
def test_other_requests_are_aligned_accesses_that_touch_each_byte_once(
    guest, bars, sdhci, offset, length, pieces
):
    path = f"{bars}/{sdhci.device}/bar0"
    with guest.traced(sdhci) as seen:
        guest.run(f"dd if={path} bs={length} count=1 skip={offset} iflag=skip_bytes")
    assert seen == reads(*pieces)
    if offset + length <= 0x100:  # dd goes on after a write that was cut short
        with guest.traced(sdhci) as seen:
            guest.run(
                f"head -c {length} /dev/zero | dd of={path} bs={length} seek={offset}"
                " oflag=seek_bytes conv=notrunc"
            )
        assert seen == writes(*pieces)


@pytest.mark.parametrize(
    "reader", ["cat {}", "hd -v {}", "dd if={} bs=9", "od -v {}", "wc -c < {}"]
)
def test_what_is_left_of_a_request_that_was_cut_short_is_not_one_access(guest, bars, edu, reader):
    """edu refuses 8 bytes below 0x80, and gives ff for them."""
    for window in (f"{BAR}@0+8", f"phys/{edu.address:x}+8"):
        with guest.traced(edu) as seen:
            shown = guest.run(reader.replace("{}", f"{bars}/{window}")).stdout
        if reader != "wc -c < {}":
            assert seen == reads((0, 4), (4, 4))
            assert b"ff ff ff ff  ff ff ff ff" not in shown
        assert {access.width for access in seen} <= {4}
    with guest.traced(edu) as seen:
        guest.try_run(f"dd if=/dev/zero of={bars}/{BAR}@80+8 bs=16 count=1 conv=notrunc")
        guest.run(f"dd if={bars}/{BAR}@80+8 bs=8 count=1")
    assert seen == [*writes((0x80, 4), (0x84, 4)), *reads((0x80, 8))]


@pytest.mark.parametrize(
    "tool",
    [
        "xxd -s 0x80 -l 4 {}",
        "hexdump -s 0x80 -n 4 {}",
        "hd -s 0x80 -n 4 {}",
        "od -j 0x80 -N 4 {}",
        "dd if={} bs=4 skip=32 count=1",
        BIN.joinpath("python").as_posix()
        + ' -c \'f = open("{}", "rb"); f.seek(0x80); assert len(f.read(4)) == 4\'',
        BIN.joinpath("python").as_posix()
        + " -c 'import os; f = os.open(\"{}\", 0); assert len(os.pread(f, 4, 0x80)) == 4'",
    ],
)
def test_tools_touch_what_they_are_told_to_and_nothing_else(guest, bars, edu, tool):
    with guest.traced(edu) as seen:
        guest.run(tool.replace("{}", f"{bars}/{BAR}"))
    assert seen == reads((0x80, 4))


def test_walkers_touch_no_device(guest, all_registers):
    bars = MOUNTS["resource"]
    ram = guest.run("grep -m 1 'System RAM' /proc/iomem").text.split()[0]
    with guest.traced(*all_registers) as seen:
        listed = guest.run(
            f"ls -lR {bars}/pci/0000:00:13.0 && find -L {bars} -maxdepth 2 -ls"
            # Registers by name are thousands. Those of edu are walked above.
            rf" && find {bars} \( -name regs -o -name decode \) -prune -o -ls"
            f" && stat {bars}/pci/*/* {bars}/phys/* && file {bars}/phys"
            f" && du -a --exclude=regs --exclude=decode {bars}"
            f" && test -r {bars}/1234:11e8/bar0 && compgen -f {bars}/1234:11e8/x32/"
            f" && ls -l {bars}/pci/*/x32/* {bars}/pci/*/u8/* {bars}/8086:100e/bar1@10+4"
        )
    for shown in ("0000:00:13.0/bar0", "0000:00:15.0/u16/bar1", f"phys/x64/{ram}"):
        assert shown in listed.text
    assert seen == []


def test_open_and_close_touch_no_device(guest, bars, all_registers):
    with guest.traced(*all_registers) as seen:
        guest.run(f"for f in {bars}/pci/*/bar*; do : <> $f; : > $f; done")
    assert seen == []


def test_requests_past_the_end_touch_nothing(guest, bars, edu):
    with guest.traced(edu) as seen:
        assert guest.run(f"dd if={bars}/{BAR} bs=4 skip=$((0x40000)) count=1").stdout == b""
        done = guest.try_run(f"echo 1234 | dd of={bars}/{BAR} bs=4 seek=$((0x40000)) conv=notrunc")
    assert b"No space left on device" in done.stderr
    assert seen == []


def test_refused_opens_touch_nothing(guest, bars, edu, refusals):
    with guest.traced(edu) as seen:
        done = guest.try_run(f"echo 1234 >> {bars}/{BAR}")
    assert b"Invalid argument" in done.stderr
    assert "pci/0000:00:13.0/bar0: cannot be appended to" in refusals(bars)
    assert seen == []


@pytest.mark.each_machine
def test_registers_in_a_64_bit_bar_above_4_gib(guest, bars, nvme):
    assert nvme.address >= 1 << 32
    with guest.traced(nvme) as seen:
        version = guest.run(f"dd if={bars}/1b36:0010/bar0 bs=4 skip=2 count=1").stdout
        guest.run(f"dd if={bars}/1b36:0010/bar0 bs=8 count=1")
    assert version == (0x00010400).to_bytes(4, "little")
    assert seen == reads((8, 4), (0, 8))


@pytest.mark.each_machine("resource")
@pytest.mark.parametrize(
    ("skew", "pieces"), [(0, [(0x80, 4)]), (1, [(0x81, 1), (0x82, 2), (0x84, 1)])]
)
def test_physical_addresses_of_registers(guest, bars, sdhci, skew, pieces):
    """Through phys/ the same contract holds; aligned is what the bus sees."""
    with guest.traced(sdhci) as seen:
        guest.run(f"dd if={bars}/phys/{sdhci.address + 0x80 + skew:x}+4 bs=4 count=1")
    assert seen == reads(*pieces)


@pytest.mark.each_machine("resource")
def test_registers_of_a_chip_that_is_not_on_the_pci_bus(guest, bars, architecture):
    address, values = architecture.chip
    names = " ".join(f"{address + 4 * number:x}" for number in range(len(values)))
    shown = guest.run(f"cd {bars}/phys/x32 && cat {names}").text
    assert shown.split() == [f"{value:#010x}" for value in values]
    words = struct.pack(f"<{len(values)}I", *values)
    assert guest.run(f"dd if={bars}/phys/{address:x}+{len(words):x} bs=4").stdout == words


PYTHON = BIN.joinpath("python").as_posix()

# Each shows 4 bytes at 0x14 of a file: the device status and its neighbours, of virtio's common
# registers (Virtual I/O Device 1.2, 4.1.4.3).
SHOW = [
    *("xxd -s 0x14 -l 4 {}", "hd -s 0x14 -n 4 {}", "od -j 0x14 -N 4 {}", "hexdump -s 20 -n 4 {}"),
    "dd if={} bs=4 skip=5 count=1",
    "busybox hexdump -s 20 -n 4 {}",
    PYTHON + ' -c \'f = open("{}", "rb"); f.seek(0x14); assert len(f.read(4)) == 4\'',
]


@pytest.fixture(params=[("0000:00:17.0", "rng"), ("0000:00:1b.0", "net")], ids=["rng", "net"])
def virtio(request, guest):
    """The path of the prefetchable BAR of a modern virtio device, and all of its registers."""
    address, name = request.param
    start = bar_address(guest, address, 4)
    parts = [
        Region(f"virtio-pci-{part}-virtio-{name}", start + 0x1000 * number)
        for number, part in enumerate(("common", "isr", "device", "notify"))
    ]
    flags = guest.run(f"cat /sys/bus/pci/devices/{address}/resource").text.splitlines()[4].split()
    assert int(flags[2], 16) & 0x2000  # prefetchable
    return f"pci/{address}/bar4", parts


@pytest.mark.parametrize("tool", SHOW)
def test_prefetchable_registers_are_registers(guest, bars, virtio, tool):
    """A read of the ISR status clears it: nobody may do that by the way."""
    path, regions = virtio
    with guest.traced(*regions) as seen:
        guest.run(tool.replace("{}", f"{bars}/{path}"))
    assert seen == reads((0x14, 4))


def test_the_neighbours_of_the_isr_are_read_without_it(guest, bars, virtio):
    path, regions = virtio
    with guest.traced(regions[1]) as seen:
        for offset in (0xFF8, 0xFFC, 0x1004, 0x2000):
            for tool in SHOW:
                if "0x14" in tool:
                    guest.run(tool.replace("0x14", f"{offset:#x}").replace("{}", f"{bars}/{path}"))
        guest.run(f"head -c 24 {bars}/{path}")
        guest.run(f"cat {bars}/{path}@ff0+10")
    assert seen == reads(*([(0x4, 4)] * sum("0x14" in tool for tool in SHOW)))
    shown = guest.run(f"stat -Lc %o {bars}/{path}; grep ^bar4 {bars}/{path[:-4]}info").text
    assert shown.startswith("4\n")
    assert "read as registers (prefetchable, which says nothing of what it holds)" in shown


@pytest.mark.each_machine
def test_what_is_in_mem_is_copied_but_not_beyond_the_request(guest, bars, virtio_common):
    """QEMU cuts what it gets into 4 bytes at most here, so only the bytes are compared."""
    for offset, length in [(4, 4), (1, 7), (5, 43), (0, 16), (3, 50)]:
        with guest.traced(virtio_common) as seen:
            guest.run(
                f"dd if={bars}/pci/0000:00:17.0/mem/bar4 bs={length} count=1 skip={offset}"
                " iflag=skip_bytes"
            )
        touched = [access.offset + n for access in seen for n in range(access.width)]
        assert touched == list(range(offset, offset + length))


# What engines are told to do on BAR 0 of a device that takes it: runs of which widths, copies of
# which bytes in accesses of how much at most. Then the accesses of each of the copies.
ORDERS = [
    (
        ("0000:00:1a.0", "1,2,4", 0x91, 0xA7, "4"),
        [(0x91, 1), (0x92, 2), *((0x94 + 4 * n, 4) for n in range(4)), (0xA4, 2), (0xA6, 1)],
    ),
    (
        ("0000:00:13.0", "8", 0x94, 0xD4, "8,16"),
        # A 16-byte access is two of 8 to QEMU.
        [(0x94, 4), *((0x98 + 8 * n, 8) for n in range(7)), (0xD0, 4)],
    ),
]


@pytest.mark.each_machine
@pytest.mark.parametrize(("order", "copied"), ORDERS)
def test_every_build_of_the_engine_makes_the_accesses_it_is_told_to(
    guest, engines, edu, sdhci, order, copied
):
    address, widths, start, end, widest = order
    if not guest.architecture.is_host:
        widest = widest.removesuffix(",16")  # of SSE alone
    with guest.traced(edu, sdhci) as seen:
        guest.program("engine_runs.py", address, widths, start, end, widest, *engines.values())
    expected = []
    for width in map(int, widths.split(",")):
        run = [(0x90 + n * width, width) for n in range(3)]
        expected += reads((0x80, width)) + writes((0x80, width)) + reads(*run) + writes(*run)
    copies = len(widest.split(","))
    expected += copies * (reads(*copied) + writes(*copied))
    for number, build in enumerate(engines):
        assert seen[number * len(expected) :][: len(expected)] == expected, build
    assert len(seen) == len(engines) * len(expected)
