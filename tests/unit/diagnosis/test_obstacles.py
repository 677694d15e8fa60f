"""Whether BARs answer: bridges, windows, addresses that were lost, sleep, and the mends."""

import shutil
import struct

import pytest
from machines import Witness, functions_of, set_bar

from barfs.diagnosis.obstacles import Obstacles
from barfs.errors import DeviceGone
from barfs.machine import simulated
from barfs.machine.resources import ROM_RESOURCE
from barfs.names import PciAddress

E1000, FIRST, SECOND, NVME = map(
    PciAddress.parse, ("0000:00:03.0", "0000:00:04.0", "0000:00:05.0", "0000:01:00.0")
)
UPPER, LOWER = map(PciAddress.parse, ("0000:00:1c.0", "0000:02:00.0"))
LOST = "its BARs are not where the kernel put them (has it been reset, or loaded again?)"


def window16(first, last):
    return struct.pack("<HH", first >> 16 & 0xFFF0, last >> 16 & 0xFFF0)


class Hierarchy:
    """The simulated machine, with the NVMe controller and the NIC behind two bridges.

    Each of the two has memory windows, and the upper one of 64 bits; the lower one has ports of 32.
    """

    def __init__(self, directory):
        self.paths = simulated.build(directory)
        self.sysfs = self.paths.sysfs
        self.entries = self.sysfs / "bus/pci/devices"
        self.root = self.sysfs / "devices/pci0000:00"
        self.pci = functions_of(self.sysfs, source=Witness)
        self.obstacles = Obstacles(self.pci)
        upper = self._bridge(self.root, UPPER, b"\0\2\3\0")
        lower = self._bridge(upper, LOWER, b"\2\3\3\0")
        for address in (NVME, E1000):
            self._put(self.entries / str(address), lower)
        for address in (FIRST, SECOND):
            self._put(self.entries / str(address), self.root)

    def _put(self, directory, above):
        where = above / directory.name
        shutil.move(directory, where)
        directory.symlink_to(where)

    def _bridge(self, above, address, buses):
        where = above / str(address)
        where.mkdir(parents=True)
        (self.entries / str(address)).symlink_to(where)
        config = bytearray(256)
        struct.pack_into("<HHHH", config, 0, 0x1B36, 0x000C, 7, 0)
        config[0x0B], config[0x0A], config[0x0E] = 6, 4, 1
        config[0x18:0x1C] = buses
        config[0x1C:0x1E] = b"\xc1\xd1"
        config[0x20:0x24] = window16(0xFEA00000, 0xFEBFFFFF)
        config[0x24:0x28] = struct.pack("<HH", 0x0001, 0xFFF1)
        struct.pack_into("<II", config, 0x28, 8, 8)
        (where / "config").write_bytes(config)
        lines = [
            *["0x0 0x0 0x0"] * 13,  # with SR-IOV in the kernel the windows come later
            *("0xc000 0xdfff 0x101", "0xfea00000 0xfebfffff 0x200"),
            "0x800000000 0x8ffffffff 0x102201",
        ]
        (where / "resource").write_text("\n".join(lines) + "\n")
        for name, text in (("vendor", "0x1b36"), ("device", "0x000c"), ("class", "0x060400")):
            (where / name).write_text(text + "\n")
        (where / "driver").symlink_to("../../../bus/pci/drivers/pcieport")
        (where / "enable").write_text("1\n")
        (where / "power_state").write_text("D0\n")
        return where

    def set(self, address, offset, data):
        with (self.entries / str(address) / "config").open("r+b") as config:
            config.seek(offset)
            config.write(data)

    def attribute(self, address, name, text):
        path = self.entries / str(address) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")

    def give_power_control(self, address, control):
        """A power management capability behind another one."""
        self.set(address, 6, struct.pack("<H", 0x10))
        self.set(address, 0x34, b"\x40")
        self.set(address, 0x40, b"\x05\x50")
        self.set(address, 0x50, b"\x01\0\0\0" + struct.pack("<H", control))

    def cause(self, address, index=0):
        resource = self.pci.resources(address)[index]
        return self.obstacles.of_bar(address, index, resource)

    def setpci(self, address, what):
        return f"setpci -A linux-sysfs -O sysfs.path={self.sysfs}/bus/pci -s {address} {what}"

    def anew(self, address):
        bus = self.sysfs / "bus/pci"
        return f"echo 1 > {bus}/devices/{address}/remove && echo 1 > {bus}/rescan"

    def after_reset(self, address, wanted):
        """What had no driver before is not decoded once it is found again."""
        return f"{self.anew(address)} && echo 1 > {self.entries}/{wanted}/enable"

    def give_driver(self, address, driver):
        link = self.entries / str(address) / "driver"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../../bus/pci/drivers/{driver}")


