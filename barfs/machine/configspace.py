"""Registers of config space. Reading one may wake a sleeping function for a moment."""

from typing import Final

from barfs.errors import DeviceGone, FunctionPart
from barfs.machine.functions import Functions
from barfs.names import PciAddress

# PCI Local Bus Specification 3.0, 6.2.2: the command register and some of its bits.
COMMAND_OFFSET: Final = 4
COMMAND_IO: Final = 1 << 0
COMMAND_MEMORY: Final = 1 << 1
COMMAND_MASTER: Final = 1 << 2
COMMAND_ABSENT: Final = 0xFFFF  # no device has this; a read that nobody answers gives it


def command_of(functions: Functions, address: PciAddress) -> int:
    """The value of the command register. Raises DeviceGone."""
    raw = functions.read_config(address, COMMAND_OFFSET, 2)
    if len(raw) < 2:
        what = FunctionPart(address, "config")
        raise DeviceGone("the command register cannot be read", what=what)
    return int.from_bytes(raw, "little")
