"""BARs through UIO, on plain files in the place of sysfs and /dev."""

import os

import pytest
from machines import machine_of

from barfs.access.files import PAGE_SIZE
from barfs.errors import FunctionPart, KernelRefused, NotOffered
from barfs.machine import simulated
from barfs.machine.resources import Resource
from barfs.names import BarName, PciAddress
from barfs.spans.uio import DRIVER, Uio
from barfs.spans.ways import BarPart

FIRST = PciAddress(0, 0, 4, 0)
REFUSED = KernelRefused("Operation not permitted")


@pytest.fixture
def way(tmp_path):
    """BAR 0 of an ivshmem device at 0xfeb20000 as map 1 of /dev/uio7."""
    machine = machine_of(simulated.build(tmp_path))
    device = tmp_path / "sys/bus/pci/devices" / str(FIRST)
    (tmp_path / "drivers" / DRIVER).mkdir(parents=True)
    (device / "driver").symlink_to(tmp_path / "drivers" / DRIVER)
    for number, address in enumerate((0xFEB00000, 0xFEB20000)):
        place = device / f"uio/uio7/maps/map{number}"
        place.mkdir(parents=True)
        (place / "addr").write_text(f"{address:#018x}\n")
        (place / "offset").write_text("0x40\n" if number == 0 else "0x0\n")
    (tmp_path / "dev").mkdir()
    # One map after the other, a page each, as an offset of pages chooses them.
    (tmp_path / "dev/uio7").write_bytes(b"\xaa" * PAGE_SIZE + bytes(range(256)) * 16)
    return Uio(machine.pci, tmp_path / "dev")


def part(offset=0, size=0x100, start=0xFEB20000, bar=0):
    resource = Resource(start, start + 0xFF, simulated.MEM)
    what = FunctionPart(FIRST, BarName(bar))
    return BarPart(what, FIRST, bar, resource, offset, size, combine=False)


@pytest.mark.parametrize(("offset", "size"), [(0, 0x100), (0x40, 0x10), (0xFC, 4)])
def test_a_bar_and_a_window_into_it(way, offset, size):
    aperture = way.open(part(offset, size), REFUSED, writable=True)
    try:
        data = bytearray(4)
        aperture.load_run(0, 4, data)
        assert data == bytes(range(offset, offset + 4))
        aperture.store_run(size - 4, 4, b"abcd")
        aperture.load_run(size - 4, 4, data)
        assert data == b"abcd"
    finally:
        aperture.close()


def test_only_where_the_kernel_refuses_and_the_driver_is_uios(way, tmp_path):
    assert way.open(part(), None, writable=False) is None
    os.unlink(tmp_path / "sys/bus/pci/devices" / str(FIRST) / "driver")
    assert way.open(part(), REFUSED, writable=False) is None


def test_a_bar_that_is_in_no_map_is_refused_with_the_reason(way):
    with pytest.raises(NotOffered, match="32-bit BARs only"):
        way.open(part(start=0x800000000, bar=2), REFUSED, writable=False)
