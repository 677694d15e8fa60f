"""The facts that are saved: what barfs reads of sysfs and /proc, and config space of the awake."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from barfs.diagnosis.obstacles import silence
from barfs.errors import DeviceGone
from barfs.machine import kernel
from barfs.machine.configspace import COMMAND_ABSENT, Header
from barfs.machine.functions import Functions
from barfs.machine.power import sleeping
from barfs.machine.recording import (
    ATTRIBUTES,
    EXISTING,
    LINK_WIDTH,
    LINKS,
    MACHINE_FILES,
)
from barfs.machine.source import Source
from barfs.names import PciAddress
from barfs.registers.capabilities import walk
from barfs.saving.reads import Bytes

# PCI Code and ID Assignment Specification: class and subclass of a PCI-to-PCI bridge.
_BRIDGE: Final = "0x0604"

# The words of the kernel's command line that barfs asks for. Others are nobody's business.
_PARAMETERS: Final = ("iomem=", "lockdown=")

_MOST: Final = 16 << 20

# Where serial numbers are: in the capability of Vital Product Data (PCI 3.0, appendix I) its
# address and data, in that of the Device Serial Number (PCI Express 5.0, 7.9.3) all but its header.
_SERIALS: Final = {(0x03, False): range(2, 8), (0x0003, True): range(4, 12)}


class Facts(NamedTuple):
    """The facts of a function, as facts.json has them, and its config space where it was read."""

    content: dict[str, Any]
    config: bytes
    config_ranges: Sequence[Bytes]


def facts_of(pci: Functions, address: PciAddress, *, redact: bool) -> Facts:
    """The facts of a function. Raises DeviceGone. A function that sleeps is not woken."""
    source = pci.source
    # This comes first: reading config space may wake up what is about to sleep.
    attributes = {name: _raw(pci, address, name) for name in ATTRIBUTES}
    asleep = sleeping(pci, address)
    if asleep is None and (attributes["class"] or "").startswith(_BRIDGE):
        attributes[LINK_WIDTH] = _raw(pci, address, LINK_WIDTH)
    content: dict[str, Any] = {
        "attributes": {name: text for name, text in attributes.items() if text is not None},
        "links": dict(_links(pci, address)),
        "group": [str(one) for one in pci.group(address)],
        "exists": [name for name in EXISTING if source.exists(pci.path(address, name))],
        "sizes": dict(_sizes(pci, address)),
        "refused": {},
        "read": {},
    }
    why = _why_not(pci, address, asleep)
    data = b"" if why is not None else _config(pci, address, content["sizes"].get("config", 0))
    if data and Header(data).command == COMMAND_ABSENT:
        why, data = str(silence(pci, address)), b""
    ranges = [Bytes(0, len(data), None)] if data else []
    if why is not None:
        content["refused"]["config"] = why
    elif len(data) < content["sizes"].get("config", 0):
        content["refused"]["config"] = f"the kernel showed {len(data):#x} bytes of it"
    if redact and data:
        left = _without_serials(data)
        if left != ranges:
            content["refused"]["config"] = "serial numbers are left out (--redact)"
            ranges = left
            data = b"".join(data[one.start : one.start + one.length] for one in left)
    return Facts(content, data, ranges)


def _raw(pci: Functions, address: PciAddress, name: str) -> str | None:
    """The text of an attribute as it is. None if it can't be read."""
    text = pci.source.text(pci.path(address, name))
    return None if text is None else text.replace("\0", "")[:4096]


def _links(pci: Functions, address: PciAddress) -> Iterator[tuple[str, str]]:
    for name in LINKS:
        try:
            yield name, pci.source.target(pci.path(address, name).rstrip("/"))
        except OSError:
            continue


def _sizes(pci: Functions, address: PciAddress) -> Iterator[tuple[str, int]]:
    size = pci.known(address, pci.config_size)
    if size is not None:
        yield "config", size
    rom = pci.rom_size(address)
    if rom is not None:
        yield "rom", rom


def _why_not(pci: Functions, address: PciAddress, asleep: str | None) -> str | None:
    """Why config space is not read. None if it may be."""
    if asleep is not None:
        return f"it sleeps ({asleep}), and reading it would wake it up"
    for bridge in pci.everything.lineage(address).bridges:
        try:
            state = sleeping(pci.everything, bridge)
        except DeviceGone:
            continue
        if state is not None:
            return f"the bridge {bridge} above it sleeps ({state})"
    return None


def _config(pci: Functions, address: PciAddress, size: int) -> bytes:
    return pci.known(address, pci.read_config, 0, min(size, 4096)) or b""


def _without_serials(data: bytes) -> list[Bytes]:
    """Config space without serial numbers."""

    def read(offset: int, width: int) -> int | None:
        found = data[offset : offset + width]
        return int.from_bytes(found, "little") if len(found) == width else None

    left, start = [], 0
    holes = sorted(
        (found.offset + span.start, found.offset + span.stop)
        for found in walk(read, len(data))
        if (span := _SERIALS.get((found.number, found.extended))) is not None
    )
    for begin, end in [*holes, (len(data), len(data))]:
        if begin > start:
            left.append(Bytes(start, min(begin, len(data)) - start, None))
        start = max(start, end)
    return left


def machine_files(source: Source, *, redact: bool) -> Iterator[tuple[str, bytes]]:
    """The files of /proc, /sys and /boot that barfs reads, by their names in a recording."""
    for name in MACHINE_FILES:
        directory, _, rest = name.partition("/")
        path = getattr(source, {"sys": "sysfs", "proc": "proc"}[directory]) / rest
        try:
            data = source.read_all(path, _MOST)
        except OSError:
            continue
        if name == "proc/iomem" and redact:
            data = redacted(data.decode(errors="replace")).encode()
        elif name == "proc/cmdline":
            data = _parameters(data.decode(errors="replace")).encode()
        yield name, data
    if not source.exists(source.proc / "sys/kernel/arch"):
        built_for = kernel.architecture(source)
        if built_for is not None:
            yield "proc/sys/kernel/arch", f"{built_for}\n".encode()
    config = kernel.read_config(source)
    if config is not None and config.source.parent == source.boot:
        yield f"boot/{config.source.name}", source.read_all(config.source, _MOST)


def redacted(iomem: str) -> str:
    """The lines of /proc/iomem that are a function's, and those inside of them."""
    kept = []
    outer: int | None = None  # how far the line of a function is indented that goes on
    for line in iomem.splitlines():
        depth = len(line) - len(line.lstrip(" "))
        if outer is None or depth <= outer:
            is_function = PciAddress.parse(line.partition(" : ")[2]) is not None
            outer = depth if is_function else None
        if outer is not None:
            kept.append(line[outer:])
    return "".join(f"{line}\n" for line in kept)


def _parameters(cmdline: str) -> str:
    words = re.split(r"\s+", cmdline.partition(" -- ")[0])
    return " ".join(word for word in words if word.startswith(_PARAMETERS)) + "\n"
