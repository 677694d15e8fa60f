"""Names of PCI vendors, devices and classes from the system's pci.ids (https://pci-ids.ucw.cz).

A top line is `8086  Intel Corporation` or `C 02  Network controller`. The lines below it that begin
with a tab are the vendor's devices or the class's subclasses. The lines below those that begin with
two tabs are the device's subsystems (`1af4 1100  QEMU Virtual Machine`) or the subclass's
programming interfaces.
"""

import re
import zlib
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

from barfs.names import DeviceId

PATHS: Final = tuple(
    Path(directory, name)
    for directory in ("/usr/share/misc", "/usr/share/hwdata", "/usr/share")
    for name in ("pci.ids", "pci.ids.gz")
)

# Where the lines below a line of a depth end: at the next line that is not deeper. Comments and
# empty lines may stand anywhere.
_ENDS: Final = (re.compile(rb"\n[^\t\r\n#]"), re.compile(rb"\n\t?[^\t\r\n#]"))


@lru_cache(maxsize=1)
def _read(path: Path, _seen: tuple[int, int, int]) -> bytes:
    """All of a file, which is kept until it is seen to have changed."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        import gzip  # noqa: PLC0415 - needed only here, and slow to import

        data = gzip.decompress(data)
    # With these the first and the last line stand between newlines as all others do.
    return b"\n" + data + b"\n"


class PciIds:
    """Names from the first of `paths` that can be read.

    It is read when it is first needed, and kept until it changes. A name is None if there is no
    such file, or if the file doesn't have it. No table is made of the file, because finding a line
    in its bytes is faster than parsing all its lines.
    """

    def __init__(self, paths: Iterable[Path] = PATHS) -> None:
        self._paths = tuple(paths)
        self._names: dict[tuple[str, ...], str | None] = {}

    @cached_property
    def _text(self) -> bytes:
        for path in self._paths:
            try:
                about = path.stat()
                return _read(path, (about.st_ino, about.st_size, about.st_mtime_ns))
            except (OSError, EOFError, zlib.error):
                continue
        return b""

    def _name(self, *starts: str) -> str | None:
        """The name in a line, given how it starts and how each line above it starts."""
        if starts not in self._names:
            self._names[starts] = self._find(starts)
        return self._names[starts]

    def _find(self, starts: tuple[str, ...]) -> str | None:
        text = self._text
        at, end = 0, len(text)
        for depth, start in enumerate(starts):
            line = b"\n" + b"\t" * depth + start.encode() + b" "
            at = text.find(line, at, end)
            if at < 0:
                return None
            at += len(line)
            if depth < len(starts) - 1:
                below = _ENDS[depth].search(text, at, end)
                end = below.start() if below else end
        name = text[at : text.index(b"\n", at)].decode(errors="replace")
        return "".join(filter(str.isprintable, name)).strip() or None

    def vendor(self, vendor: int) -> str | None:
        """The name of a vendor or subsystem vendor: `Intel Corporation`."""
        return self._name(f"{vendor:04x}")

    def device(self, device: DeviceId) -> str | None:
        """The name of a device, without its vendor: `82540EM Gigabit Ethernet Controller`."""
        return self._name(f"{device.vendor:04x}", f"{device.device:04x}")

    def subsystem(self, device: DeviceId, subsystem: DeviceId) -> str | None:
        """The name of a device in a subsystem, without the vendor: `QEMU Virtual Machine`."""
        return self._name(
            f"{device.vendor:04x}",
            f"{device.device:04x}",
            f"{subsystem.vendor:04x} {subsystem.device:04x}",
        )

    def device_class(self, code: int) -> str | None:
        """The name of a class code of 24 bits.

        It is the name of the subclass, or else of the class, with the name of the interface if
        there is one: `Ethernet controller`, `Non-Volatile memory controller, NVM Express`.
        """
        top, sub, interface = f"C {code >> 16:02x}", f"{code >> 8 & 0xFF:02x}", f"{code & 0xFF:02x}"
        subclass = self._name(top, sub)
        if subclass is None:
            return self._name(top)
        return ", ".join(filter(None, (subclass, self._name(top, sub, interface))))
