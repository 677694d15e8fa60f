"""PCI functions from sysfs, as it is and as it may be."""

import errno
import os

import pytest

from barfs import demo
from barfs.devmem import PhysicalMemory
from barfs.errors import DeviceGone, NoSuchNode, NotDecoded
from barfs.names import DeviceId, PciAddress
from barfs.pci import PciBus, Resource, parse_resource

IVSHMEM = PciAddress(0, 0, 4, 0)
NVME = PciAddress(0, 1, 0, 0)


@pytest.fixture
def machine(tmp_path):
    return demo.build(tmp_path)


@pytest.fixture
def bus(machine):
    return PciBus(machine.sysfs)


@pytest.fixture
def ivshmem(machine):
    return machine.sysfs / "bus/pci/devices" / str(IVSHMEM)


def set_line(ivshmem, index, line):
    lines = (ivshmem / "resource").read_text().splitlines()
    lines[index] = line
    (ivshmem / "resource").write_text("\n".join(lines))


def set_command(ivshmem, command):
    with (ivshmem / "config").open("r+b") as config:
        config.seek(4)
        config.write(command.to_bytes(2, "little"))


@pytest.fixture(autouse=True)
def nothing_stays_open():
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def test_memory_resources_parse_and_absent_ones_are_none():
    prefetchable = parse_resource("0x0000000800000000 0x00000008000fffff 0x000000000014220c\n")
    registers = parse_resource("feb20000 feb200ff 40200")
    assert prefetchable == Resource(0x800000000, 0x8000FFFFF, 0x14220C)
    assert (prefetchable.size, prefetchable.prefetchable) == (1 << 20, True)
    assert (registers.size, registers.prefetchable) == (0x100, False)
    assert all(one.is_memory and one.assigned for one in (prefetchable, registers))
    for absent in ("0x0 0x0 0x0", "0x1000 0x1fff 0x0", "0x2000 0x1fff 0x200"):
        assert parse_resource(absent) is None


@pytest.mark.parametrize(
    "line",
    [
        *("", "garbage", "0x1000", "0x1000 0x1fff", "0x1000 0x1fff 0x200 0x0", "0x 0x 0x"),
        *("-0x1 0x1fff 0x200", "0x1000 0x1fff -0x200", "0x0 0x10000000000000000 0x200"),
        *("0x1000 0x1ffg 0x200", "0x1_000 0x1_fff 0x2_00", "\u0661 \u0662 \u0662\u0660\u0660"),
    ],
)
def test_a_garbage_resource_is_a_value_error_and_costs_no_other_bar(bus, ivshmem, caplog, line):
    with pytest.raises(ValueError):
        parse_resource(line)
    set_line(ivshmem, 0, line)
    assert list(bus.bars(IVSHMEM)) == [2]
    assert [str(IVSHMEM) in message for message in caplog.messages] == [True]


def test_addresses_are_in_order_of_their_numbers_and_other_names_ignored(tmp_path):
    assert PciBus(tmp_path).addresses() == []
    good = ["0000:00:04.0", "0000:00:1f.7", "0000:01:00.0", "ffff:00:00.0", "10000:01:00.0"]
    bad = ["virtio0", "0000:00:04", "0000:00:04.0.bak", "0000:00:0A.0", "00001:00:00.0", ".x", "\n"]
    for name in good + bad:
        (tmp_path / "bus/pci/devices" / name).mkdir(parents=True)
    assert list(map(str, PciBus(tmp_path).addresses())) == good


@pytest.mark.parametrize("text", ["", "\n", "garbage", "0x", "0xg", "0x1 0x2", "-0x1", "0x10000"])
@pytest.mark.parametrize("name", ["vendor", "subsystem_device"])
def test_a_garbage_id_is_none_and_logged(bus, ivshmem, caplog, name, text):
    read, good = {"vendor": (bus.id, 0x1110), "subsystem_device": (bus.subsystem, 0x1100)}[name]
    assert read(IVSHMEM) == DeviceId(0x1AF4, good)
    (ivshmem / name).write_text(text)
    assert read(IVSHMEM) is None
    assert [str(IVSHMEM) in message for message in caplog.messages] == [True]


