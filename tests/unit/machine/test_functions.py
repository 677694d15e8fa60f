"""PCI functions from sysfs, as it is and as it may be."""

import errno
import os
import re
import shutil
import time
from types import SimpleNamespace

import pytest
from machines import Witness, functions_of, machine_of, set_bar, ways_of

from barfs.access.apertures import MappedAperture, PortAperture
from barfs.access.files import RomFile, SysfsFile
from barfs.diagnosis import mends, obstacles
from barfs.diagnosis.obstacles import Obstacles
from barfs.errors import DeviceGone, NoSuchAddress, NoSuchNode, NotDecoded, ReadOnly
from barfs.machine import power, simulated
from barfs.machine.configspace import command_of
from barfs.machine.functions import Functions
from barfs.machine.patterns import DevicePattern, Rules
from barfs.machine.presence import Presence
from barfs.machine.resources import Resource, check_window, parse_resource
from barfs.machine.source import PlainSource, RealSource
from barfs.names import DeviceId, PciAddress
from barfs.spans import bars
from barfs.spans.enabling import Decoder
from barfs.spans.ways import MappedResource, Ports, Ways

E1000 = PciAddress(0, 0, 3, 0)
IVSHMEM = PciAddress(0, 0, 4, 0)
NVME = PciAddress(0, 1, 0, 0)


@pytest.fixture
def machine(tmp_path):
    return simulated.build(tmp_path)


@pytest.fixture
def bus(machine):
    return functions_of(machine.sysfs)


def open_bar(pci, *bar, **more):
    """By the way that is the default."""
    return bars.open_bar(Ways(pci, None, (Ports(pci), MappedResource(pci, None))), *bar, **more)


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
    assert functions_of(tmp_path).addresses() == []
    good = ["0000:00:04.0", "0000:00:1f.7", "0000:01:00.0", "ffff:00:00.0", "10000:01:00.0"]
    bad = ["virtio0", "0000:00:04", "0000:00:04.0.bak", "0000:00:0A.0", "00001:00:00.0", ".x", "\n"]
    for name in good + bad:
        (tmp_path / "bus/pci/devices" / name).mkdir(parents=True)
    assert list(map(str, functions_of(tmp_path).addresses())) == good


@pytest.mark.parametrize("text", ["", "\n", "garbage", "0x", "0xg", "0x1 0x2", "-0x1", "0x10000"])
@pytest.mark.parametrize("name", ["vendor", "subsystem_device"])
def test_a_garbage_id_is_none_and_logged(bus, ivshmem, caplog, name, text):
    read, good = {"vendor": (bus.id, 0x1110), "subsystem_device": (bus.subsystem, 0x1100)}[name]
    assert read(IVSHMEM) == DeviceId(0x1AF4, good)
    (ivshmem / name).write_text(text)
    assert read(IVSHMEM) is None
    assert [str(IVSHMEM) in message for message in caplog.messages] == [True]


def test_bars_are_those_of_memory_and_of_ports_that_exist(bus, ivshmem):
    set_line(ivshmem, 1, "0x000000000000c000 0x000000000000c03f 0x0000000000040101")  # ports
    set_line(ivshmem, 3, "0x0000000000000000 0x0000000000000fff 0x0000000000001000")  # neither
    set_line(ivshmem, 6, "0x00000000feb40000 0x00000000feb7ffff 0x0000000000046200")  # ROM
    with (ivshmem / "resource").open("a") as file:  # the windows of a bridge
        file.write("\n0x000000000000d000 0x000000000000dfff 0x0000000000000101\n" * 2)
    assert list(bus.bars(IVSHMEM)) == [0, 1, 2]
    assert [bar.is_memory for bar in bus.bars(IVSHMEM).values()] == [True, False, True]
    for index in (3, 4, 6, 7):
        for ask in (bus.bar, lambda *bar: open_bar(bus, *bar, writable=False)):
            with pytest.raises(NoSuchNode, match=rf"0000:00:04\.0: there is no BAR {index}"):
                ask(IVSHMEM, index)


