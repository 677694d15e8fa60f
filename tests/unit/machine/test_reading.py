"""Whether a BAR is read as registers or as memory."""

import pytest
from machines import machine_of

from barfs.machine import simulated
from barfs.machine.functions import Allowed
from barfs.machine.patterns import BarPattern, DevicePattern, Rules
from barfs.machine.reading import reading_of
from barfs.machine.resources import Resource
from barfs.names import PciAddress

MEM, PREFETCH = simulated.MEM, simulated.PREFETCH_64


def bar(size, flags):
    return Resource(0x1000000, 0x1000000 + size - 1, flags)


# Flags and sizes as real devices have them: of registers behind the prefetchable bit, too.
DEVICES = {
    "ConnectX": (0x020000, {0: bar(32 << 20, 0x14220C)}, set()),
    "82599": (0x020000, {0: bar(512 << 10, PREFETCH), 4: bar(16 << 10, PREFETCH)}, set()),
    "virtio-net": (0x020000, {1: bar(4096, MEM), 4: bar(16 << 10, PREFETCH)}, set()),
    "virtio-gpu": (0x038000, {1: bar(4096, MEM), 4: bar(16 << 10, PREFETCH)}, {4}),
    "nvme": (0x010802, {0: bar(16 << 10, 0x140204)}, set()),
    "ivshmem": (0x050000, {0: bar(256, MEM), 2: bar(1 << 20, PREFETCH)}, {2}),
    "CXL": (0x050210, {0: bar(1 << 20, PREFETCH)}, set()),
    "graphics": (
        0x030000,
        {0: bar(256 << 20, PREFETCH), 2: bar(2 << 20, PREFETCH), 4: bar(256, simulated.PORTS)},
        {0},
    ),
    "bochs": (0x030000, {0: bar(16 << 20, 0x42208), 2: bar(4096, MEM)}, {0}),
    "3D controller": (0x030200, {0: bar(16 << 20, MEM), 1: bar(8 << 30, PREFETCH)}, {1}),
    "unknown class": (None, {0: bar(1 << 20, PREFETCH)}, set()),
    "no class": (0, {0: bar(1 << 20, PREFETCH)}, set()),
}


@pytest.mark.parametrize("name", DEVICES)
def test_memory_is_what_is_known_to_be(name):
    device_class, bars, memory = DEVICES[name]
    readings = {index: reading_of(device_class, bars, index) for index in bars}
    assert {index for index, reading in readings.items() if reading.is_memory} == memory
    assert all(reading.why for reading in readings.values())


def test_a_rom_is_not_the_largest_bar():
    bars = {0: bar(1 << 20, PREFETCH), 6: bar(2 << 20, PREFETCH)}
    assert reading_of(0x030000, bars, 0).is_memory


NIC, FIRST, NVME = PciAddress(0, 0, 3, 0), PciAddress(0, 0, 4, 0), PciAddress(0, 1, 0, 0)


@pytest.mark.parametrize(
    ("memory", "registers", "expected"),
    [
        ([], [], {(FIRST, 2)}),
        (["1b36:0010"], [], {(FIRST, 2), (NVME, 0)}),
        (["8086:*"], [], {(FIRST, 2), (NIC, 0)}),  # but nothing makes memory of ports
        (["1af4:1110/bar0"], [], {(FIRST, 0), (FIRST, 2)}),
        ([], ["0000:00:04.0/bar2"], set()),
        ([], ["1af4:1110"], set()),
        ([], ["1af4:1110/bar0"], {(FIRST, 2)}),
        (["*"], ["*"], set()),
        (["*"], ["1af4:1110"], {(NIC, 0), (NVME, 0)}),
        (["*"], ["1af4-1110/bar0"], {(FIRST, 2), (NIC, 0), (NVME, 0)}),
    ],
)
def test_who_knows_better_says_so(tmp_path, memory, registers, expected):
    rules = Rules(
        memory=tuple(map(BarPattern.parse, memory)),
        registers=tuple(map(BarPattern.parse, registers)),
    )
    pci = Allowed(machine_of(simulated.build(tmp_path)).pci.everything, rules)
    found = {
        (address, index)
        for address in (NIC, FIRST, NVME)
        for index in pci.bars(address)
        if pci.reading(address, pci.bars(address), index).is_memory
    }
    assert found == expected


@pytest.mark.parametrize(
    ("text", "device", "index"),
    [
        *(("1af4:1110", "1af4:1110", None), ("1af4:1110/bar2", "1af4:1110", 2)),
        *(("0000:00:04.0/bar0", "0000:00:04.0", 0), ("*/bar5", "*", 5), ("04.0", "04.0", None)),
    ],
)
def test_patterns_of_bars(text, device, index):
    pattern = BarPattern.parse(text)
    assert pattern == BarPattern(DevicePattern.parse(device), index)
    assert str(pattern) == text


@pytest.mark.parametrize(
    "text", ["", "/bar0", "maps", "1af4:1110/", "1af4:1110/bar6", "1af4:1110/rom", "a/b/c", "./x"]
)
def test_what_is_no_pattern_of_bars(text):
    assert BarPattern.parse(text) is None
