"""The expansion ROM, and why it can't be read."""

import errno
import re

from barfs.access.files import Buffer, ReadFile
from barfs.diagnosis.obstacles import Obstacles
from barfs.errors import BarfsError, Cause, FunctionPart, NotDecoded
from barfs.machine.functions import Functions
from barfs.machine.resources import ROM_RESOURCE
from barfs.names import PciAddress
from barfs.nodes import Allocate
from barfs.spans.views import SysfsView

# drivers/pci/rom.c, pci_get_rom_size
_COMPLAINT = re.compile(r"Invalid PCI ROM (header|data) signature: expecting \w+, got 0x(\w+)")


def judge_image(said: str | None) -> Cause:
    """What the kernel did not like of an image, by what it said last of the function's ROM."""
    match = re.search(_COMPLAINT, said or "")
    if match is None:
        return Cause(
            "it has no valid image",
            advice="what is wrong with it may be in the kernel's log (dmesg)",
        )
    of_header = match[1] == "header"
    found = int(match[2], 16).to_bytes(8, "little")[: 2 if of_header else 4]
    if not found.strip(b"\xff"):
        return Cause("nothing answers behind its BAR: it reads all ones")
    text = found.decode("ascii", errors="replace")
    shown = found.hex(" ") + (f" ({text})" if text.isprintable() and text.isascii() else "")
    if of_header:
        return Cause(f"it has no valid image: it begins with {shown} instead of 55 aa")
    return Cause(
        f"it has no valid image: its data begin with {shown} instead of 50 43 49 52 (PCIR)"
    )


class RomView(SysfsView):
    """A function's ROM."""

    def __init__(
        self, file: ReadFile, pci: Functions, obstacles: Obstacles, address: PciAddress
    ) -> None:
        super().__init__(file)
        self._pci = pci
        self._obstacles = obstacles
        self._address = address

    def read(self, offset: int, length: int, allocate: Allocate = bytearray, /) -> Buffer:
        """NotDecoded, with the cause, if the kernel finds no valid image."""
        try:
            return super().read(offset, length, allocate)
        except BarfsError as error:
            if error.system is None or error.system.errno != errno.EIO:
                raise
            what = FunctionPart(self._address, "rom")
            sentence = str(self._cause())
            raise NotDecoded(
                sentence, what=what, during=error.during, system=error.system
            ) from error

    def _cause(self) -> Cause:
        look = self._obstacles.look(self._address)
        cause = look.cause
        resource = self._pci.resources(self._address).get(ROM_RESOURCE)
        # One without an address gets it when it is read (drivers/pci/rom.c, pci_map_rom).
        if resource is not None and resource.assigned:
            cause = look.obstacle(ROM_RESOURCE, resource)
        return cause or judge_image(self._pci.source.last_said(self._address, "PCI ROM"))
