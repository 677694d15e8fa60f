"""PCI functions as sysfs shows them: ids, resources, the command register, opening BARs."""

import errno
import logging
import os
import shlex
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from barfs.aperture import (
    PAGE_SIZE,
    REFUSALS,
    Aperture,
    MappedAperture,
    PortAperture,
    RomFile,
    SysfsFile,
    refusal,
    refuse_mapping,
)
from barfs.devmem import PhysicalMemory
from barfs.errors import (
    BarfsError,
    Cause,
    DeviceGone,
    DriverOwns,
    NotDecoded,
    ReadOnly,
)
from barfs.index import IdIndex, directory_stamp
from barfs.names import DeviceId, PciAddress
from barfs.patterns import NO_RULES, Form, Rules
from barfs.presence import PlainPresence, Presence, is_sysfs
from barfs.resources import (
    ROM_RESOURCE,
    Resource,
    bar_of,
    check_window,
    parse_hex,
    parse_resources,
)

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
        self._bars_via = bars_via
        self._rules = rules
        self._real = is_sysfs(sysfs)
        in_plain_files = partial(directory_stamp, self._devices)
        self._index = IdIndex(self._all_ids, stamp if self._real else in_plain_files)

    @property
    def bars_via_devmem(self) -> bool:
        """Whether memory BARs are mapped through /dev/mem."""
        return self._bars_via is not None

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
            raise DeviceGone(f"{address}: there is no such function")

    def _path(self, address: PciAddress, name: str) -> str:
        """Where one of a function's attributes is. DeviceGone if the function is not allowed."""
        self._check_allowed(address)
        return f"{self._devices}/{address}/{name}"

    def is_virtual(self, address: PciAddress) -> bool:
        """Whether it is a virtual function: its BARs are decoded by its physical function.

        Its own memory space bit is always 0 (SR-IOV 1.1, 3.4.1.3).
        """
        return os.path.exists(self._path(address, "physfn"))

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

    def _check_writable(self, address: PciAddress, what: str) -> None:
        if self.is_read_only(address):
            raise ReadOnly(f"{what}: {address} {_READ_ONLY_HERE}")

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
                inside = resource.start < start + size and start <= resource.end
                if resource.is_memory and resource.assigned and inside:
                    raise ReadOnly(f"phys {start:#x}+{size:#x}: {address} {_READ_ONLY_HERE}")

    def _text(self, address: PciAddress, name: str) -> str:
        """The text of a sysfs attribute, allowed or not; DeviceGone if it is not there."""
        return self._bytes(address, name, PAGE_SIZE, 0).decode(errors="replace")

    def _bytes(self, address: PciAddress, name: str, length: int, offset: int) -> bytes:
        """Of a sysfs attribute, allowed or not; DeviceGone if it is not there."""
        try:
            fd = os.open(f"{self._devices}/{address}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(fd, length, offset)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                raise refusal(f"{address} {name}", error, REFUSALS) from error
            raise DeviceGone(f"{address} {name}: {error.strerror}") from error

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
        path = self._path(address, name)
        self._check_writable(address, path)
        try:
            # Not open(): it would make a file where there is none.
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise refusal(f"{address}: writing {text} to {path}", error, REFUSALS) from error

    def driver(self, address: PciAddress) -> str | None:
        """The name of the driver that is bound to a function; None if there is none. DeviceGone."""
        try:
            target = os.readlink(os.fsencode(self._path(address, "driver")))
        except OSError as error:
            if self.exists(address):
                return None
            raise DeviceGone(f"{address} driver: {error.strerror}") from error
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
            return os.stat(self._path(address, "rom")).st_size
        except (OSError, DeviceGone):
            return None

    def open_rom(self, address: PciAddress) -> SysfsFile | RomFile:
        """The expansion ROM through sysfs, read-only."""
        kind = RomFile if self._real else SysfsFile
        return kind(self._path(address, "rom"), what=f"{address} rom", writable=self._real)

    def presence(self, address: PciAddress) -> Presence:
        """A watch over a function as it is now, allowed or not. DeviceGone."""
        kind = Presence if self._real else PlainPresence
        return kind(f"{self._devices}/{address}/resource", str(address))

    def config_size(self, address: PciAddress) -> int:
        """256 or 4096 bytes. Reads no config space."""
        try:
            return os.stat(self._path(address, "config")).st_size
        except OSError as error:
            raise DeviceGone(f"{address} config: {error.strerror}") from error

    def open_config(self, address: PciAddress, *, writable: bool) -> SysfsFile:
        """Config space through sysfs. ReadOnly."""
        path = self._path(address, "config")
        if writable:
            self._check_writable(address, f"{address} config")
        return SysfsFile(path, what=f"{address} config", writable=writable)

    def command(self, address: PciAddress) -> int:
        """The command register, read from config space. DeviceGone."""
        self._check_allowed(address)
        raw = self._bytes(address, "config", 2, COMMAND_OFFSET)
        if len(raw) < 2:
            raise DeviceGone(f"{address} config: the command register cannot be read")
        return int.from_bytes(raw, "little")

    def set_command(self, address: PciAddress, value: int) -> None:
        """Write the command register, 2 bytes of config space. DeviceGone, KernelRefused."""
        config = self.open_config(address, writable=True)
        try:
            config.write(COMMAND_OFFSET, value.to_bytes(2, "little"))
        finally:
            config.close()

    def sleeping(self, address: PciAddress) -> str | None:
        """How a function sleeps, `D3hot` or `suspended`; None: it is awake, or not known to sleep.

        DeviceGone. What the kernel knows is asked for, not the function: nothing is woken.
        """
        state = self._low_power(address)
        if state is not None:
            return state
        runtime = self.attribute(address, "power/runtime_status")
        return runtime if runtime in {"suspended", "suspending"} else None

    def _low_power(self, address: PciAddress) -> str | None:
        """Its state, if it is one in which a function does not answer at its BARs.

        As the kernel has it: nothing is woken (PCI Power Management 1.2, 5.4).
        """
        self._check_allowed(address)
        try:
            state = self._text(address, "power_state").strip()
        except DeviceGone:  # or a kernel that does not tell
            return None
        return state if state in {"D1", "D2", "D3hot", "D3cold"} else None

    def obstacle(
        self, address: PciAddress, resource: Resource, command: int | None
    ) -> Cause | None:
        """What keeps a BAR from answering, as its command register has it; None: nothing known.

        A command of None is one that is not known. Touches no device.
        """
        if not resource.assigned:
            return Cause(
                "the kernel has given it no address",
                advice="reboot with pci=realloc on the kernel's command line",
            )
        space, bit = ("memory", COMMAND_MEMORY) if resource.is_memory else ("I/O", COMMAND_IO)
        if command is None or (command & bit and command != COMMAND_ABSENT):
            return None
        if self.is_virtual(address):
            return None
        if command == COMMAND_ABSENT:
            return self.silence(address)
        return Cause(
            f"{space} decoding is off in the command register", self._mend_decoding(address, bit)
        )

    def silence(self, address: PciAddress) -> Cause:
        """Of a function whose config space reads all ones. Touches no device."""
        return Cause(
            "the device does not answer, its config space reads all ones: its link is down or its "
            "power off",
            self.mend_sleep(address) if self.sleeping(address) else self._mend_silence(address),
        )

    def _check_decoded(self, address: PciAddress, index: int, resource: Resource) -> None:
        """Reads the command register, unless the function sleeps: that would wake it for a moment.

        With decoding off, or asleep, a BAR reads all ones, which is no data.
        """
        state = self._low_power(address)
        if state is not None:
            asleep = Cause(f"the device sleeps ({state})", self.mend_sleep(address))
            raise NotDecoded(f"{address} bar{index}: {asleep}")
        command = self.command(address) if resource.assigned else None
        obstacle = self.obstacle(address, resource, command)
        if obstacle is not None:
            raise NotDecoded(f"{address} bar{index}: {obstacle}")

    def _mend_decoding(self, address: PciAddress, bit: int) -> str:
        """The command that turns decoding on."""
        # The kernel counts: only the step from 0 to 1 writes the command register
        # (drivers/pci/pci.c, pci_enable_device_flags). It takes none while there is a driver
        # (drivers/pci/pci-sysfs.c, enable_store).
        counted = self.attribute(address, "enable") not in {None, "0"}
        if not counted and self.driver(address) is None:
            return f"echo 1 > {self._quoted(address, 'enable')}"
        # Of a copy; else setpci would write to this machine's own device.
        path = f"{self.sysfs}/bus/pci"
        other = (
            "" if path == "/sys/bus/pci" else f"-A linux-sysfs -O sysfs.path={shlex.quote(path)} "
        )
        return f"setpci {other}-s {address} COMMAND={bit}:{bit}"

    def mend_sleep(self, address: PciAddress) -> str:
        """The command that wakes a function up and keeps it awake."""
        return f"echo on > {self._quoted(address, 'power/control')}"

    def _mend_silence(self, address: PciAddress) -> str:
        """The command that forgets a function that does not answer, and looks for it anew."""
        return f"echo 1 > {self._quoted(address, 'remove')} && {self.mend_absence()}"

    def mend_absence(self) -> str:
        """The command that looks for functions anew."""
        return f"echo 1 > {shlex.quote(str(self.sysfs / 'bus/pci/rescan'))}"

    def mend_driver(self, address: PciAddress) -> str:
        """The command that takes a function from its driver."""
        return f"echo {address} > {self._quoted(address, 'driver/unbind')}"

    def _quoted(self, address: PciAddress, name: str) -> str:
        """The path of an attribute for a shell."""
        return shlex.quote(self._path(address, name))

    def can_combine(self, address: PciAddress, index: int) -> bool:
        """Whether the kernel offers to map a BAR write-combining.

        It does for prefetchable ones, on machines with such mappings (drivers/pci/pci-sysfs.c,
        pci_create_resource_files).
        """
        return os.path.exists(self._path(address, f"resource{index}_wc"))

    def open_bar(
        self,
        address: PciAddress,
        index: int,
        *,
        writable: bool,
        offset: int = 0,
        size: int | None = None,
        resource: Resource | None = None,
        combine: bool = False,
    ) -> Aperture:
        """Open a BAR, or `size` bytes of it from `offset`. A memory BAR is mapped uncached.

        `resource` is the BAR's, where it is known already. With `combine` it is mapped
        write-combining, if it can be (`can_combine`). Reads the command register, not the BAR.
        Raises NotDecoded, DriverOwns, KernelRefused, DeviceGone, NoSuchNode, ReadOnly, and
        NoSuchAddress for a part that is not inside.
        """
        if resource is None:
            resource = self.bar(address, index)
        if size is None:
            size = resource.size
        check_window(f"{address} bar{index}", offset, size, resource.size)
        if writable:
            self._check_writable(address, f"{address} bar{index}")
        self._check_decoded(address, index, resource)
        what = f"{address} bar{index}"
        if (offset, size) != (0, resource.size):
            what += f"@{offset:x}+{size:x}"
        path = self._path(address, f"resource{index}")
        base = resource.start + offset
        if not resource.is_memory:
            return PortAperture(path, offset, size, what=what, base=base, writable=writable)
        memory_like = resource.prefetchable
        if self._bars_via is not None:
            return self._bars_via.map_device(
                base, size, what=what, memory_like=memory_like, writable=writable
            )
        # A mapping of resourceN starts with the page that holds the BAR's first byte
        # (drivers/pci/mmap.c), and BARs smaller than a page may share one.
        skip = resource.start % PAGE_SIZE if self._real else 0
        return MappedAperture(
            f"{path}_wc" if combine else path,
            skip + offset,
            size,
            what=what,
            base=base,
            memory_like=memory_like,
            writable=writable,
            refuse=partial(self._refuse_resource, address),
        )

    def _refuse_resource(
        self, address: PciAddress, what: str, error: OSError, start: int, length: int
    ) -> BarfsError:
        """What the kernel means when it does not map resourceN."""
        if error.errno != errno.EINVAL:
            return refuse_mapping(what, error, start, length)
        # iomem_is_exclusive(): a driver has the range and IO_STRICT_DEVMEM is on.
        driver = self.driver(address)
        owner = f"the driver {driver}" if driver else "a driver (see /proc/iomem)"
        return DriverOwns(f"{what}: {owner} owns the range")
