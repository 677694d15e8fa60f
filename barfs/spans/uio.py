"""BARs through UIO: functions that their owner has bound to uio_pci_generic."""

import os
from pathlib import Path
from typing import Final

from barfs.access.apertures import Aperture, MappedAperture
from barfs.access.files import PAGE_SIZE
from barfs.diagnosis.causes import UIO_OFFERS
from barfs.diagnosis.mends import UIO_DRIVER
from barfs.errors import NotOffered
from barfs.machine.functions import Allowed
from barfs.machine.resources import parse_hex
from barfs.spans.ways import BarPart, Place, Refused

DRIVER: Final = UIO_DRIVER
DEV: Final = Path("/dev")


class Uio:
    """Memory BARs that the kernel refuses through `resourceN`: /dev/uioN mapped.

    It has no check for lockdown, no reset and no IOMMU. It offers 32-bit BARs that are not
    prefetchable (drivers/uio/uio_pci_generic.c, probe), and each only from its start.
    """

    name = "uio"

    def __init__(self, pci: Allowed, dev: Path = DEV) -> None:
        self._pci = pci
        self._dev = dev

    def open(self, place: Place, refused: Refused | None, *, writable: bool) -> Aperture | None:
        """See Way."""
        if refused is None or not isinstance(place, BarPart) or not place.resource.is_memory:
            return None
        if self._pci.driver(place.address) != DRIVER:
            return None
        found = self._map_of(place)
        if found is None:
            raise NotOffered(f"{UIO_OFFERS}, and not this one", what=place.what) from refused
        device, number, begin = found
        return MappedAperture(
            self._dev / device,
            number * PAGE_SIZE + begin,  # the page says which map (drivers/uio/uio.c, uio_mmap)
            place.size,
            what=place.what,
            base=place.base,
            memory_like=place.memory_like,
            writable=writable,
            lead=place.offset,
        )

    def _map_of(self, place: BarPart) -> tuple[str, int, int] | None:
        """The device of a BAR, the number of its map, and where in its first page it begins."""
        source, directory = self._pci.source, self._pci.path(place.address, "uio")
        try:
            (device, *_) = source.names(directory)
            maps = os.path.join(directory, device, "maps")
            for name in source.names(maps):
                address, offset = (
                    parse_hex((source.text(os.path.join(maps, name, word)) or "").strip(), bits=64)
                    for word in ("addr", "offset")
                )
                if address + offset == place.resource.start:
                    return device, int(name.removeprefix("map")), offset
        except (OSError, ValueError):
            pass
        return None
