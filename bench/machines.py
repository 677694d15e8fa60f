"""The simulated machines that are measured on: as in `barfs demo`, but with large BARs, or many
functions.
"""

import os
from pathlib import Path
from typing import Final

from barfs.machine import simulated
from barfs.machine.resources import Resource
from barfs.names import DeviceId, LinkName, PciAddress

# The function whose BARs are read and written, and those BARs.
SUBJECT: Final = PciAddress(0, 0, 1, 0)
REGISTERS: Final = 0
REGISTERS_SIZE: Final = 1 << 20
MEMORY: Final = 2
MEMORY_SIZE: Final = 64 << 20
HUGE: Final = 4
HUGE_SIZE: Final = 64 << 30

_IDS: Final = 10  # the functions are of so many kinds
_IOMEM: Final = """\
00001000-0009fbff : System RAM
00100000-07fdffff : System RAM
c0000000-febfffff : PCI Bus 0000:00
800000000-1fffffffff : PCI Bus 0000:00
10000000000-1ffffffffff : PCI Bus 0000:80
"""

# A range of a TiB, and an address in the middle of it.
VAST: Final = "10000000000-1ffffffffff"
IN_VAST: Final = "18000000000"


def _resource(start: int, size: int, flags: int) -> Resource:
    return Resource(start, start + size - 1, flags)


def _subject() -> simulated.Device:
    return simulated.Device(
        SUBJECT,
        DeviceId(0x1AF4, 0x1110),
        DeviceId(0x1AF4, 0x1100),
        0x050000,
        {
            REGISTERS: _resource(0xC0000000, REGISTERS_SIZE, simulated.MEM),
            MEMORY: _resource(0x800000000, MEMORY_SIZE, simulated.PREFETCH_64),
            HUGE: _resource(0x1000000000, HUGE_SIZE, simulated.PREFETCH_64),
        },
    )


def _id(kind: int) -> DeviceId:
    return DeviceId(0x8086, 0x1500 + kind)


def _other(number: int, address: PciAddress) -> simulated.Device:
    resources = {0: _resource(0xD0000000 + 0x1000 * number, 0x1000, simulated.MEM)}
    return simulated.Device(address, _id(number), DeviceId(0x8086, 0x0001), 0x020000, resources)


def _address(number: int) -> PciAddress:
    """The address of the nth function besides the subject. A bus has 256 functions."""
    bus, place = divmod(number, 256)
    return PciAddress(0, 1 + bus, place >> 3, place & 7)


def address_of_last(functions: int) -> PciAddress:
    """The last of that many functions, in the order of addresses."""
    return _address(functions - 2)


def link_to_last(functions: int) -> str:
    """The name of its link: of the functions of one kind it is the last, too."""
    instance, kind = divmod(functions - 2, _IDS)
    return str(LinkName(_id(kind), None, instance))


def build(directory: Path, functions: int) -> simulated.Paths:
    """Make a machine of that many functions in an empty directory, at least two.

    Its memory BAR is filled, 64 MiB. All functions but a dozen are made of hard links, which is
    soon done and takes little room.
    """
    originals = [_other(number, _address(number)) for number in range(min(_IDS, functions - 1))]
    machine = simulated.build(directory, [_subject(), *originals], _IOMEM)
    devices = machine.sysfs / "bus/pci/devices"
    for number in range(len(originals), functions - 1):
        _link(devices / str(originals[number % _IDS].address), devices / str(_address(number)))
    _fill(devices / str(SUBJECT) / f"resource{MEMORY}")
    return machine


def _link(original: Path, copy: Path) -> None:
    copy.mkdir()
    for name in os.listdir(original):
        os.link(original / name, copy / name)


def _fill(memory: Path) -> None:
    """Give memory pages of its own: those of a hole in a file are made when they are touched."""
    piece = bytes(range(256)) * 4096
    with memory.open("r+b") as file:
        for _ in range(MEMORY_SIZE // len(piece)):
            file.write(piece)