@pytest.fixture
def machine(tmp_path):
    return Hierarchy(tmp_path)


def test_nothing_is_amiss(machine):
    for address, index in ((NVME, 0), (E1000, 0), (E1000, 1), (FIRST, 0), (FIRST, 2)):
        assert machine.cause(address, index) is None
    assert machine.cause(E1000, ROM_RESOURCE) is None
    assert machine.obstacles.look(E1000).obstacles(machine.pci.bars(E1000)) == []
    assert not any("resource" in path or "rom" in path for path in machine.pci.source.touched())


@pytest.mark.parametrize(
    ("bridge", "command", "index", "space", "bit"),
    [
        *(
            (UPPER, 5, 0, "memory", 2),
            (LOWER, 5, 0, "memory", 2),
            (LOWER, 5, ROM_RESOURCE, "memory", 2),
        ),
        *((UPPER, 6, 1, "I/O", 1), (LOWER, 6, 1, "I/O", 1), (UPPER, 0, 1, "I/O", 1)),
    ],
)
def test_a_bridge_that_does_not_decode(machine, bridge, command, index, space, bit):
    machine.set(bridge, 4, struct.pack("<H", command))
    cause = machine.cause(E1000, index)
    assert cause.sentence == f"{space} decoding is off in the bridge {bridge} above it"
    assert cause.mend == machine.setpci(bridge, f"COMMAND={bit}:{bit}")
    assert machine.cause(FIRST) is None, "it is not behind that"
    (machine.entries / str(bridge) / "driver").unlink()
    machine.attribute(bridge, "enable", "0")
    assert machine.cause(E1000, index).mend == f"echo 1 > {machine.entries}/{bridge}/enable"


def test_the_upper_one_of_two_is_named_first(machine):
    for bridge in (LOWER, UPPER):
        machine.set(bridge, 4, bytes(2))
        assert str(bridge) in machine.cause(NVME).sentence


@pytest.mark.parametrize(
    ("address", "index", "offset", "data", "mend"),
    [
        # Closed, too short, elsewhere.
        (E1000, 0, 0x20, window16(0xFFF00000, 0), "MEMORY_BASE=fea0 MEMORY_LIMIT=feb0"),
        (E1000, 0, 0x20, window16(0xFEA00000, 0xFEAFFFFF), "MEMORY_BASE=fea0 MEMORY_LIMIT=feb0"),
        (
            E1000,
            1,
            0x1C,
            b"\xd1\xd1",
            "IO_BASE.b=c0 IO_LIMIT.b=d0 IO_BASE_UPPER16=0 IO_LIMIT_UPPER16=0",
        ),
        (
            NVME,
            0,
            0x28,
            bytes(8),
            "PREF_MEMORY_BASE=0 PREF_MEMORY_LIMIT=fff0 PREF_BASE_UPPER32=8 PREF_LIMIT_UPPER32=8",
        ),
    ],
)
@pytest.mark.parametrize("bridge", [UPPER, LOWER])
def test_a_window_that_does_not_hold_the_bar(machine, bridge, address, index, offset, data, mend):
    machine.set(bridge, offset, data)
    cause = machine.cause(address, index)
    space = "I/O" if index == 1 else "memory"
    assert (
        cause.sentence == f"no {space} window of the bridge {bridge} above it holds its addresses"
    )
    assert cause.mend == machine.setpci(bridge, mend)
    # The programming interface says that it forwards what nobody else claims.
    machine.set(bridge, 9, b"\1")
    assert machine.cause(address, index) is None