def test_resources_are_the_bars_and_the_rom_by_their_lines(bus, ivshmem):
    assert bus.resources(E1000) == {
        0: Resource(0xFEB00000, 0xFEB1FFFF, simulated.MEM),
        1: Resource(0xC000, 0xC03F, simulated.PORTS),
        6: Resource(0xFEB30000, 0xFEB3FFFF, simulated.ROM),
    }
    found = bus.resources(IVSHMEM)
    assert list(found) == [0, 2]
    assert [found[index].is_64bit for index in (0, 2)] == [False, True]
    assert bus.bars(E1000) == {index: bus.resources(E1000)[index] for index in (0, 1)}
    (ivshmem / "resource").write_text("0xfeb20000 0xfeb200ff 0x40200\n")  # no more lines
    assert bus.resources(IVSHMEM) == {0: Resource(0xFEB20000, 0xFEB200FF, 0x40200)}


def test_a_garbage_rom_line_costs_no_bar(bus, ivshmem, caplog):
    set_line(ivshmem, 6, "garbage")
    assert list(bus.resources(IVSHMEM)) == list(bus.bars(IVSHMEM)) == [0, 2]
    assert all(str(IVSHMEM) in message for message in caplog.messages)


def test_a_rom_has_the_size_of_its_file_and_may_be_absent(bus, machine):
    rom = machine.sysfs / "bus/pci/devices" / str(E1000) / "rom"
    assert [bus.rom_size(address) for address in (E1000, IVSHMEM, NVME)] == [64 << 10, None, None]
    os.truncate(rom, 0x20000)
    assert bus.rom_size(E1000) == 0x20000
    rom.unlink()
    assert bus.rom_size(E1000) is None
    for address in (E1000, IVSHMEM):
        with pytest.raises(DeviceGone, match=f"{address} rom") as caught:
            bus.open_rom(address)
        assert caught.value.errno == errno.ENODEV


def test_a_rom_is_switched_on_only_in_a_real_sysfs(bus, machine):
    rom = machine.sysfs / "bus/pci/devices" / str(E1000) / "rom"
    before = rom.read_bytes()
    file = bus.open_rom(E1000)
    assert type(file) is SysfsFile
    assert (file.size, file.read(0, 1 << 20)) == (len(before), before)
    file.close()
    assert rom.read_bytes() == before
    file = functions_of(machine.sysfs, source=RealSource).open_rom(E1000)
    assert type(file) is RomFile
    file.write(0, b"1")  # so it is open for writing
    file.close()


@pytest.mark.parametrize(
    ("file", "ask"),
    [
        ("resource", lambda bus: bus.bars(IVSHMEM)),
        ("resource", lambda bus: bus.resources(IVSHMEM)),
        ("resource", lambda bus: bus.bar(IVSHMEM, 0)),
        ("resource", lambda bus: open_bar(bus, IVSHMEM, 0, writable=False)),
        ("resource0", lambda bus: open_bar(bus, IVSHMEM, 0, writable=False)),
        ("config", lambda bus: open_bar(bus, IVSHMEM, 0, writable=False)),
        ("config", lambda bus: bus.config_size(IVSHMEM)),
        ("config", lambda bus: command_of(bus, IVSHMEM)),
        ("config", lambda bus: bus.open_config(IVSHMEM, writable=False)),
        ("vendor", lambda bus: bus.id(IVSHMEM)),
        ("subsystem_device", lambda bus: bus.subsystem(IVSHMEM)),
    ],
)
def test_a_missing_file_is_a_device_gone(bus, ivshmem, file, ask):
    (ivshmem / file).unlink()
    with pytest.raises(DeviceGone, match=str(IVSHMEM)) as caught:
        ask(bus)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("index", [0, 1])
def test_a_bar_is_not_opened_while_its_device_sleeps(bus, e1000, monkeypatch, index):
    """Its config space is not read either: that would wake it for a moment."""
    open_bar(bus, E1000, index, writable=False).close()
    monkeypatch.setattr(Functions, "read_config", None)
    for state in ("D1", "D2", "D3hot", "D3cold"):
        (e1000 / "power_state").write_text(state + "\n")
        with pytest.raises(NotDecoded) as caught:
            open_bar(bus, E1000, index, writable=False)
        assert str(caught.value) == (
            f"0000:00:03.0 bar{index}: the device sleeps ({state}); echo on > {e1000}/power/control"
        )
        assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    for state in ("D0", "unknown"):
        (e1000 / "power_state").write_text(state + "\n")
        open_bar(bus, E1000, index, writable=False).close()
    (e1000 / "power_state").unlink()
    open_bar(bus, E1000, index, writable=False).close()


