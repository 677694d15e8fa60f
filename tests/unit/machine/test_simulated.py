"""The simulated machine is what its users are told."""

import struct

import pytest
from machines import machine_of

from barfs.machine import simulated
from barfs.machine.configspace import command_of


@pytest.fixture
def machine(tmp_path):
    return machine_of(simulated.build(tmp_path))


def test_devices_and_their_bars(machine):
    found = {
        f"{address} {machine.pci.id(address)}": {
            index: (bar.size, bar.start >= 1 << 32, bar.prefetchable)
            for index, bar in machine.pci.bars(address).items()
        }
        for address in machine.pci.addresses()
    }
    ivshmem = {0: (0x100, False, False), 2: (1 << 20, True, True)}
    assert found == {
        "0000:00:03.0 8086:100e": {0: (128 << 10, False, False), 1: (64, False, False)},
        "0000:00:04.0 1af4:1110": ivshmem,
        "0000:00:05.0 1af4:1110": ivshmem,
        "0000:01:00.0 1b36:0010": {0: (16 << 10, True, False)},
    }


def test_one_bar_is_of_ports_and_its_device_decodes_them(machine):
    found = [
        (str(address), index)
        for address in machine.pci.addresses()
        for index, bar in machine.pci.bars(address).items()
        if not bar.is_memory
    ]
    assert found == [("0000:00:03.0", 1)]
    address = machine.pci.addresses()[0]
    assert command_of(machine.pci, address) & 3 == 3
    assert machine.pci.bar(address, 1)[:2] == (0xC000, 0xC03F)


def test_one_device_has_a_rom_with_the_header_and_ids_of_one(machine):
    """PCI Local Bus Specification 3.0, 6.3.1."""
    sizes = {str(address): machine.pci.rom_size(address) for address in machine.pci.addresses()}
    assert {address: size for address, size in sizes.items() if size} == {"0000:00:03.0": 64 << 10}
    address = machine.pci.addresses()[0]
    file = machine.pci.open_rom(address)
    rom = file.read(0, file.size)
    file.close()
    assert len(rom) == 64 << 10
    assert rom[:2] == b"\x55\xaa"
    (data,) = struct.unpack_from("<H", rom, 0x18)
    signature, vendor, device = struct.unpack_from("<4sHH", rom, data)
    assert (signature, (vendor, device)) == (b"PCIR", machine.pci.id(address))
    length, revision, interface, subclass, base_class = struct.unpack_from("<HBBBB", rom, data + 10)
    assert (length, revision, interface, subclass, base_class) == (24, 0, 0, 0, 2)
    (image,) = struct.unpack_from("<H", rom, data + 0x10)
    assert image * 512 == rom[2] * 512 == len(rom)
    assert rom[data + 0x15] & 0x80  # the last image


def test_config_space_names_the_bars_as_sysfs_does(machine):
    """PCI Local Bus Specification 3.0, 6.2.5: bit 0 is set for ports; the low bits are flags."""
    for address in machine.pci.addresses():
        file = machine.pci.open_config(address, writable=False)
        config = file.read(0, file.size)
        file.close()
        assert struct.unpack_from("<HH", config) == machine.pci.id(address)
        assert struct.unpack_from("<HH", config, 0x2C) == machine.pci.subsystem(address)
        for index, resource in machine.pci.resources(address).items():
            at = 0x30 if index == 6 else 0x10 + 4 * index
            (low,) = struct.unpack_from("<I", config, at)
            if resource.is_memory:
                assert low & ~0xF == resource.start & 0xFFFFFFF0
                assert low & 1 == 0
            else:
                assert low == resource.start | 1
            if resource.is_64bit:
                assert struct.unpack_from("<I", config, at + 4) == (resource.start >> 32,)


def test_the_nodename_is_at_its_address_in_system_ram(machine, tmp_path):
    with (tmp_path / "mem").open("rb") as file:
        file.seek(simulated.NODENAME_ADDRESS)
        assert file.read(65) == b"lab".ljust(65, b"\0")
    assert machine.memory.is_ram(simulated.NODENAME_ADDRESS, 65)


def test_memory_reaches_to_the_highest_address_and_takes_little_disk(machine, tmp_path):
    assert (tmp_path / "mem").stat().st_size == machine.memory.ranges()[-1].end + 1
    assert sum(path.lstat().st_blocks * 512 for path in tmp_path.rglob("*")) < 1 << 20