def test_a_window_that_the_kernel_does_not_have_either(machine):
    machine.set(LOWER, 0x20, window16(0xFFF00000, 0))
    machine.attribute(LOWER, "resource", "0x0 0x0 0x0")
    assert machine.cause(E1000).mend == machine.anew(LOWER)


@pytest.mark.parametrize("bridge", [UPPER, LOWER])
def test_a_bridge_that_was_reset_goes_and_not_the_device(machine, bridge):
    machine.set(bridge, 4, bytes(2))
    machine.set(bridge, 0x18, bytes(0x18))
    for address in (NVME, E1000):
        machine.set(address, 0, b"\xff" * 64)  # its bus has no number any more
    cause = machine.cause(E1000)
    assert (
        cause.sentence == f"the bridge {bridge} above it has lost its settings (has it been reset?)"
    )
    assert cause.mend == machine.anew(bridge)


@pytest.mark.parametrize("bridge", [UPPER, LOWER])
def test_a_bridge_that_does_not_answer(machine, bridge):
    machine.set(bridge, 0, b"\xff" * 64)
    cause = machine.cause(NVME)
    assert cause.sentence.startswith(f"the bridge {bridge} above it does not answer")
    assert cause.mend == machine.after_reset(bridge, NVME)


@pytest.mark.parametrize("bridge", [UPPER, LOWER])
def test_a_bridge_that_sleeps(machine, bridge):
    machine.attribute(bridge, "power_state", "D3hot")
    machine.attribute(bridge, "power/control", "auto")
    machine.pci.source.seen.clear()
    cause = machine.cause(NVME)
    assert cause.sentence == f"the bridge {bridge} above it sleeps (D3hot)"
    assert cause.mend == f"echo on > {machine.entries}/{bridge}/power/control"
    woken = {f"{bridge}/config", f"{NVME}/config"}
    assert not woken & set(machine.pci.source.touched())
    machine.attribute(bridge, "power_state", "D0")
    machine.give_power_control(bridge, 0x8 | 3)
    cause = machine.cause(NVME)
    words = f"the bridge {bridge} above it sleeps (D3hot), which the kernel does not know"
    assert cause.sentence == words
    assert cause.mend == machine.setpci(bridge, "CAP_PM+4.w=0:3")
    machine.give_power_control(bridge, 3)  # which resets the bus behind it, too
    assert machine.cause(NVME).mend == f"{cause.mend} && {machine.after_reset(bridge, NVME)}"


@pytest.mark.parametrize("address", [FIRST, NVME])
@pytest.mark.parametrize("state", [1, 2, 3])
def test_sleep_that_the_kernel_does_not_know_of(machine, address, state):
    name = ("D0", "D1", "D2", "D3hot")[state]
    power_on = machine.setpci(address, "CAP_PM+4.w=0:3")
    anew = machine.after_reset(address, address)
    for keeps, mend in ((8, power_on), (0, f"{power_on} && {anew}")):
        machine.give_power_control(address, state | keeps)
        for said in ("D0", "unknown"):
            machine.attribute(address, "power_state", said)
            cause = machine.cause(address)
            assert cause.sentence == f"the device sleeps ({name}), which the kernel does not know"
            assert cause.mend == mend
    machine.give_power_control(address, 0)
    assert machine.cause(address) is None


@pytest.mark.parametrize(
    ("control", "driver", "count", "mend"),
    [
        ("auto", False, "0", "echo on > {}/power/control"),
        ("auto", True, "1", "echo on > {}/power/control"),
        (None, False, "0", "echo on > {}/power/control"),
        # To tell the kernel once more would change nothing.
        ("on", False, "0", "echo 1 > {}/enable"),
        ("on", False, "1", None),
        ("on", True, "0", None),
    ],
)
def test_the_mend_of_sleep_that_the_kernel_knows_of(machine, control, driver, count, mend):
    machine.attribute(FIRST, "power_state", "D3hot")
    machine.attribute(FIRST, "enable", count)
    if control is not None:
        machine.attribute(FIRST, "power/control", control)
    if driver:
        machine.give_driver(FIRST, "vfio-pci")
    cause = machine.cause(FIRST)
    assert cause.sentence == "the device sleeps (D3hot)"
    directory = machine.entries / str(FIRST)
    wanted = mend.format(directory) if mend else machine.setpci(FIRST, "CAP_PM+4.w=0:3")
    assert cause.mend == wanted


