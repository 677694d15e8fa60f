"""Which map a function has, where its parts are, and what is read of config space for it."""

import struct

import pytest
from machines import Witness, machine_of

from barfs.machine import simulated
from barfs.names import PciAddress
from barfs.registers.files import BUILT_IN, MapFiles
from barfs.registers.maps import find, registers

E1000, IVSHMEM, NVME = (PciAddress(0, *rest) for rest in ((0, 3, 0), (0, 4, 0), (1, 0, 0)))


@pytest.fixture
def paths(tmp_path):
    return simulated.build(tmp_path)


@pytest.fixture
def maps(paths):
    return machine_of(paths).maps


def attribute(paths, address, name, text):
    (paths.sysfs / "bus/pci/devices" / str(address) / name).write_text(f"{text}\n")


def config(paths, address, *pieces):
    """Put bytes into a function's config space."""
    path = paths.sysfs / "bus/pci/devices" / str(address) / "config"
    content = bytearray(path.read_bytes())
    for offset, data in pieces:
        content[offset : offset + len(data)] = data
    path.write_bytes(content)


def names(block):
    return [name for name, _ in block.children()]


def test_by_id_and_by_class(maps):
    for address, name in ((E1000, "8086:100e"), (IVSHMEM, "1af4:1110"), (NVME, "class-010802")):
        assert maps.found(address).file == BUILT_IN / f"{name}.json"
        assert maps.found(address).refusal is None
    assert find(maps.top(NVME), "CAP").offset == 0
    # The distance of ports is in the map; of 16 KiB of BAR all fit.
    assert "SQ0TDBL" in names(maps.top(NVME))


def test_an_alias_and_nothing_at_all(paths):
    attribute(paths, E1000, "device", "0x1004")
    assert machine_of(paths).maps.found(E1000).file.stem == "8086:100e"
    attribute(paths, E1000, "device", "0xffff")
    maps = machine_of(paths).maps
    assert maps.found(E1000) is None
    assert names(maps.top(E1000)) == []


def test_a_bar_that_is_too_small_or_missing(paths):
    lines = (paths.sysfs / f"bus/pci/devices/{NVME}/resource").read_text().splitlines()
    small = lines[0].replace("0000000800203fff", "00000008002000ff")
    assert small != lines[0]
    attribute(paths, NVME, "resource", "\n".join([small, *lines[1:]]))
    maps = machine_of(paths).maps
    refusal = maps.found(NVME).refusal
    assert refusal == "PMRCAP at 0xe00 is past the end of bar0, which has 0x100 bytes"
    assert names(maps.top(NVME)) == []
    assert [(str(what), found.refusal) for what, found in maps.refused()] == [(str(NVME), refusal)]
    attribute(paths, NVME, "resource", "\n".join([lines[1], *lines[1:]]))
    assert machine_of(paths).maps.found(NVME).refusal == "there is no bar0"


def virtio_capability(kind, bar, offset, length, following):
    return struct.pack("<BBBBBxxxII", 9, following, 16, kind, bar, offset, length)


def test_virtio_by_its_capabilities(paths):
    attribute(paths, IVSHMEM, "device", "0x1044")
    config(
        paths,
        IVSHMEM,
        (6, b"\x10\0"),
        (0x34, b"\x40"),
        (0x40, virtio_capability(3, 2, 0x800, 1, 0x60)),
        (0x60, virtio_capability(1, 2, 0x1000, 0x38, 0)),
    )
    top = machine_of(paths).maps.top(IVSHMEM)
    status, isr = find(top, "device_status"), find(top, "isr_status")
    assert (status.place.bar, status.offset, isr.offset) == (2, 0x1014, 0x800)
    assert "queue_reset" not in names(top)  # past the structure's end
    # Past the BAR's end there is none.
    config(paths, IVSHMEM, (0x60, virtio_capability(1, 2, 0xFFFF0, 0x38, 0)))
    assert names(machine_of(paths).maps.top(IVSHMEM)) == ["isr_status"]


def config_reads(machine):
    return [path for how, path in machine.source.seen if how == "read" and path.endswith("config")]


