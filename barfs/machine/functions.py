"""PCI functions as sysfs shows them: ids, resources, config space."""

import errno
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from barfs.access.contract import overlap
from barfs.access.files import PAGE_SIZE, RomFile, SysfsFile, read_file, refusal
from barfs.devmem import PhysicalMemory
from barfs.errors import DeviceGone, FunctionPart, PhysicalSpan, ReadOnly, Setting, What
from barfs.machine.index import IdIndex
from barfs.machine.patterns import NO_RULES, Form, Rules
from barfs.machine.plain import directory_stamp, is_sysfs
from barfs.machine.presence import PlainPresence, Presence
from barfs.machine.resources import ROM_RESOURCE, Resource, bar_of, parse_hex, parse_resources
from barfs.names import DeviceId, PciAddress

log = logging.getLogger(__name__)

# PCI Local Bus Specification 3.0, 6.2.2: the command register and some of its bits.
COMMAND_OFFSET: Final = 4
COMMAND_IO: Final = 1 << 0
COMMAND_MEMORY: Final = 1 << 1
COMMAND_ABSENT: Final = 0xFFFF  # no device has this; it is what a read without an answer gives
COMMAND_MASTER: Final = 1 << 2

_READ_ONLY_HERE: Final = "is read-only in this mount (--read-only-device)"


