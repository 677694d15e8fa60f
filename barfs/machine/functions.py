"""PCI functions as sysfs shows them: ids, resources, config space."""

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final, Protocol, TypeVar

from barfs.access.contract import overlap
from barfs.access.files import PAGE_SIZE, SysfsFile, refusal
from barfs.errors import DeviceGone, FunctionPart, PhysicalSpan, ReadOnly, What
from barfs.machine.index import IdIndex
from barfs.machine.patterns import NO_RULES, Form, Rules
from barfs.machine.presence import Presence
from barfs.machine.resources import ROM_RESOURCE, Resource, bar_of, parse_hex, parse_resources
from barfs.machine.source import Source
from barfs.names import DeviceId, PciAddress

log = logging.getLogger(__name__)

T = TypeVar("T")

_READ_ONLY_HERE: Final = "is read-only in this mount (--read-only-device)"


class Functions(Protocol):
    """PCI functions, read when asked for. Which there are is what its two kinds differ in."""

    source: Source

    # Which there are

    def addresses(self) -> list[PciAddress]:
        """All functions, lowest address first; none on a machine without PCI."""

    def exists(self, address: PciAddress) -> bool:
        """Whether there is such a function now."""

    def with_id(self, device: DeviceId, *, fresh: bool = False) -> Iterable[PciAddress]:
        """Functions that had an id when ids were last read, lowest address first.

        That is now if `fresh`, and if functions may have come or gone since.
        """

    def path(self, address: PciAddress, name: str) -> str:
        """Where one of a function's attributes is. DeviceGone if there is no such function.

        Whatever is read of a function is read here.
        """

    def is_read_only(self, address: PciAddress) -> bool:
        """Whether a rule says that a function may only be read."""

    # What each is

    def known(self, address: PciAddress, ask: Callable[[PciAddress], T]) -> T | None:
        """What `ask` finds; None if it can't be had of a function that is there. DeviceGone.

        Kernels differ in what they have, and copies of sysfs in what was saved.
        """
        try:
            return ask(address)
        except DeviceGone:
            if self.exists(address):
                return None
            raise

    def _bytes(self, address: PciAddress, name: str, length: int, offset: int) -> bytes:
        """Of a sysfs attribute; DeviceGone if it is not there."""
        path = self.path(address, name)
        try:
            return self.source.read(path, length, offset)
        except OSError as error:
            what = FunctionPart(address, name)
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise refusal(what, None, error) from error
            raise DeviceGone(what=what, system=error) from error

    def _text(self, address: PciAddress, name: str) -> str:
        """The text of a sysfs attribute; DeviceGone if it is not there."""
        return self._bytes(address, name, PAGE_SIZE, 0).decode(errors="replace")

    def attribute(self, address: PciAddress, name: str) -> str | None:
        """The text of a sysfs attribute without space around it; None if it can't be read.

        DeviceGone.
        """
        text = self.known(address, lambda address: self._text(address, name))
        return None if text is None else text.strip()

    def driver(self, address: PciAddress) -> str | None:
        """The name of the driver that is bound to a function; None if there is none. DeviceGone."""
        target = self.known(address, self._driver)
        return None if target is None else os.path.basename(target)

    def _driver(self, address: PciAddress) -> str:
        try:
            return self.source.target(self.path(address, "driver"))
        except OSError as error:
            raise DeviceGone(what=FunctionPart(address, "driver"), system=error) from error

    def is_virtual(self, address: PciAddress) -> bool:
        """Whether it is a virtual function: its BARs are decoded by its physical function.

        Its own memory space bit is always 0 (SR-IOV 1.1, 3.4.1.3). DeviceGone.
        """
        return self.source.exists(self.path(address, "physfn"))

    def _id(self, address: PciAddress, vendor: str, device: str) -> DeviceId | None:
        text = self._text(address, vendor), self._text(address, device)
        try:
            result = DeviceId(*(parse_hex(word, bits=16) for word in text))
        except ValueError:
            log.warning("%s: %s or %s is not a number: %a", address, vendor, device, text)
            return None
        return result

    def id(self, address: PciAddress) -> DeviceId | None:
        """vendor:device; None if sysfs's text is garbage. DeviceGone."""
        return self._id(address, "vendor", "device")

    def subsystem(self, address: PciAddress) -> DeviceId | None:
        """Subsystem vendor and device; None if sysfs's text is garbage. DeviceGone."""
        return self._id(address, "subsystem_vendor", "subsystem_device")

    def name(self, address: PciAddress, form: Form) -> str | None:
        """What patterns of a form are matched with; None if sysfs does not tell."""
        if form is Form.ADDRESS:
            return str(address)
        try:
            ids = [self.id(address)]
            if form is Form.SUBSYSTEM:
                ids.append(self.subsystem(address))
        except DeviceGone:
            return None
        return None if None in ids else ":".join(map(str, ids))

    def resources(self, address: PciAddress) -> Mapping[int, Resource]:
        """BARs and expansion ROM that exist, by line. DeviceGone. Reads no config space."""
        return parse_resources(address, self._text(address, "resource"))

    def bars(self, address: PciAddress) -> dict[int, Resource]:
        """The BARs that exist, by index. DeviceGone. Reads no config space."""
        found = dict(self.resources(address))
        found.pop(ROM_RESOURCE, None)
        return found

    def bar(self, address: PciAddress, index: int) -> Resource:
        """One BAR; NoSuchNode, DeviceGone. Reads no config space."""
        return bar_of(address, self.resources(address), index)

    def rom_size(self, address: PciAddress) -> int | None:
        """Of the expansion ROM in bytes; None if there is none. Reads no config space.

        sysfs has a `rom` for every function with a ROM BAR, and for the VGA device whose ROM the
        firmware has copied to memory.
        """
        try:
            return self.source.size(self.path(address, "rom"))
        except (OSError, DeviceGone):
            return None

    def open_rom(self, address: PciAddress) -> SysfsFile:
        """The expansion ROM through sysfs, read-only."""
        return self.source.open_rom(self.path(address, "rom"), FunctionPart(address, "rom"))

    def presence(self, address: PciAddress) -> Presence:
        """A watch over a function as it is now. DeviceGone."""
        return self.source.presence(self.path(address, "resource"), address)

    # Config space

    def config_size(self, address: PciAddress) -> int:
        """256 or 4096 bytes. Reads no config space."""
        path = self.path(address, "config")
        try:
            return self.source.size(path)
        except OSError as error:
            raise DeviceGone(what=FunctionPart(address, "config"), system=error) from error

    def read_config(self, address: PciAddress, offset: int, length: int) -> bytes:
        """Up to `length` bytes of config space from `offset`. DeviceGone.

        A function that sleeps may wake up for it.
        """
        return self._bytes(address, "config", length, offset)

    def open_config(self, address: PciAddress, *, writable: bool) -> SysfsFile:
        """Config space through sysfs. ReadOnly."""
        path = self.path(address, "config")
        what = FunctionPart(address, "config")
        if writable:
            self.check_writable(address, what)
        return self.source.open_config(path, what, writable=writable)

    # What may be written

    def check_writable(self, address: PciAddress, what: What) -> None:
        """ReadOnly, if a function may only be read."""
        if self.is_read_only(address):
            raise ReadOnly(f"{address} {_READ_ONLY_HERE}", what=what)