def test_bars_are_the_memory_bars_that_exist(bus, ivshmem):
    set_line(ivshmem, 1, "0x000000000000c000 0x000000000000c03f 0x0000000000040101")  # ports
    set_line(ivshmem, 6, "0x00000000feb40000 0x00000000feb7ffff 0x0000000000046200")  # ROM
    assert list(bus.bars(IVSHMEM)) == [0, 2]
    for ask in (bus.bar, lambda *bar: bus.open_bar(*bar, writable=False)):
        with pytest.raises(NoSuchNode, match=r"0000:00:04\.0: there is no memory BAR 1"):
            ask(IVSHMEM, 1)


@pytest.mark.parametrize(
    ("file", "ask"),
    [
        ("resource", lambda bus: bus.bars(IVSHMEM)),
        ("resource", lambda bus: bus.open_bar(IVSHMEM, 0, writable=False)),
        ("resource0", lambda bus: bus.open_bar(IVSHMEM, 0, writable=False)),
        ("config", lambda bus: bus.open_bar(IVSHMEM, 0, writable=False)),
        ("config", lambda bus: bus.config_size(IVSHMEM)),
        ("vendor", lambda bus: bus.id(IVSHMEM)),
        ("subsystem_device", lambda bus: bus.subsystem(IVSHMEM)),
    ],
)
def test_a_missing_file_is_a_device_gone(bus, ivshmem, file, ask):
    (ivshmem / file).unlink()
    with pytest.raises(DeviceGone, match=str(IVSHMEM)) as caught:
        ask(bus)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("via_devmem", [False, True])
@pytest.mark.parametrize("command", [0x0000, 0x0001, 0x0404, 0xFFFD])
def test_a_bar_is_not_opened_while_decoding_is_off(machine, ivshmem, via_devmem, command):
    memory = PhysicalMemory(machine.proc, machine.devmem) if via_devmem else None
    set_command(ivshmem, command)
    mends = {"0": f"echo 1 > {ivshmem}/enable", "1": "setpci -s 0000:00:04.0 COMMAND=2:2"}
    for enabled, mend in mends.items():
        (ivshmem / "enable").write_text(enabled + "\n")
        with pytest.raises(NotDecoded, match=r"^0000:00:04\.0 bar2: .* decoding is off") as caught:
            PciBus(machine.sysfs, memory).open_bar(IVSHMEM, 2, writable=False)
        assert str(caught.value).endswith(f"; {mend}")
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("flag", [0x20000000, 0x10000000], ids=["UNSET", "DISABLED"])
def test_a_bar_without_an_address_exists_but_is_not_opened(bus, ivshmem, flag):
    set_line(ivshmem, 0, f"0x0 0xff {demo.MEM | flag:#x}")
    assert bus.bar(IVSHMEM, 0).size == 0x100
    with pytest.raises(NotDecoded, match=r"0000:00:04\.0 bar0: .* no address"):
        bus.open_bar(IVSHMEM, 0, writable=False)


@pytest.mark.parametrize("via_devmem", [False, True])
@pytest.mark.parametrize(("address", "index"), [(IVSHMEM, 0), (IVSHMEM, 2), (NVME, 0)])
def test_a_bar_is_its_resource_file_or_the_memory_at_its_address(
    machine, ivshmem, via_devmem, address, index
):
    set_command(ivshmem, 0x0002)
    memory = PhysicalMemory(machine.proc, machine.devmem) if via_devmem else None
    bus = PciBus(machine.sysfs, memory)
    bar = bus.bar(address, index)
    aperture = bus.open_bar(address, index, writable=True)
    assert (aperture.base, aperture.size) == (bar.start, bar.size)
    assert aperture.memory_like == bar.prefetchable
    aperture.store_run(bar.size - 8, 4, b"abcd")
    aperture.close()
    resource = ivshmem.parent / str(address) / f"resource{index}"
    for path, start in ((resource, 0), (machine.devmem, bar.start)):
        written = via_devmem == (path == machine.devmem)
        with path.open("rb") as file:
            file.seek(start + bar.size - 12)
            assert file.read(12) == bytes(4) + (b"abcd" if written else bytes(4)) + bytes(4)
