"""BARs through VFIO: functions that their owner has bound to vfio-pci, where lockdown has no say.

A function is opened with the first of its files and held until the end of the mount. The kernel
resets it when it is first opened, so that happens once.
"""

import errno
import logging
import os
import select
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from barfs.access.apertures import Aperture, MappedAperture, PortAperture
from barfs.access.files import ReadFile, refusal
from barfs.access.vfio import (
    CONFIG_REGION,
    ROM_REGION,
    Device,
    NotViable,
    RegionFile,
    open_device,
    place_of,
)
from barfs.diagnosis import causes
from barfs.errors import (
    BarfsError,
    DeviceGone,
    FunctionPart,
    KernelRefused,
    NotAllowed,
    NotBound,
    Opening,
)
from barfs.machine.configspace import COMMAND_IO, COMMAND_MEMORY, COMMAND_OFFSET
from barfs.machine.functions import Allowed
from barfs.machine.resources import Resource
from barfs.names import PciAddress
from barfs.spans.ways import BarPart, Place, Refused

log = logging.getLogger(__name__)

DEV: Final = Path("/dev")


class VfioDevices:
    """The functions that a mount has opened. Several threads may use it at once.

    `opened` is told of each function, once, when it has been opened and so reset.
    """

    def __init__(
        self,
        pci: Allowed,
        opened: Callable[[PciAddress], None],
        dev: Path = DEV,
        *,
        noiommu: bool = False,
    ) -> None:
        self._pci = pci
        self._opened = opened
        self._dev = dev
        self._noiommu = noiommu
        self._lock = threading.Lock()
        self._devices: dict[PciAddress, Device] = {}
        self._wanted: dict[int, PciAddress] = {}  # by what becomes readable
        self._requests = select.epoll()

    def device(self, address: PciAddress) -> Device:
        """A function, opened now if it is not yet.

        NotBound, NotAllowed where this user may not open it, and what else the kernel says.
        """
        with self._lock:
            found = self._devices.get(address)
            if found is None:
                found = self._devices[address] = self._open(address)
                self._listen(address, found)
                self._opened(address)
            return found

    def _open(self, address: PciAddress) -> Device:
        what = FunctionPart(address)
        unbound = causes.not_bound(self._pci, address)
        if unbound is not None:
            raise NotBound(str(unbound), what=what)
        unconfined = None if self._noiommu else causes.without_iommu(self._pci, address)
        if unconfined is not None:
            raise KernelRefused(str(unconfined), what=what)
        place = place_of(Path(self._pci.path(address, "")), self._dev)
        try:
            return open_device(str(address), place, self._dev, noiommu=self._noiommu)
        except NotViable as error:
            cause = causes.not_viable(self._pci, address) or causes.NOT_VIABLE
            raise NotBound(str(cause), what=what, system=error) from error
        except PermissionError as error:
            if error.errno == errno.EACCES:
                files = " ".join(str(path) for path in (place.group, place.cdev) if path)
                sentence = f"this user may not open it; chown {os.getuid()} {files}"
                raise NotAllowed(sentence, what=what, system=error) from error
            sentence = (
                "VFIO refuses it: the IOMMU does not remap interrupts, or the kernel is not "
                "allowed to use it"
            )
            raise KernelRefused(sentence, what=what, system=error) from error
        except OSError as error:
            raise refusal(what, Opening(f"{self._dev}/vfio"), error) from error

    def _listen(self, address: PciAddress, device: Device) -> None:
        try:
            event = device.wanted_back()
        except OSError as error:
            log.info("%s: the kernel can't ask for it: %s", address, error.strerror)
            return
        self._wanted[event] = address
        self._requests.register(event, select.EPOLLIN)

    def decode(self, address: PciAddress, resource: Resource) -> None:
        """Turn on decoding of a BAR's space, in VFIO's own view of config space.

        It opens the function, and writes the command register if the bit is off.
        """
        device = self.device(address)
        bit = COMMAND_MEMORY if resource.is_memory else COMMAND_IO
        at = device.region(CONFIG_REGION).offset + COMMAND_OFFSET
        try:
            command = int.from_bytes(os.pread(device.fd, 2, at), "little")
            if not command & bit:
                os.pwrite(device.fd, (command | bit).to_bytes(2, "little"), at)
        except OSError as error:
            raise refusal(FunctionPart(address, "config"), Opening("vfio"), error) from error

    def open_rom(self, address: PciAddress) -> ReadFile:
        """Open the expansion ROM, which VFIO enables for each read."""
        device = self.device(address)
        what = FunctionPart(address, "rom")
        try:
            return RegionFile(device, ROM_REGION, what)
        except OSError as error:
            raise refusal(what, Opening("vfio"), error) from error

    def note(self, address: PciAddress) -> str | None:
        """See Holder."""
        if address not in self._devices:
            return None
        return "VFIO: it was reset when it was opened, and is held until the mount ends"

    def close_one(self, address: PciAddress) -> None:
        """Give a function back. Nothing may be mapped of it any more."""
        with self._lock:
            device = self._devices.pop(address, None)
            for event in [event for event, of in self._wanted.items() if of == address]:
                del self._wanted[event]
                self._requests.unregister(event)
                os.close(event)
            if device is not None:
                device.close()

    def close(self) -> None:
        """Give all functions back, which resets them."""
        for address in [*self._devices]:
            self.close_one(address)
        self._requests.close()

    async def run(self, give_up: Callable[[PciAddress], None]) -> None:
        """Give back what the kernel wants back, until cancelled.

        `give_up` has to let go of all that is mapped of a function.
        """
        while True:
            # It is readable, too, when a function that was opened meanwhile is wanted back.
            await trio.lowlevel.wait_readable(self._requests.fileno())
            for event, _ in self._requests.poll(0):
                address = self._wanted.get(event)
                if address is not None:
                    log.info("%s: the kernel wants it back from VFIO", address)
                    give_up(address)
                    self.close_one(address)


class Vfio:
    """The way through VFIO, for memory BARs and those of I/O ports."""

    name = "vfio"

    def __init__(self, devices: VfioDevices) -> None:
        self._devices = devices

    def open(self, place: Place, refused: Refused | None, *, writable: bool) -> Aperture | None:
        """See Way."""
        del refused
        if not isinstance(place, BarPart):
            return None
        device = self._devices.device(place.address)
        try:
            region = device.region(place.bar)
        except OSError as error:
            raise refusal(place.what, Opening("vfio"), error) from error
        if region.size < place.offset + place.size:
            raise DeviceGone("VFIO has no such BAR", what=place.what)
        start = region.offset + place.offset
        if not place.resource.is_memory:
            return PortAperture(
                device.fd, start, place.size, what=place.what, base=place.base, writable=writable
            )
        if not _covers(region.mappable, place.offset, place.size):
            raise _unmappable(place)
        return MappedAperture(
            device.fd,
            start,
            place.size,
            what=place.what,
            base=place.base,
            memory_like=place.memory_like,
            writable=writable,
        )


def _covers(parts: Sequence[range], offset: int, size: int) -> bool:
    return any(part.start <= offset and offset + size <= part.stop for part in parts)


def _unmappable(place: BarPart) -> BarfsError:
    """Reading such a place through VFIO would give 0xff for the table, and split accesses."""
    sentence = "VFIO keeps a part of it to itself, which may not be mapped (the MSI-X table)"
    return KernelRefused(sentence, what=place.what)
