"""Config space: what its registers say.

Sources: PCI Local Bus Specification 3.0, 6.1 and 6.2; PCI-to-PCI Bridge Architecture 1.2, 3.2;
PCI Bus Power Management Interface 1.2, 3.2. The parts that parse are pure. Reading config space may
wake a function that sleeps, for a moment.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from barfs.errors import DeviceGone, FunctionPart
from barfs.machine.functions import Functions
from barfs.names import PciAddress

# The command register and some of its bits.
COMMAND_OFFSET: Final = 4
COMMAND_IO: Final = 1 << 0
COMMAND_MEMORY: Final = 1 << 1
COMMAND_MASTER: Final = 1 << 2
COMMAND_ABSENT: Final = 0xFFFF  # no device has this; it is what a read without an answer gives

HEADER_SIZE: Final = 64

_STATUS_CAPABILITIES: Final = 1 << 4
_TYPE_BRIDGE: Final = 1
_N_BARS: Final = {0: 6, _TYPE_BRIDGE: 2, 2: 1}  # by the layout of the header

CAPABILITY_POWER: Final = 0x01
CAPABILITY_EXPRESS: Final = 0x10
_CAPABILITIES_BEGIN: Final = 0x40
_MOST_CAPABILITIES: Final = 48  # that have room in 256 bytes

_POWER_STATES: Final = ("D0", "D1", "D2", "D3hot")


class Windows(NamedTuple):
    """The bus addresses that a bridge forwards to the bus below it; empty where it has no window.

    A memory BAR may lie in either of the two for memory, whether it is prefetchable or not.
    """

    io: range
    memory: range
    prefetchable: range

    def holds(self, span: range, *, is_memory: bool) -> bool:
        """Whether all of a span lies in one window of its space."""
        windows = (self.memory, self.prefetchable) if is_memory else (self.io,)
        return any(
            window.start <= span.start and span.stop <= window.stop for window in windows if window
        )


class Header(NamedTuple):
    """The first bytes of config space, 64 where all could be read."""

    raw: bytes

    def _number(self, offset: int, width: int) -> int:
        return int.from_bytes(self.raw[offset : offset + width], "little")

    @property
    def is_whole(self) -> bool:
        """Whether all of it was read, and somebody answered."""
        return len(self.raw) >= HEADER_SIZE and self.command != COMMAND_ABSENT

    @property
    def command(self) -> int:
        """The command register."""
        return self._number(COMMAND_OFFSET, 2)

    @property
    def layout(self) -> int:
        """0 for an ordinary function, 1 for a bridge to PCI, 2 for one to CardBus."""
        return self._number(0x0E, 1) & 0x7F

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge with a bus behind it, and windows."""
        return self.is_whole and self.layout == _TYPE_BRIDGE

    @property
    def forwards_windows_only(self) -> bool:
        """Whether it is a bridge that forwards nothing outside of its windows.

        One that decodes subtractively forwards whatever nobody else claims as well. Its programming
        interface says so.
        """
        return self.is_bridge and self._number(0x09, 1) != 1

    @property
    def secondary_bus(self) -> int:
        """The number of the bus behind a bridge; 0 is none."""
        return self._number(0x19, 1)

    @property
    def first_capability(self) -> int:
        """Where the list of capabilities begins; 0: there is none."""
        return self._number(0x34, 1) & ~3 if self._number(6, 2) & _STATUS_CAPABILITIES else 0

    def bar(self, index: int, *, is_memory: bool, is_64bit: bool) -> int | None:
        """The bus address in a BAR's registers, whose kind is known; None if there are none."""
        if not self.is_whole or index + is_64bit >= _N_BARS.get(self.layout, 0):
            return None
        at = 0x10 + 4 * index
        return self._number(at, 8 if is_64bit else 4) & ~(0xF if is_memory else 0x3)

    @property
    def windows(self) -> Windows:
        """Those of a bridge."""
        base, limit = self._number(0x1C, 1), self._number(0x1D, 1)
        low, high = (base & 0xF0) << 8, (limit & 0xF0) << 8 | 0xFFF
        if base & 0xF == 1:  # 32 bits
            low |= self._number(0x30, 2) << 16
            high |= self._number(0x32, 2) << 16
        io = range(low, high + 1)
        base, limit = self._number(0x20, 2), self._number(0x22, 2)
        memory = range((base & 0xFFF0) << 16, ((limit & 0xFFF0) << 16 | 0xFFFFF) + 1)
        base, limit = self._number(0x24, 2), self._number(0x26, 2)
        low, high = (base & 0xFFF0) << 16, (limit & 0xFFF0) << 16 | 0xFFFFF
        if base & 0xF == 1:  # 64 bits
            low |= self._number(0x28, 4) << 32
            high |= self._number(0x2C, 4) << 32
        return Windows(io, memory, range(low, high + 1))


class PowerControl(NamedTuple):
    """What the power management capability says, at `position` in config space."""

    position: int
    state: str  # D0 ... D3hot
    keeps_settings: bool  # when it wakes up from D3hot


def find_capability(read: Callable[[int, int], bytes], first: int, wanted: int) -> int | None:
    """Where a capability begins, in the list that starts at `first`; None if it is not in it.

    `read` gives bytes of config space, by offset and length. A list that runs in a circle, or out
    of the space, ends.
    """
    at = first
    for _ in range(_MOST_CAPABILITIES):
        if at < _CAPABILITIES_BEGIN:
            return None
        found = read(at, 2)
        if len(found) < 2 or found[0] == 0xFF:
            return None
        if found[0] == wanted:
            return at
        at = found[1] & ~3
    return None


def parse_power_control(position: int, raw: bytes) -> PowerControl | None:
    """What the capability's first 6 bytes say. None if they are another one's, or too few."""
    if len(raw) < 6 or raw[0] != CAPABILITY_POWER:
        return None
    control = int.from_bytes(raw[4:6], "little")
    return PowerControl(position, _POWER_STATES[control & 3], bool(control & 1 << 3))


def header_of(functions: Functions, address: PciAddress) -> Header:
    """A function's header, of which the command register could be read. DeviceGone."""
    raw = functions.read_config(address, 0, HEADER_SIZE)
    if len(raw) < COMMAND_OFFSET + 2:
        what = FunctionPart(address, "config")
        raise DeviceGone("the command register cannot be read", what=what)
    return Header(raw)


def command_of(functions: Functions, address: PciAddress) -> int:
    """The command register alone. DeviceGone."""
    raw = functions.read_config(address, COMMAND_OFFSET, 2)
    if len(raw) < 2:
        what = FunctionPart(address, "config")
        raise DeviceGone("the command register cannot be read", what=what)
    return int.from_bytes(raw, "little")