@pytest.mark.parametrize("via_devmem", [False, True])
@pytest.mark.parametrize("command", [0x0000, 0x0001, 0x0404, 0xFFFD])
def test_a_bar_is_not_opened_while_decoding_is_off(machine, ivshmem, via_devmem, command):
    ways = ways_of(machine_of(machine, bars_via_devmem=via_devmem))
    set_command(ivshmem, command)
    copy = f"-A linux-sysfs -O sysfs.path={machine.sysfs}/bus/pci"
    setpci = f"setpci {copy} -s 0000:00:04.0 COMMAND=2:2"
    mends = {"0": f"echo 1 > {ivshmem}/enable", "1": setpci}
    for enabled, mend in mends.items():
        (ivshmem / "enable").write_text(enabled + "\n")
        with pytest.raises(NotDecoded, match=r"^0000:00:04\.0 bar2: .* decoding is off") as caught:
            bars.open_bar(ways, IVSHMEM, 2, writable=False)
        assert str(caught.value).endswith(f"; {mend}")
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("change", ["removed", "moved", "replaced", "cut short"])
def test_presence_ends_when_a_device_goes_or_its_resources_change(bus, ivshmem, change):
    presence = bus.presence(IVSHMEM)
    for _ in range(2):
        presence.check()
    text = (ivshmem / "resource").read_text()
    if change == "removed":
        shutil.rmtree(ivshmem)
    elif change == "moved":
        set_line(ivshmem, 0, f"0xfeb40000 0xfeb400ff {simulated.MEM:#x}")
    elif change == "replaced":  # by the same device at the same place
        (ivshmem / "resource").unlink()
        (ivshmem / "resource").write_text(text)
    else:
        os.truncate(ivshmem / "resource", 0)
    for _ in range(2):
        with pytest.raises(DeviceGone, match=rf"^{IVSHMEM}: ") as caught:
            presence.check()
        assert caught.value.errno == errno.ENODEV
    presence.close()


def test_presence_does_not_come_back_with_the_resources(bus, ivshmem):
    presence = bus.presence(IVSHMEM)
    text = (ivshmem / "resource").read_text()
    set_line(ivshmem, 0, f"0xfeb40000 0xfeb400ff {simulated.MEM:#x}")
    for now in (None, text):
        if now:
            (ivshmem / "resource").write_text(now)
        with pytest.raises(DeviceGone, match="its resources have changed since it was opened"):
            presence.check()
    presence.close()


def test_presence_of_a_function_that_is_not_there(bus, ivshmem):
    shutil.rmtree(ivshmem)
    with pytest.raises(DeviceGone, match=str(IVSHMEM)):
        bus.presence(IVSHMEM)


def removed(*_):
    """What sysfs answers once a function is removed, to those who have the file open."""
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def test_presence_that_sysfs_ends_between_checks(machine, monkeypatch):
    path = machine.sysfs / "bus/pci/devices" / str(IVSHMEM) / "resource"
    presence = Presence(path, str(IVSHMEM))
    presence.check()
    monkeypatch.setattr(os, "pread", removed)
    with pytest.raises(DeviceGone, match=f"^{IVSHMEM}: "):
        presence.check()
    presence.close()


def test_presence_that_sysfs_ends_while_it_is_made_is_a_device_gone(bus, monkeypatch):
    monkeypatch.setattr(os, "pread", removed)
    with pytest.raises(DeviceGone, match=f"^{IVSHMEM}: "):
        bus.presence(IVSHMEM)


@pytest.fixture
def e1000(machine):
    return machine.sysfs / "bus/pci/devices" / str(E1000)


