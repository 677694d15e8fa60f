"""Whether a BAR answers, and if not, why. This is the one place that decides it.

It decides by config space and sysfs alone: the BAR is not touched. A BAR that does not answer reads
all ones on hardware, and zeros in some virtual machines, which is no data.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from barfs.diagnosis import mends
from barfs.diagnosis.hostaddresses import is_in_place, offsets_elsewhere, register_of
from barfs.errors import Cause
from barfs.machine.configspace import (
    CAPABILITY_POWER,
    COMMAND_ABSENT,
    COMMAND_IO,
    COMMAND_MEMORY,
    Header,
    PowerControl,
    find_capability,
    header_of,
    parse_power_control,
)
from barfs.machine.functions import Functions
from barfs.machine.power import low_power, sleeping
from barfs.machine.resources import Resource
from barfs.names import PciAddress

NO_ADDRESS: Final = Cause(
    "the kernel has given it no address",
    advice="reboot with pci=realloc on the kernel's command line",
)


class Bridge(NamedTuple):
    """A bridge on the way to a function, with what its config space said."""

    address: PciAddress
    header: Header


class Look:
    """What config space and sysfs said of a function and of the bridges above it, at one moment.

    Nothing is read any more, but for what a mend depends on, and for what other functions say of
    the host's addresses where those of a BAR are in doubt.
    """

    def __init__(
        self,
        pci: Functions,
        address: PciAddress,
        *,
        cause: Cause | None = None,
        header: Header | None = None,
        above: Sequence[Bridge] = (),
    ) -> None:
        self._pci = pci
        self._address = address
        self.cause = cause  # what keeps all BARs from answering
        self.header = header  # None if config space was not read, or nobody answered
        self._above = above

    def obstacle(self, index: int, resource: Resource) -> Cause | None:
        """What keeps a BAR or the ROM, by its line in `resource`, from answering.

        None if nothing is known. Raises DeviceGone.
        """
        if not resource.assigned:
            return NO_ADDRESS
        if self.cause is not None or self.header is None:
            return self.cause
        return next(self._obstacles(self.header, index, resource), None)

    def obstacles(self, bars: Mapping[int, Resource]) -> list[tuple[str, Cause]]:
        """What keeps BARs from answering: each cause once, with the names of the BARs concerned.

        Raises DeviceGone.
        """
        concerned: dict[Cause, list[str]] = {}
        for index, resource in bars.items():
            cause = self.obstacle(index, resource)
            if cause is not None:
                concerned.setdefault(cause, []).append(f"bar{index}")
        return [(", ".join(names), cause) for cause, names in concerned.items()]

    @property
    def told(self) -> tuple[Hashable, ...]:
        """What config space said of the function, and of the bridges above."""
        return (self.cause, self.header, *self._above)

    def tells_all(self, index: int, resource: Resource) -> bool:
        """Whether nothing but what was told decides whether a BAR answers.

        Others are asked about a BAR that is elsewhere, and about one of a virtual function, whose
        bits are off.
        """
        header = self.header
        if self.cause is not None or header is None:
            return False
        bit = COMMAND_MEMORY if resource.is_memory else COMMAND_IO
        is_on = bool(header.command & bit)
        return is_on and register_of(header, index, resource) == resource.start

    def lost(self, index: int, resource: Resource) -> bool:
        """Whether a BAR in config space is not where the kernel has put it. Raises DeviceGone."""
        if self.header is None:
            return False
        # Nearly always it is in place, and then nothing more is asked.
        in_place = is_in_place(self._pci, self._address, self.header, index, resource)
        return not (in_place or self._pci.is_virtual(self._address))

    def _obstacles(self, header: Header, index: int, resource: Resource) -> Iterator[Cause]:
        pci, address = self._pci, self._address
        space, bit = ("memory", COMMAND_MEMORY) if resource.is_memory else ("I/O", COMMAND_IO)
        for bridge, said in self._above:
            if not said.command & bit:
                yield Cause(
                    f"{space} decoding is off in the bridge {bridge} above it",
                    mends.turn_decoding_on(pci.everything, bridge, bit),
                )
        if self.lost(index, resource):
            if header.command & bit:
                mend = mends.look_anew(pci, address)
            else:
                mend = mends.look_anew_after_reset(pci, address, address)
            yield Cause(
                "its BARs are not where the kernel put them (has it been reset, or loaded again?)",
                mend,
            )
        if not header.command & bit and not pci.is_virtual(address):
            yield Cause(
                f"{space} decoding is off in the command register",
                mends.turn_decoding_on(pci, address, bit),
            )
        bridges = [one for one in self._above if one.header.forwards_windows_only]
        if bridges:
            first = self._bus_address(header, index, resource)
            yield from self._shut(bridges, resource, first, space)

    def _bus_address(self, header: Header, index: int, resource: Resource) -> int:
        """The bus address of the first byte of a BAR or the ROM."""
        register = None
        if not self._pci.is_virtual(self._address):
            register = register_of(header, index, resource)
        if register is not None:
            return register
        elsewhere = offsets_elsewhere(self._pci, self._address, is_memory=resource.is_memory)
        return resource.start - next(elsewhere, 0)

    def _shut(
        self, bridges: Sequence[Bridge], resource: Resource, first: int, space: str
    ) -> Iterator[Cause]:
        """Bridges that don't forward a BAR's addresses on the bus, which begin at `first`."""
        span = range(first, first + resource.size)
        for bridge, said in bridges:
            if not said.windows.holds(span, is_memory=resource.is_memory):
                yield Cause(
                    f"no {space} window of the bridge {bridge} above it holds its addresses",
                    self._mend_window(bridge, resource, resource.start - first),
                )

    def _mend_window(self, bridge: PciAddress, resource: Resource, offset: int) -> str:
        """The command that sets a window as the kernel has it; or else finds the bridge anew."""
        everything = self._pci.everything
        for window in everything.windows(bridge):
            inside = window.start <= resource.start and resource.end <= window.end
            if window.is_memory == resource.is_memory and inside:
                return mends.open_window(everything, bridge, window, window.start - offset)
        return mends.look_anew(everything, bridge)


# For how many BARs it is remembered what config space says when they answer.
_MOST_SOUND: Final = 1024


class _Layout(NamedTuple):
    """What of a function changes only when something is plugged or unplugged."""

    above: Sequence[PciAddress]
    power: dict[PciAddress, int | None]  # where power management capabilities are, once known


class Obstacles:
    """What keeps the BARs of one machine's functions from answering.

    What changes only with an event of the kernel's is remembered until there is one. Several
    threads may use it at once.
    """

    def __init__(self, pci: Functions) -> None:
        self._pci = pci
        self._layouts: dict[PciAddress, tuple[object, _Layout]] = {}
        self._sound: set[Hashable] = set()  # what was told where nothing was wrong

    def of_bar(self, address: PciAddress, index: int, resource: Resource) -> Cause | None:
        """What keeps one BAR from answering; None if nothing is known. Raises DeviceGone."""
        if not resource.assigned:
            return NO_ADDRESS
        look = self.look(address)
        # What is told is read each time. If it is what was told of a BAR that answers, this one
        # does.
        told = (index, resource, *look.told)
        if told in self._sound:
            return None
        cause = look.obstacle(index, resource)
        if cause is None and look.tells_all(index, resource):
            if len(self._sound) >= _MOST_SOUND:
                self._sound.clear()
            self._sound.add(told)
        return cause

    def look(self, address: PciAddress) -> Look:
        """Look at a function and at the bridges above it. Raises DeviceGone.

        Config space of what sleeps is not read, for that would wake it for a moment.
        """
        pci = self._pci
        state = low_power(pci, address)
        if state is not None:
            cause = Cause(f"the device sleeps ({state})", mends.wake(pci, address))
            return Look(pci, address, cause=cause)
        layout = self._layout(address)
        above = []
        for bridge in layout.above:
            said = self._bridge(bridge, address, layout)
            if isinstance(said, Cause):
                return Look(pci, address, cause=said)
            above.append(Bridge(bridge, said))
        header = header_of(pci, address)
        if header.command == COMMAND_ABSENT:
            return Look(pci, address, cause=silence(pci, address))
        control = self._power_control(pci, address, header, layout)
        asleep = None
        if control is not None and control.state != "D0":
            asleep = Cause(
                f"the device sleeps ({control.state}), which the kernel does not know",
                mends.wake_unknown(pci, address, control, address),
            )
        return Look(pci, address, cause=asleep, header=header, above=above)

    def _layout(self, address: PciAddress) -> _Layout:
        stamp = self._pci.source.stamp()
        known = self._layouts.get(address)
        if stamp is not None and known is not None and known[0] == stamp:
            return known[1]
        layout = _Layout(self._pci.lineage(address).bridges, {})
        self._layouts[address] = (stamp, layout)
        return layout

    def _bridge(self, bridge: PciAddress, below: PciAddress, layout: _Layout) -> Header | Cause:
        """What a bridge's config space says; or what keeps all behind it from answering.

        `below` is the function behind it that is to answer.
        """
        everything = self._pci.everything
        name = f"the bridge {bridge} above it"
        state = low_power(everything, bridge)
        if state is not None:
            return Cause(f"{name} sleeps ({state})", mends.wake(everything, bridge))
        header = header_of(everything, bridge)
        if header.command == COMMAND_ABSENT:
            return Cause(
                f"{name} does not answer, its config space reads all ones: its link is down or its "
                "power off",
                mends.look_anew_after_reset(everything, bridge, below),
            )
        if header.is_bridge and header.secondary_bus == 0:
            return Cause(
                f"{name} has lost its settings (has it been reset?)",
                mends.look_anew_after_reset(everything, bridge, below),
            )
        control = self._power_control(everything, bridge, header, layout)
        if control is not None and control.state != "D0":
            return Cause(
                f"{name} sleeps ({control.state}), which the kernel does not know",
                mends.wake_unknown(everything, bridge, control, below),
            )
        return header

    @staticmethod
    def _power_control(
        pci: Functions, address: PciAddress, header: Header, layout: _Layout
    ) -> PowerControl | None:
        """None if there is none, or it can't be read. What is remembered is not trusted."""

        def read(offset: int, length: int) -> bytes:
            return pci.read_config(address, offset, length)

        for _ in range(2):
            if address not in layout.power:
                first = header.first_capability
                layout.power[address] = find_capability(read, first, CAPABILITY_POWER)
            position = layout.power[address]
            if position is None:
                return None
            control = parse_power_control(position, read(position, 6))
            if control is not None:
                return control
            del layout.power[address]
        return None


def silence(pci: Functions, address: PciAddress) -> Cause:
    """Why config space of a function reads all ones. Touches no device."""
    if sleeping(pci, address):
        mend = mends.wake(pci, address)
    else:
        mend = mends.look_anew_after_reset(pci, address, address)
    return Cause(
        "the device does not answer, its config space reads all ones: its link is down or its "
        "power off",
        mend,
    )