@pytest.mark.parametrize("driver", ["vfio-pci", "uio_pci_generic"])
def test_a_driver_that_only_holds_it_keeps_enable_from_others(machine, driver):
    machine.set(FIRST, 4, bytes(2))
    machine.attribute(FIRST, "enable", "0")
    machine.give_driver(FIRST, driver)
    assert machine.cause(FIRST).mend == machine.setpci(FIRST, "COMMAND=2:2")


@pytest.mark.parametrize("command", [0, 3])
@pytest.mark.parametrize(
    ("address", "index", "registers"),
    [
        # A reset, which leaves nothing or what a probe for the size left.
        *((FIRST, 0, bytes(4)), (FIRST, 0, b"\0\xff\xff\xff"), (NVME, 0, b"\x04" + bytes(7))),
        *((E1000, 1, b"\1\0\0\0"), (E1000, 1, bytes(4)), (FIRST, 2, b"\x0c\0\0\0\x09\0\0\0")),
        (NVME, 0, b"\xf4\xff\xff\xff\xff\xff\xff\xff"),
    ],
)
def test_a_device_that_has_lost_its_addresses(machine, address, index, registers, command):
    machine.set(address, 0x10 + 4 * index, registers)
    machine.set(address, 4, struct.pack("<H", command))
    anew, after_reset = machine.anew(address), machine.after_reset(address, address)
    for driver, mend in (
        (None, after_reset),
        *((held, after_reset) for held in ("vfio-pci", "uio_pci_generic", "pci-stub")),
        *((used, anew) for used in ("nvme", "e1000", "pcieport")),
    ):
        if driver is None:
            (machine.entries / str(address) / "driver").unlink(missing_ok=True)
        else:
            machine.give_driver(address, driver)
        cause = machine.cause(address, index)
        assert (cause.sentence, cause.mend) == (LOST, anew if command else mend)


def test_all_bars_lost_is_one_cause(machine):
    machine.set(FIRST, 0x10, bytes(24))
    ((names, cause),) = machine.obstacles.look(FIRST).obstacles(machine.pci.bars(FIRST))
    assert (names, cause.sentence) == ("bar0, bar2", LOST)


@pytest.mark.parametrize("flag", [0x10, 0x30])
def test_what_has_addresses_of_its_own_is_not_misjudged(machine, flag):
    """Enhanced Allocation, and IDE in compatibility mode."""
    text = machine.entries / str(FIRST) / "resource"
    lines = text.read_text().splitlines()
    start, end, flags = (int(word, 16) for word in lines[0].split())
    lines[0] = f"{start:#x} {end:#x} {flags | flag:#x}"
    text.write_text("\n".join(lines))
    machine.set(FIRST, 0x10, bytes(4))
    assert machine.cause(FIRST) is None


def test_a_virtual_function_has_no_registers_of_its_own(machine):
    """Nor has it a memory bit; but the bridges above count."""
    machine.set(NVME, 4, bytes(2))
    machine.set(NVME, 0x10, bytes(8))
    (machine.entries / str(NVME) / "physfn").symlink_to(f"../{E1000}")
    assert machine.cause(NVME) is None
    machine.set(LOWER, 0x28, bytes(8))
    assert str(LOWER) in machine.cause(NVME).sentence
    machine.set(UPPER, 4, bytes(2))
    assert str(UPPER) in machine.cause(NVME).sentence


OFFSET = 0x600000000


def shift(machine, address, offset=OFFSET):
    """The bus has other addresses than the CPU: registers less by an offset."""
    for index, bar in machine.pci.bars(address).items():
        if bar.is_memory and bar.is_64bit:
            directory = machine.entries / str(address)
            set_bar(directory, index, bar.start - offset, is_64bit=True)