@pytest.mark.parametrize("via_devmem", [False, True])
@pytest.mark.parametrize("command", [0x0000, 0x0002, 0x0404, 0xFFFE])
def test_a_port_bar_is_not_opened_while_io_decoding_is_off(machine, e1000, via_devmem, command):
    ways = ways_of(machine_of(machine, bars_via_devmem=via_devmem))
    set_command(e1000, command)
    copy = f"-A linux-sysfs -O sysfs.path={machine.sysfs}/bus/pci"
    setpci = f"setpci {copy} -s 0000:00:03.0 COMMAND=1:1"
    # With a driver the kernel refuses to be told through `enable`.
    for enabled, driver in (("0", True), ("2", True), ("2", False), ("0", False)):
        if not driver:
            (e1000 / "driver").unlink(missing_ok=True)
        mend = f"echo 1 > {e1000}/enable" if (enabled, driver) == ("0", False) else setpci
        (e1000 / "enable").write_text(enabled + "\n")
        with pytest.raises(NotDecoded, match=r"^0000:00:03\.0 bar1: I/O decoding is off") as caught:
            bars.open_bar(ways, E1000, 1, writable=False)
        assert str(caught.value).endswith(f"; {mend}")
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("index", "command", "decoded"),
    [
        *((0, 0x0001, False), (0, 0x0002, True), (0, 0x0003, True), (0, 0xFFFD, False)),
        *((1, 0x0001, True), (1, 0x0002, False), (1, 0x0003, True), (1, 0xFFFE, False)),
    ],
)
def test_each_space_has_its_own_decode_bit(bus, e1000, index, command, decoded):
    set_command(e1000, command)
    assert command_of(bus, E1000) == command
    if not decoded:
        with pytest.raises(NotDecoded):
            open_bar(bus, E1000, index, writable=False)
        return
    open_bar(bus, E1000, index, writable=False).close()


@pytest.mark.parametrize("via_devmem", [False, True])
@pytest.mark.parametrize(("offset", "size"), [(0, None), (0, 0x40), (3, 1), (8, 0x38), (0x3F, 1)])
def test_a_port_bar_is_its_resource_file_also_with_devmem(machine, e1000, via_devmem, offset, size):
    ways = ways_of(machine_of(machine, bars_via_devmem=via_devmem))
    aperture = bars.open_bar(ways, E1000, 1, writable=True, offset=offset, size=size)
    assert type(aperture) is PortAperture
    assert (aperture.base, aperture.size) == (0xC000 + offset, 0x40 if size is None else size)
    assert (aperture.max_width, aperture.memory_like) == (4, False)
    expected = bytearray((e1000 / "resource1").read_bytes())
    aperture.load_run(0, 1, got := bytearray(1))
    assert got == expected[offset : offset + 1]
    aperture.store_run(aperture.size - 1, 1, b"\xa5")
    aperture.close()
    expected[offset + aperture.size - 1] = 0xA5
    assert (e1000 / "resource1").read_bytes() == expected


@pytest.mark.parametrize("via_devmem", [False, True])
@pytest.mark.parametrize(
    ("address", "index", "offset", "size"),
    [
        *((IVSHMEM, 0, 0, 1), (IVSHMEM, 0, 0x40, 4), (IVSHMEM, 0, 0xFF, 1)),
        *((IVSHMEM, 2, 0xFFE, 0x11), (IVSHMEM, 2, 0xFFFF0, 0x10), (NVME, 0, 0x3001, 0xFFF)),
    ],
)
def test_a_window_is_its_part_of_the_bar(
    machine, ivshmem, via_devmem, address, index, offset, size
):
    ways = ways_of(machine_of(machine, bars_via_devmem=via_devmem))
    bar = ways.pci.bar(address, index)
    aperture = bars.open_bar(ways, address, index, writable=True, offset=offset, size=size)
    assert type(aperture) is MappedAperture
    assert (aperture.base, aperture.size) == (bar.start + offset, size)
    assert not aperture.memory_like  # nobody says that it may be copied
    data = bytes(at & 0xFF | 1 for at in range(size))
    aperture.store_run(0, 1, data)
    aperture.close()
    if via_devmem:
        path, start = machine.devmem, bar.start + offset
    else:
        path, start = ivshmem.parent / str(address) / f"resource{index}", offset
    with path.open("rb") as file:
        file.seek(max(0, start - 1))
        before = file.read(start - file.tell())
        assert file.read(size + 1)[:size] == data
    assert not any(before)