def test_a_virtio_device_that_sleeps_is_left_alone(paths):
    attribute(paths, IVSHMEM, "device", "0x1044")
    structure = virtio_capability(1, 2, 0x1000, 0x38, 0)
    config(paths, IVSHMEM, (6, b"\x10\0"), (0x34, b"\x40"), (0x40, structure))
    for name, state, rest in (("power_state", "D3hot", "D0"), ("power_state", "D3cold", "D0")):
        attribute(paths, IVSHMEM, name, state)
        machine = machine_of(paths, source=Witness)
        assert names(machine.maps.top(IVSHMEM)) == []
        assert config_reads(machine) == []
        attribute(paths, IVSHMEM, name, rest)
        assert "device_status" in names(machine.maps.top(IVSHMEM))


def test_where_structures_of_virtio_are_is_read_once(paths, monkeypatch):
    monkeypatch.setattr(Witness, "stamp", lambda _: 1)  # nothing comes or goes
    attribute(paths, IVSHMEM, "device", "0x1044")
    config(paths, IVSHMEM, (6, b"\x10\0"), (0x34, b"\x40"))
    machine = machine_of(paths, source=Witness)
    assert names(machine.maps.top(IVSHMEM)) == []  # it may not have answered: that is not kept
    config(paths, IVSHMEM, (0x40, virtio_capability(1, 2, 0x1000, 0x38, 0)))
    assert "device_status" in names(machine.maps.top(IVSHMEM))
    attribute(paths, IVSHMEM, "power_state", "D3hot")
    spent = len(config_reads(machine))
    assert "device_status" in names(machine.maps.top(IVSHMEM))
    assert len(config_reads(machine)) == spent


def test_headers_and_capabilities(paths, monkeypatch):
    monkeypatch.setattr(Witness, "stamp", lambda _: 1)  # nothing comes or goes
    pm = bytes([1, 0x50, 3, 0])
    msi64, msi32 = bytes([5, 0, 0x80, 1]), bytes([5, 0, 0, 0])
    config(paths, NVME, (6, b"\x10\0"), (0x34, b"\x40"), (0x40, pm), (0x50, msi64))
    config(paths, NVME, (0x100, struct.pack("<I", 0x0001 | 1 << 16)))
    machine = machine_of(paths, source=Witness)
    maps = machine.maps
    top = maps.config(NVME, capabilities=True)
    assert find(top, "CAP_PM/CTRL").offset == 0x44
    assert find(top, "CAP_PM/CTRL").path == "config/CAP_PM/CTRL"
    assert [find(top, f"CAP_MSI/{name}").offset for name in ("DATA", "MASK")] == [0x5C, 0x60]
    assert find(top, "ECAP_AER/UNCOR_MASK").offset == 0x108
    assert find(top, "BASE_ADDRESS_5")
    assert find(top, "BRIDGE_CONTROL") is None
    machine.source.seen.clear()
    assert maps.config(NVME, capabilities=True) is top
    assert machine.source.touched() == []
    config(paths, NVME, (0x50, msi32))
    maps = machine_of(paths).maps
    top = maps.config(NVME, capabilities=True)
    assert find(top, "CAP_MSI/DATA").offset == 0x58
    assert find(top, "CAP_MSI/MASK") is None
    attribute(paths, NVME, "class", "0x060400")
    top = maps.config(NVME, capabilities=False)
    assert (find(top, "BRIDGE_CONTROL").offset, find(top, "BASE_ADDRESS_5")) == (0x3E, None)
    assert find(top, "CAP_PM") is None


def test_config_space_is_read_for_capabilities_only(paths):
    witness = Witness
    machine = machine_of(paths, source=witness)
    maps, source = machine.maps, machine.source
    assert names(maps.top(NVME))
    assert "COMMAND" in names(maps.config(NVME, capabilities=False))
    assert source.touched() == []
    maps.config(NVME, capabilities=True)
    assert source.touched()
    assert all(path.endswith("config") for path in source.touched())


def test_physical_ranges_by_name_and_address(paths, tmp_path):
    maps = machine_of(paths).maps
    (ioapic,) = maps.in_physical_ranges()
    assert (ioapic.name, ioapic.start, ioapic.size) == ("IOAPIC0", 0xFEC00000, 0x400)
    assert find(maps.physical_top(ioapic), "IOWIN").offset == 0xFEC00010
    assert all(r.path.startswith("IOAPIC0/") for r in registers(maps.physical_top(ioapic)))
    assert list(machine_of(paths, registers=()).maps.in_physical_ranges()) == []
    assert MapFiles(()).find(["8086:100e"]) is None