class PciBus:
    """The PCI functions below `sysfs`. Everything is read when asked for.

    Only which function has which id is kept, for as long as `stamp`, of the kernel's messages,
    says that none came or went.

    With `bars_via` the memory BARs are mapped through it, at their addresses, and otherwise
    through sysfs's `resourceN`. What `rules` don't allow is to all methods as if it were not there.
    """

    def __init__(
        self,
        sysfs: Path,
        bars_via: PhysicalMemory | None = None,
        rules: Rules = NO_RULES,
        stamp: Callable[[], Hashable | None] = lambda: None,
    ) -> None:
        self.sysfs = sysfs
        self._devices = os.path.join(sysfs, "bus/pci/devices")
        self.bars_via = bars_via
        self._rules = rules
        self.is_real = is_sysfs(sysfs)
        in_plain_files = partial(directory_stamp, self._devices)
        self._index = IdIndex(self._all_ids, stamp if self.is_real else in_plain_files)

    @property
    def bars_via_devmem(self) -> bool:
        """Whether memory BARs are mapped through /dev/mem."""
        return self.bars_via is not None

    def _all_addresses(self) -> list[PciAddress]:
        try:
            names = os.listdir(self._devices)
        except FileNotFoundError:
            return []
        return sorted(filter(None, map(PciAddress.parse, names)))

    def addresses(self) -> list[PciAddress]:
        """All functions, lowest address first; none on a machine without PCI."""
        return list(filter(self._is_allowed, self._all_addresses()))

    def _all_ids(self) -> Iterator[tuple[PciAddress, DeviceId]]:
        for address in self._all_addresses():
            try:
                found = self._read_id(address, "vendor", "device")
            except DeviceGone:
                continue
            if found is not None:
                yield address, found

    def with_id(self, device: DeviceId, *, fresh: bool = False) -> Iterable[PciAddress]:
        """Functions that had an id when ids were last read, lowest address first.

        That is now if `fresh`, and if functions may have come or gone since.
        """
        found = self._index.find(device, fresh=fresh)
        return filter(self._is_allowed, found) if self._rules.allow else found

    def is_present(self, address: PciAddress) -> bool:
        """Whether there is such a function now, allowed or not."""
        return os.path.isdir(f"{self._devices}/{address}")

    def exists(self, address: PciAddress) -> bool:
        """Whether there is such a function now."""
        return self.is_present(address) and self._is_allowed(address)

    def _check_allowed(self, address: PciAddress) -> None:
        if not self._is_allowed(address):
            raise DeviceGone("there is no such function", what=FunctionPart(address))

    def path(self, address: PciAddress, name: str) -> str:
        """Where one of a function's attributes is. DeviceGone if the function is not allowed."""
        self._check_allowed(address)
        return f"{self._devices}/{address}/{name}"

    def is_virtual(self, address: PciAddress) -> bool:
        """Whether it is a virtual function: its BARs are decoded by its physical function.

        Its own memory space bit is always 0 (SR-IOV 1.1, 3.4.1.3).
        """
        return os.path.exists(self.path(address, "physfn"))

    def _name(self, address: PciAddress, form: Form) -> str | None:
        """What patterns of a form are matched with; None if sysfs does not tell."""
        if form is Form.ADDRESS:
            return str(address)
        try:
            ids = [self._read_id(address, "vendor", "device")]
            if form is Form.SUBSYSTEM:
                ids.append(self._read_id(address, "subsystem_vendor", "subsystem_device"))
        except DeviceGone:
            return None
        return None if None in ids else ":".join(map(str, ids))

    def _is_allowed(self, address: PciAddress) -> bool:
        return not self._rules.allow or self._rules.allows(partial(self._name, address))

    def is_read_only(self, address: PciAddress) -> bool:
        """Whether a function, allowed or not, may only be read."""
        return bool(self._rules.read_only) and self._rules.protects(partial(self._name, address))

    def check_writable(self, address: PciAddress, what: What) -> None:
        """ReadOnly, if a function, allowed or not, may only be read."""
        if self.is_read_only(address):
            raise ReadOnly(f"{address} {_READ_ONLY_HERE}", what=what)

    def check_span_writable(self, start: int, size: int) -> None:
        """ReadOnly if `size` bytes at a physical address have part of a BAR that is read-only.

        Looks at all functions, unless there is no such rule.
        """
        if not self._rules.read_only:
            return
        for address in filter(self.is_read_only, self._all_addresses()):
            try:
                resources = parse_resources(address, self._text(address, "resource"))
            except DeviceGone:
                continue
            for resource in resources.values():
                if resource.is_mapped and overlap(resource.span, range(start, start + size)):
                    span = PhysicalSpan(start, size)
                    raise ReadOnly(f"{address} {_READ_ONLY_HERE}", what=span)

    def _text(self, address: PciAddress, name: str) -> str:
        """The text of a sysfs attribute, allowed or not; DeviceGone if it is not there."""
        return self._bytes(address, name, PAGE_SIZE, 0).decode(errors="replace")

    def _bytes(self, address: PciAddress, name: str, length: int, offset: int) -> bytes:
        """Of a sysfs attribute, allowed or not; DeviceGone if it is not there."""
        try:
            return read_file(f"{self._devices}/{address}/{name}", length, offset)
        except OSError as error:
            what = FunctionPart(address, name)
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise refusal(what, None, error) from error
            raise DeviceGone(what=what, system=error) from error

    def _read(self, address: PciAddress, name: str) -> str:
        """The text of a sysfs attribute; DeviceGone if the function is not there (any more)."""
        self._check_allowed(address)
        return self._text(address, name)

    def attribute(self, address: PciAddress, name: str) -> str | None:
        """The text of a sysfs attribute without space around it; None if it can't be read.

        Kernels differ in what they have, and copies of sysfs in what was saved. DeviceGone.
        """
        try:
            return self._read(address, name).strip()
        except DeviceGone:
            if self.exists(address):
                return None
            raise

    def set_attribute(self, address: PciAddress, name: str, text: str) -> None:
        """Write a sysfs attribute. DeviceGone, ReadOnly, or what else the kernel says."""
        path = self.path(address, name)
        self.check_writable(address, path)
        try:
            # Not open(): it would make a file where there is none.
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise refusal(FunctionPart(address), Setting(path, text), error) from error

    def driver(self, address: PciAddress) -> str | None:
        """The name of the driver that is bound to a function; None if there is none. DeviceGone."""
        try:
            target = os.readlink(os.fsencode(self.path(address, "driver")))
        except OSError as error:
            if self.exists(address):
                return None
            raise DeviceGone(what=FunctionPart(address, "driver"), system=error) from error
        return os.path.basename(target).decode(errors="replace")

    def _read_id(self, address: PciAddress, vendor: str, device: str) -> DeviceId | None:
        """Of a function, allowed or not; None if sysfs's text is garbage. DeviceGone."""
        text = self._text(address, vendor), self._text(address, device)
        try:
            result = DeviceId(*(parse_hex(word, bits=16) for word in text))
        except ValueError:
            log.warning("%s: %s or %s is not a number: %a", address, vendor, device, text)
            return None
        return result

    def id(self, address: PciAddress) -> DeviceId | None:
        """vendor:device; None if sysfs's text is garbage. DeviceGone."""
        self._check_allowed(address)
        return self._read_id(address, "vendor", "device")

    def subsystem(self, address: PciAddress) -> DeviceId | None:
        """Subsystem vendor and device; None if sysfs's text is garbage. DeviceGone."""
        self._check_allowed(address)
        return self._read_id(address, "subsystem_vendor", "subsystem_device")

    def resources(self, address: PciAddress) -> Mapping[int, Resource]:
        """BARs and expansion ROM that exist, by line. DeviceGone. Reads no config space."""
        return parse_resources(address, self._read(address, "resource"))

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
            return os.stat(self.path(address, "rom")).st_size
        except (OSError, DeviceGone):
            return None

    def open_rom(self, address: PciAddress) -> SysfsFile | RomFile:
        """The expansion ROM through sysfs, read-only."""
        kind = RomFile if self.is_real else SysfsFile
        what = FunctionPart(address, "rom")
        return kind(self.path(address, "rom"), what=what, writable=self.is_real)

    def presence(self, address: PciAddress) -> Presence:
        """A watch over a function as it is now, allowed or not. DeviceGone."""
        kind = Presence if self.is_real else PlainPresence
        return kind(f"{self._devices}/{address}/resource", address)

    def config_size(self, address: PciAddress) -> int:
        """256 or 4096 bytes. Reads no config space."""
        try:
            return os.stat(self.path(address, "config")).st_size
        except OSError as error:
            raise DeviceGone(what=FunctionPart(address, "config"), system=error) from error

    def open_config(self, address: PciAddress, *, writable: bool) -> SysfsFile:
        """Config space through sysfs. ReadOnly."""
        path = self.path(address, "config")
        what = FunctionPart(address, "config")
        if writable:
            self.check_writable(address, what)
        return SysfsFile(path, what=what, writable=writable)

    def command(self, address: PciAddress) -> int:
        """The command register, read from config space. DeviceGone."""
        self._check_allowed(address)
        raw = self._bytes(address, "config", 2, COMMAND_OFFSET)
        if len(raw) < 2:
            what = FunctionPart(address, "config")
            raise DeviceGone("the command register cannot be read", what=what)
        return int.from_bytes(raw, "little")

    def set_command(self, address: PciAddress, value: int) -> None:
        """Write the command register, 2 bytes of config space. DeviceGone, KernelRefused."""
        config = self.open_config(address, writable=True)
        try:
            config.write(COMMAND_OFFSET, value.to_bytes(2, "little"))
        finally:
            config.close()