@pytest.mark.parametrize(
    ("index", "offset", "size"),
    [
        (0, 0x100, 1),
        (0, 0xFF, 2),
        (0, 0, 0x101),
        (0, 1 << 63, 1),
        (2, 0x100000, 1),
        (2, 4, 1 << 20),
    ],
)
def test_a_window_outside_the_bar_is_refused(bus, index, offset, size):
    whole = bus.bar(IVSHMEM, index).size
    what = f"0000:00:04.0 bar{index}: {size:#x} bytes at {offset:#x}, but it ends at {whole:#x}"
    with pytest.raises(NoSuchAddress, match=re.escape(what)) as caught:
        open_bar(bus, IVSHMEM, index, writable=False, offset=offset, size=size)
    assert caught.value.errno == errno.ENXIO


def test_check_window_allows_what_lies_inside():
    for offset, size in ((0, 1), (0, 8), (7, 1), (4, 4)):
        check_window("x", offset, size, 8)
    for offset, size in ((0, 9), (8, 1), (7, 2), (1 << 64, 1)):
        with pytest.raises(NoSuchAddress, match=f"^x: {size:#x} bytes at {offset:#x}"):
            check_window("x", offset, size, 8)


@pytest.mark.parametrize("offset", [0, 0x40])
def test_a_bar_that_shares_a_page_is_found_in_it_in_a_real_sysfs(machine, ivshmem, offset):
    set_line(ivshmem, 0, f"0xfeb20300 0xfeb203ff {simulated.MEM:#x}")
    set_bar(ivshmem, 0, 0xFEB20300)
    (ivshmem / "resource0").write_bytes(bytes(0x1000))
    bus = functions_of(machine.sysfs, source=RealSource)
    aperture = open_bar(bus, IVSHMEM, 0, writable=True, offset=offset, size=4)
    aperture.store_run(0, 4, b"abcd")
    aperture.close()
    assert (ivshmem / "resource0").read_bytes().index(b"abcd") == 0x300 + offset


@pytest.mark.parametrize("flag", [0x20000000, 0x10000000], ids=["UNSET", "DISABLED"])
def test_a_bar_without_an_address_exists_but_is_not_opened(bus, ivshmem, flag):
    set_line(ivshmem, 0, f"0x0 0xff {simulated.MEM | flag:#x}")
    assert bus.bar(IVSHMEM, 0).size == 0x100
    with pytest.raises(NotDecoded, match=r"0000:00:04\.0 bar0: .* no address"):
        open_bar(bus, IVSHMEM, 0, writable=False)


@pytest.mark.parametrize("via_devmem", [False, True])
@pytest.mark.parametrize(("address", "index"), [(IVSHMEM, 0), (IVSHMEM, 2), (NVME, 0)])
def test_a_bar_is_its_resource_file_or_the_memory_at_its_address(
    machine, ivshmem, via_devmem, address, index
):
    set_command(ivshmem, 0x0002)
    ways = ways_of(machine_of(machine, bars_via_devmem=via_devmem))
    bar = ways.pci.bar(address, index)
    aperture = bars.open_bar(ways, address, index, writable=True)
    assert (aperture.base, aperture.size) == (bar.start, bar.size)
    assert not aperture.memory_like  # nobody says that it may be copied
    aperture.store_run(bar.size - 8, 4, b"abcd")
    aperture.close()
    resource = ivshmem.parent / str(address) / f"resource{index}"
    for path, start in ((resource, 0), (machine.devmem, bar.start)):
        written = via_devmem == (path == machine.devmem)
        with path.open("rb") as file:
            file.seek(start + bar.size - 12)
            assert file.read(12) == bytes(4) + (b"abcd" if written else bytes(4)) + bytes(4)


def rules(allow=(), read_only=()):
    return Rules(*(tuple(map(DevicePattern.parse, patterns)) for patterns in (allow, read_only)))


def ruled(machine, allow=(), read_only=(), source=PlainSource):
    return functions_of(machine.sysfs, rules(allow, read_only), source)