class AllFunctions(Functions):
    """All functions of a machine, whatever rules a mount has.

    Only which function has which id is kept, for as long as the source says that none came or went.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._devices = os.path.join(source.sysfs, "bus/pci/devices")
        self._index = IdIndex(self._ids, source.stamp)

    def addresses(self) -> list[PciAddress]:
        """See Functions."""
        try:
            names = self.source.names(self._devices)
        except FileNotFoundError:
            return []
        return sorted(filter(None, map(PciAddress.parse, names)))

    def exists(self, address: PciAddress) -> bool:
        """See Functions."""
        return self.source.is_directory(f"{self._devices}/{address}")

    def _ids(self) -> Iterator[tuple[PciAddress, DeviceId]]:
        for address in self.addresses():
            try:
                found = self.id(address)
            except DeviceGone:
                continue
            if found is not None:
                yield address, found

    def with_id(self, device: DeviceId, *, fresh: bool = False) -> Iterable[PciAddress]:
        """See Functions."""
        return self._index.find(device, fresh=fresh)

    def path(self, address: PciAddress, name: str) -> str:
        """See Functions. Whether there is such a function shows when the path is used."""
        return f"{self._devices}/{address}/{name}"

    def is_read_only(self, address: PciAddress) -> bool:
        """No rule says so."""
        del address
        return False


class Allowed(Functions):
    """The functions that rules allow: the others are as if they were not there.

    `everything` are the functions without these rules.
    """

    def __init__(self, everything: AllFunctions, rules: Rules = NO_RULES) -> None:
        self.source = everything.source
        self.everything = everything
        self._rules = rules

    def _is_allowed(self, address: PciAddress) -> bool:
        return not self._rules.allow or self._rules.allows(partial(self.everything.name, address))

    def addresses(self) -> list[PciAddress]:
        """See Functions."""
        return list(filter(self._is_allowed, self.everything.addresses()))

    def exists(self, address: PciAddress) -> bool:
        """See Functions."""
        return self.everything.exists(address) and self._is_allowed(address)

    def with_id(self, device: DeviceId, *, fresh: bool = False) -> Iterable[PciAddress]:
        """See Functions."""
        found = self.everything.with_id(device, fresh=fresh)
        return filter(self._is_allowed, found) if self._rules.allow else found

    def path(self, address: PciAddress, name: str) -> str:
        """See Functions."""
        if not self._is_allowed(address):
            raise DeviceGone("there is no such function", what=FunctionPart(address))
        return self.everything.path(address, name)

    def is_read_only(self, address: PciAddress) -> bool:
        """See Functions. Rules protect functions that are not allowed, too."""
        names = partial(self.everything.name, address)
        return bool(self._rules.read_only) and self._rules.protects(names)

    def check_span_writable(self, start: int, size: int) -> None:
        """ReadOnly if `size` bytes at a physical address have part of a BAR that is read-only.

        Looks at all functions, allowed or not, unless there is no such rule.
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