def test_a_host_whose_bus_has_other_addresses(machine):
    for address in (FIRST, SECOND, NVME):
        shift(machine, address)
    for bridge in (UPPER, LOWER):
        machine.set(bridge, 0x28, struct.pack("<II", 2, 2))
    # Their small BARs tell of no offset: a host bridge may have several windows.
    for address, index in ((FIRST, 2), (SECOND, 2), (NVME, 0), (FIRST, 0), (E1000, 0)):
        assert machine.cause(address, index) is None
    set_bar(machine.entries / str(FIRST), 2, 0x100000, is_64bit=True)
    assert machine.cause(FIRST, 2).sentence == LOST
    machine.set(FIRST, 0x18, bytes(8))
    assert machine.cause(FIRST, 2).sentence == LOST


def test_the_window_of_a_host_whose_bus_has_other_addresses(machine):
    for address in (FIRST, SECOND, NVME):
        shift(machine, address)
    machine.set(LOWER, 0x28, struct.pack("<II", 2, 2))
    cause = machine.cause(NVME)
    assert cause.sentence == f"no memory window of the bridge {UPPER} above it holds its addresses"
    window = "PREF_MEMORY_BASE=0 PREF_MEMORY_LIMIT=fff0 PREF_BASE_UPPER32=2 PREF_LIMIT_UPPER32=2"
    assert cause.mend == machine.setpci(UPPER, window)


def test_a_device_alone_tells_by_its_own_bars(tmp_path):
    paths = simulated.build(tmp_path)
    entries = paths.sysfs / "bus/pci/devices"
    for address in (E1000, SECOND, NVME):
        shutil.rmtree(entries / str(address))
    pci = functions_of(paths.sysfs)
    bars = pci.bars(FIRST)

    def silent():
        return [names for names, _ in Obstacles(pci).look(FIRST).obstacles(bars)]

    directory = entries / str(FIRST)
    set_bar(directory, 0, bars[0].start - 0x80000000)
    set_bar(directory, 2, bars[2].start - 0x80000000, is_64bit=True)
    assert silent() == []
    set_bar(directory, 2, bars[2].start - 0x90000000, is_64bit=True)
    assert silent() == ["bar0, bar2"]
    for index, is_64bit in ((0, False), (2, True)):
        set_bar(directory, index, 0, is_64bit=is_64bit)
    assert silent() == ["bar0, bar2"]


def test_what_is_remembered_is_forgotten_with_an_event(machine, monkeypatch):
    stamps = [1]
    monkeypatch.setattr(machine.pci.source, "stamp", lambda: stamps[-1])
    machine.give_power_control(NVME, 0)
    assert machine.cause(NVME) is None
    machine.pci.source.seen.clear()
    assert machine.cause(NVME) is None
    reads = [path for how, path in machine.pci.source.seen if how in {"read", "link"}]
    assert reads.count(f"{NVME}/config") == 2  # the header, and the capability where it was
    assert str(NVME) not in reads, "what it is behind"
    # The capability has moved, and it is not where it was.
    machine.set(NVME, 0x50, bytes(8))
    machine.set(NVME, 0x40, b"\x05\x60")
    machine.set(NVME, 0x60, b"\x01\0\0\0\x0b\0")
    assert "sleeps (D3hot)" in machine.cause(NVME).sentence
    # It comes to lie elsewhere.
    stamps.append(2)
    (machine.entries / str(NVME)).unlink()
    shutil.move(machine.root / str(UPPER) / str(LOWER) / str(NVME), machine.root)
    (machine.entries / str(NVME)).symlink_to(machine.root / str(NVME))
    machine.set(NVME, 0x60, b"\x01\0\0\0\0\0")
    machine.set(UPPER, 4, bytes(2))
    assert machine.cause(NVME) is None


def test_a_function_that_is_gone(machine):
    (machine.entries / str(FIRST)).unlink()
    with pytest.raises(DeviceGone):
        machine.obstacles.look(FIRST)


def test_a_copy_without_links_knows_no_bridges(tmp_path):
    paths = simulated.build(tmp_path)
    lineage = functions_of(paths.sysfs).lineage(NVME)
    assert lineage.bridges == ()