def test_what_is_not_allowed_is_to_no_method_there(machine):
    bus = ruled(machine, ["8086:*", "0000:01:??.0"])
    assert bus.addresses() == [E1000, NVME]
    assert [bus.exists(address) for address in (E1000, IVSHMEM, NVME)] == [True, False, True]
    asked = {
        "attribute": ("class",),
        "driver": (),
        "id": (),
        "subsystem": (),
        "resources": (),
        "bars": (),
        "bar": (0,),
        "open_rom": (),
        "is_virtual": (),
        "group": (),
        "presence": (),
        "config_size": (),
        "read_config": (0, 2),
        "lineage": (),
        "windows": (),
        "path": ("config",),
    }
    for name, arguments in asked.items():
        with pytest.raises(DeviceGone, match=r"^0000:00:04\.0: there is no such function"):
            getattr(bus, name)(IVSHMEM, *arguments)
    bar = Resource(0x1000, 0x1FFF, 0x200)
    for call in (
        lambda: power.sleeping(bus, IVSHMEM),
        lambda: obstacles.silence(bus, IVSHMEM),
        lambda: Obstacles(bus).look(IVSHMEM),
        lambda: Obstacles(bus).of_bar(IVSHMEM, 0, bar),
        lambda: mends.wake(bus, IVSHMEM),
        lambda: mends.look_anew(bus, IVSHMEM),
        lambda: mends.look_anew_after_reset(bus, IVSHMEM, IVSHMEM),
        lambda: mends.turn_decoding_on(bus, IVSHMEM, 2),
        lambda: mends.take_from_driver(bus, IVSHMEM),
        lambda: bars.can_combine(bus, IVSHMEM, 2),
    ):
        with pytest.raises(DeviceGone, match=r"^0000:00:04\.0: there is no such function"):
            call()
    for writable in (False, True):
        for call in (bus.open_config, lambda *a, **k: open_bar(bus, *a, 0, **k)):
            with pytest.raises(DeviceGone, match="no such function"):
                call(IVSHMEM, writable=writable)
    assert bus.rom_size(IVSHMEM) is None
    (machine.sysfs / "bus/pci/devices" / str(E1000) / "vendor").write_text("0x1af4\n")
    assert bus.addresses() == [NVME]
    assert bus.rom_size(E1000) is None


def test_every_method_that_takes_an_address_is_among_those(bus):
    """So that a new one is not forgotten above."""
    methods = {name for name in dir(bus) if not name.startswith("_")}
    assert methods == {
        *("addresses", "exists", "attribute", "driver", "id", "subsystem", "resources", "bars"),
        *("bar", "rom_size", "open_rom", "presence", "config_size", "open_config", "read_config"),
        *("is_virtual", "path", "lineage", "windows", "group"),
        # These only ask others.
        *("known", "reading"),
        # These are about no one function.
        *("source", "everything", "with_id"),
        # This one tells what the source of all functions knows.
        "knows_driver",
        # What may not be written is so whether it is allowed or not.
        *("is_read_only", "why_read_only", "check_writable", "check_span_writable"),
        # This one tells what rules are about.
        "name",
    }


def test_rules_by_ids_leave_out_whose_ids_cannot_be_told(machine, ivshmem):
    bus = ruled(machine, ["*:*"], ["8086:*"])
    assert IVSHMEM in bus.addresses()
    assert not bus.is_read_only(IVSHMEM)
    (ivshmem / "device").write_text("garbage")
    assert IVSHMEM not in bus.addresses()
    assert bus.is_read_only(IVSHMEM)
    (ivshmem / "device").unlink()
    assert IVSHMEM not in bus.addresses()
    assert bus.is_read_only(IVSHMEM)


def test_a_look_up_asks_only_about_the_function_itself(machine):
    bus = ruled(machine, ["1af4:*:1af4:*", "8086:*"], ["1af4:1110"], Witness)
    assert bus.exists(IVSHMEM)
    assert bus.is_read_only(IVSHMEM)
    open_bar(bus, IVSHMEM, 0, writable=False).close()
    assert {path.partition("/")[0] for _, path in bus.source.seen} == {str(IVSHMEM)}
    assert "list" not in dict(bus.source.seen)
    plain = functions_of(machine.sysfs, source=Witness)
    assert plain.exists(IVSHMEM)
    assert not plain.is_read_only(IVSHMEM)
    plain.check_span_writable(0, 1 << 63)
    assert plain.source.seen == [("exists", str(IVSHMEM))]


