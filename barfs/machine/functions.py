"""PCI functions as sysfs shows them: ids, resources, config space."""

import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from barfs.access.contract import overlap
from barfs.access.files import PAGE_SIZE, ReadFile, WriteFile, refusal
from barfs.errors import DeviceGone, FunctionPart, PhysicalSpan, ReadOnly, What, excerpt
from barfs.machine.index import Index
from barfs.machine.patterns import NO_RULES, Form, Rules
from barfs.machine.presence import Presence
from barfs.machine.reading import Reading, reading_of
from barfs.machine.resources import (
    ROM_RESOURCE,
    Resource,
    bar_of,
    parse_hex,
    parse_resources,
    windows_in,
)
from barfs.machine.source import Source
from barfs.names import DeviceId, PciAddress

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

_READ_ONLY_HERE: Final = "is read-only in this mount (--read-only-device)"


class Lineage(NamedTuple):
    """What a function is behind: the host bridge, and the bridges from there on."""

    host: str
    bridges: tuple[PciAddress, ...]


class Functions(Protocol):
    """PCI functions, read when asked for. The two kinds differ in which functions they have."""

    source: Source
    everything: "AllFunctions"  # the functions without the rules of a mount

    # Which there are

    def addresses(self) -> list[PciAddress]:
        """All functions, lowest address first. A machine without PCI has none."""

    def exists(self, address: PciAddress) -> bool:
        """Whether there is such a function now."""

    def with_id(
        self, device: DeviceId, subsystem: DeviceId | None = None, *, fresh: bool = False
    ) -> Iterable[PciAddress]:
        """The functions that had these ids when ids were last read, lowest address first.

        The ids are read now if functions may have come or gone since, and some of them if `fresh`.
        """

    def path(self, address: PciAddress, name: str) -> str:
        """The path of one of a function's attributes. DeviceGone if there is no such function.

        Everything that is read of a function is read through such a path.
        """

    def is_read_only(self, address: PciAddress) -> bool:
        """Whether a rule says that a function may only be read."""

    # What each is

    def known(
        self,
        address: PciAddress,
        ask: Callable[Concatenate[PciAddress, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T | None:
        """What `ask` finds. None if the function is there and does not have it.

        Kernels differ in what they have, and copies of sysfs in what was saved. Raises DeviceGone.
        """
        try:
            return ask(address, *args, **kwargs)
        except DeviceGone:
            if self.exists(address):
                return None
            raise

    def _bytes(self, address: PciAddress, name: str, length: int, offset: int) -> bytes:
        """The bytes of a sysfs attribute. DeviceGone if it is not there."""
        path = self.path(address, name)
        try:
            return self.source.read(path, length, offset)
        except OSError as error:
            what = FunctionPart(address, name)
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise refusal(what, None, error) from error
            raise DeviceGone(what=what, system=error) from error

    def _text(self, address: PciAddress, name: str) -> str:
        """The text of a sysfs attribute. DeviceGone if it is not there."""
        raw = self._bytes(address, name, PAGE_SIZE, 0)
        # tar fills what it saves of sysfs up with NULs.
        return raw.rstrip(b"\0").decode(errors="replace")

    def attribute(self, address: PciAddress, name: str) -> str | None:
        """The text of a sysfs attribute without space around it. None if it can't be read.

        Raises DeviceGone if the function is not there.
        """
        text = self.known(address, self._text, name)
        return None if text is None else text.strip()

    def driver(self, address: PciAddress) -> str | None:
        """The name of the driver that is bound to a function, or None. Raises DeviceGone."""
        target = self.known(address, self._driver)
        return None if target is None else os.path.basename(target)

    def knows_driver(self, address: PciAddress) -> bool:
        """Whether no driver means that there is none. A recording may not tell."""
        recording = self.source.recording
        return recording is None or recording.functions[address].driver_known

    def group(self, address: PciAddress) -> list[PciAddress]:
        """The functions of its IOMMU group, itself among them; none where there is no IOMMU."""
        try:
            names = self.source.names(self.path(address, "iommu_group/devices"))
        except OSError:
            return []
        return sorted(filter(None, map(PciAddress.parse, names)))

    def _driver(self, address: PciAddress) -> str:
        try:
            return self.source.target(self.path(address, "driver"))
        except OSError as error:
            raise DeviceGone(what=FunctionPart(address, "driver"), system=error) from error

    def is_virtual(self, address: PciAddress) -> bool:
        """Whether it is a virtual function. Its physical function then decodes its BARs.

        The memory space bit of a virtual function is always 0 (SR-IOV 1.1, 3.4.1.3). Raises
        DeviceGone.
        """
        return self.source.exists(self.path(address, "physfn"))

    def _id(self, address: PciAddress, vendor: str, device: str) -> DeviceId | None:
        numbers = self._text(address, vendor), self._text(address, device)
        try:
            result = DeviceId(parse_hex(numbers[0], bits=16), parse_hex(numbers[1], bits=16))
        except ValueError:
            shown = ", ".join(map(excerpt, numbers))
            log.warning("%s: %s or %s is not a number: %s", address, vendor, device, shown)
            return None
        return result

    def id(self, address: PciAddress) -> DeviceId | None:
        """vendor:device. None if sysfs's text is garbage. Raises DeviceGone."""
        return self._id(address, "vendor", "device")

    def subsystem(self, address: PciAddress) -> DeviceId | None:
        """Subsystem vendor and device. None if sysfs's text is garbage. Raises DeviceGone."""
        return self._id(address, "subsystem_vendor", "subsystem_device")

    def name(self, address: PciAddress, form: Form) -> str | None:
        """The name that patterns of a form match. None if sysfs does not tell."""
        if form is Form.ADDRESS:
            return str(address)
        try:
            ids = [self.id(address)]
            if form is Form.SUBSYSTEM:
                ids.append(self.subsystem(address))
        except DeviceGone:
            return None
        return None if None in ids else ":".join(map(str, ids))

    def lineage(self, address: PciAddress) -> Lineage:
        """What a function is behind. DeviceGone if there is no such function.

        sysfs's entry is a link through the directories of the bridges above. A copy may have
        directories instead: then the domain stands for the host bridge, and no bridge is known.
        """
        try:
            target = self.source.target(self.path(address, "").rstrip("/"))
        except OSError:
            return Lineage(f"pci{address.domain:04x}", ())
        names = target.split("/")
        host = next((name for name in names if name.startswith("pci") and ":" in name), "pci")
        return Lineage(host, tuple(filter(None, map(PciAddress.parse, names[:-1]))))

    def resources(self, address: PciAddress) -> Mapping[int, Resource]:
        """The BARs and the expansion ROM, by line. Raises DeviceGone. Reads no config space."""
        return parse_resources(address, self._text(address, "resource"))

    def windows(self, address: PciAddress) -> list[Resource]:
        """What a bridge forwards to the bus behind it, as the kernel has it. DeviceGone."""
        return windows_in(self._text(address, "resource"))

    def bars(self, address: PciAddress) -> dict[int, Resource]:
        """The BARs that exist, by index. Raises DeviceGone. Reads no config space."""
        found = dict(self.resources(address))
        found.pop(ROM_RESOURCE, None)
        return found

    def bar(self, address: PciAddress, index: int) -> Resource:
        """One BAR. Raises NoSuchNode and DeviceGone. Reads no config space."""
        return bar_of(address, self.resources(address), index)

    def reading(self, address: PciAddress, bars: Mapping[int, Resource], index: int) -> Reading:
        """Whether one of a function's BARs is read as registers or memory. Raises DeviceGone.

        Reads no config space. The class is asked for only where it matters.
        """
        device_class = None
        if bars[index].is_memory and bars[index].prefetchable:
            with suppress(ValueError):
                device_class = parse_hex(self.attribute(address, "class") or "", bits=24)
        return reading_of(device_class, bars, index)

    def rom_size(self, address: PciAddress) -> int | None:
        """The size of the expansion ROM in bytes. None if there is none. Reads no config space.

        sysfs has a `rom` for every function with a ROM BAR. It also has one for the VGA device, if
        the firmware has copied its ROM to memory.
        """
        try:
            return self.source.size(self.path(address, "rom"))
        except (OSError, DeviceGone):
            return None

    def open_rom(self, address: PciAddress) -> ReadFile:
        """The expansion ROM through sysfs, read-only."""
        return self.source.open_rom(self.path(address, "rom"), FunctionPart(address, "rom"))

    def presence(self, address: PciAddress) -> Presence:
        """A watch over a function as it is now. Raises DeviceGone."""
        return self.source.presence(self.path(address, "resource"), address)

    # Config space

    def config_size(self, address: PciAddress) -> int:
        """The size of config space: 256 or 4096 bytes. Reads no config space. Raises DeviceGone."""
        path = self.path(address, "config")
        try:
            return self.source.size(path)
        except OSError as error:
            raise DeviceGone(what=FunctionPart(address, "config"), system=error) from error

    def read_config(self, address: PciAddress, offset: int, length: int) -> bytes:
        """Up to `length` bytes of config space from `offset`. Raises DeviceGone.

        A sleeping function may wake up for this.
        """
        return self._bytes(address, "config", length, offset)

    def open_config(self, address: PciAddress, *, writable: bool) -> WriteFile:
        """Config space through sysfs. Raises ReadOnly."""
        path = self.path(address, "config")
        what = FunctionPart(address, "config")
        if writable:
            self.check_writable(address, what)
        return self.source.open_config(path, what, writable=writable)

    # What may be written

    def why_read_only(self, address: PciAddress, what: What) -> ReadOnly | None:
        """The refusal to write to a function. None if it may be written."""
        if not self.is_read_only(address):
            return None
        return ReadOnly(f"{address} {_READ_ONLY_HERE}", what=what)

    def check_writable(self, address: PciAddress, what: What) -> None:
        """ReadOnly if a function may only be read."""
        refusal = self.why_read_only(address, what)
        if refusal is not None:
            raise refusal


class AllFunctions(Functions):
    """All functions of a machine, whatever rules a mount has.

    The only thing that is kept is which function has which id. It is kept as long as the source
    says that no function came or went.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.everything = self
        self._devices = os.path.join(source.sysfs, "bus/pci/devices")
        self._by_id = Index(self.addresses, self._id_of, source.stamp)
        self._by_ids = Index(self.addresses, self._ids_of, source.stamp)

    def addresses(self) -> list[PciAddress]:
        try:
            names = self.source.names(self._devices)
        except FileNotFoundError:
            return []
        return sorted(filter(None, map(PciAddress.parse, names)))

    def exists(self, address: PciAddress) -> bool:
        return self.source.is_directory(f"{self._devices}/{address}")

    def _id_of(self, address: PciAddress) -> DeviceId | None:
        try:
            return self.id(address)
        except DeviceGone:
            return None

    def _ids_of(self, address: PciAddress) -> tuple[DeviceId | None, DeviceId | None] | None:
        try:
            return self.id(address), self.subsystem(address)
        except DeviceGone:
            return None

    def with_id(
        self, device: DeviceId, subsystem: DeviceId | None = None, *, fresh: bool = False
    ) -> Iterable[PciAddress]:
        if subsystem is None:
            return self._by_id.find(device, fresh=fresh)
        return self._by_ids.find((device, subsystem), fresh=fresh)

    def path(self, address: PciAddress, name: str) -> str:
        """The path of an attribute, whether there is such a function or not."""
        return f"{self._devices}/{address}/{name}"

    def is_read_only(self, address: PciAddress) -> bool:
        """No: there are no rules."""
        del address
        return False


class Allowed(Functions):
    """The functions that rules allow. The others are as if they were not there.

    `everything` has all functions, without these rules.
    """

    def __init__(self, everything: AllFunctions, rules: Rules = NO_RULES) -> None:
        self.source = everything.source
        self.everything = everything
        self._path = everything.path
        self._rules = rules

    def _is_allowed(self, address: PciAddress) -> bool:
        return not self._rules.allow or self._rules.allows(partial(self.everything.name, address))

    def addresses(self) -> list[PciAddress]:
        return list(filter(self._is_allowed, self.everything.addresses()))

    def exists(self, address: PciAddress) -> bool:
        return self.everything.exists(address) and self._is_allowed(address)

    def with_id(
        self, device: DeviceId, subsystem: DeviceId | None = None, *, fresh: bool = False
    ) -> Iterable[PciAddress]:
        found = self.everything.with_id(device, subsystem, fresh=fresh)
        return filter(self._is_allowed, found) if self._rules.allow else found

    def path(self, address: PciAddress, name: str) -> str:
        if self._rules.allow and not self._is_allowed(address):
            raise DeviceGone("there is no such function", what=FunctionPart(address))
        return self._path(address, name)

    def is_read_only(self, address: PciAddress) -> bool:
        """Whether a rule protects a function, also one that is not allowed."""
        names = partial(self.everything.name, address)
        return bool(self._rules.read_only) and self._rules.protects(names)

    def reading(self, address: PciAddress, bars: Mapping[int, Resource], index: int) -> Reading:
        """See Functions. Rules go first, but nothing makes memory of I/O ports."""
        if bars[index].is_memory and (self._rules.memory or self._rules.registers):
            names = partial(self.everything.name, address)
            ruled = self._rules.is_memory(names, index)
            if ruled is not None:
                return Reading(ruled, why="--memory" if ruled else "--registers")
        return super().reading(address, bars, index)

    def check_span_writable(self, start: int, size: int) -> None:
        """ReadOnly if `size` bytes from a physical address touch a BAR that may only be read.

        All functions count, allowed or not.
        """
        if not self._rules.read_only:
            return
        for address in filter(self.is_read_only, self.everything.addresses()):
            try:
                resources = self.everything.resources(address)
            except DeviceGone:
                continue
            for resource in resources.values():
                if resource.is_mapped and overlap(resource.span, range(start, start + size)):
                    span = PhysicalSpan(start, size)
                    raise ReadOnly(f"{address} {_READ_ONLY_HERE}", what=span)