@pytest.mark.parametrize("via_devmem", [False, True])
def test_what_is_read_only_is_not_opened_for_writing(machine, via_devmem):
    ruled = rules([], ["1af4:1110", "0000:00:03.0"])
    ways = ways_of(machine_of(machine, rules=ruled, bars_via_devmem=via_devmem))
    bus = ways.pci
    for address, bar in ((IVSHMEM, 0), (IVSHMEM, 2), (E1000, 0), (E1000, 1)):
        bars.open_bar(ways, address, bar, writable=False).close()
        bus.open_config(address, writable=False).close()
        for call in (
            lambda key=(address, bar): bars.open_bar(ways, *key, writable=True),
            lambda key=(address, bar): bars.open_bar(ways, *key, writable=True, offset=4, size=4),
            lambda key=address: bus.open_config(key, writable=True),
            lambda key=address: Decoder(bus)._set_command(key, 0),
        ):
            with pytest.raises(ReadOnly, match=rf"^{address} .*--read-only-device") as caught:
                call()
            assert caught.value.errno == errno.EROFS
        with pytest.raises(ReadOnly, match=rf"/enable: {address} is read-only"):
            Decoder(bus)._set_enable(address, "1")
    bars.open_bar(ways, NVME, 0, writable=True).close()
    bus.open_config(NVME, writable=True).close()
    Decoder(bus)._set_enable(NVME, "1")


@pytest.mark.parametrize(
    ("start", "size", "refused"),
    [
        *((0xFEB20000, 1, True), (0xFEB200FF, 1, True), (0xFEB1FFFF, 1, False)),
        *((0xFEB20100, 1, False), (0xFEB1FFFF, 2, True), (0xFEB00000, 0x20000, False)),
        *(
            (0xC0000000, 0x3EC00000, True),
            (0x800000000, 1 << 32, True),
            (0x8000FFFFC, 4, True),
            (0x800100000, 4, False),
        ),
        *((0xFEB30000, 4, True), (0xC000, 4, False), (0x1000, 0x1000, False)),
    ],
)
def test_physical_memory_is_not_writable_where_a_read_only_bar_lies(machine, start, size, refused):
    """Hidden devices count too, the ROM does, and port numbers are no addresses of memory."""
    bus = ruled(machine, ["8086:*"], ["0000:00:04.0", "8086:*"])
    (machine.sysfs / "bus/pci/devices" / str(E1000) / "resource").write_text(
        f"0 0 0\n0xc000 0xc03f {simulated.PORTS:#x}\n"
        f"0x1000 0x1fff {simulated.MEM | 0x20000000:#x}\ngarbage\n0 0 0\n0 0 0\n"
        f"0xfeb30000 0xfeb3ffff {simulated.ROM:#x}\n"
    )
    if refused:
        with pytest.raises(ReadOnly, match=rf"^phys {start:#x}\+{size:#x}: 0000:00:0[34]\.0 is "):
            bus.check_span_writable(start, size)
    else:
        bus.check_span_writable(start, size)


def test_a_read_only_device_that_goes_meanwhile_bars_nothing(machine, ivshmem):
    bus = ruled(machine, [], ["0000:*:*"])
    (ivshmem / "resource").unlink()
    bus.check_span_writable(0xFEB20000, 4)
    with pytest.raises(ReadOnly):
        bus.check_span_writable(0xFEB21000, 4)


def test_a_change_is_seen_however_soon_it_comes(bus, ivshmem, monkeypatch):
    """The time of a file may be that of the last clock tick, and much happens between two."""
    path = ivshmem / "resource"
    there = path.read_text()
    elsewhere = there.replace("feb", "fea")
    assert elsewhere != there
    changed = time.time_ns()
    about = SimpleNamespace(st_nlink=1, st_ctime_ns=changed)
    clock = SimpleNamespace(time_ns=lambda: changed + 1000)
    system = SimpleNamespace(fstat=lambda _: about, pread=os.pread, close=os.close)
    monkeypatch.setattr("barfs.machine.presence.os", system)
    monkeypatch.setattr("barfs.machine.presence.time", clock)
    presence = bus.presence(IVSHMEM)
    for _ in range(3):
        presence.check()
    path.write_text(elsewhere)
    with pytest.raises(DeviceGone, match="have changed"):
        presence.check()
    presence.close()
    # Once that is long ago the time alone tells, which is sooner asked.
    path.write_text(there)
    clock.time_ns = lambda: changed + 1_000_000_000
    presence = bus.presence(IVSHMEM)
    presence.check()
    path.write_text(elsewhere)
    presence.check()
    about.st_ctime_ns += 1_000_000_000
    with pytest.raises(DeviceGone, match="have changed"):
        presence.check()
    presence.close()
