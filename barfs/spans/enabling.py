"""Decoding, turned on as long as a file is open. `--enable` does this."""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from barfs.access.files import refusal
from barfs.diagnosis.hostaddresses import is_in_place
from barfs.errors import BarfsError, DeviceGone, FunctionPart, Setting
from barfs.machine.configspace import (
    COMMAND_ABSENT,
    COMMAND_IO,
    COMMAND_MEMORY,
    COMMAND_OFFSET,
    command_of,
    header_of,
)
from barfs.machine.functions import Functions
from barfs.machine.presence import Presence
from barfs.names import PciAddress

log = logging.getLogger(__name__)

DECODING = COMMAND_IO | COMMAND_MEMORY


@dataclass
class _Hold:
    """What was done to a function for those who have a file of it open."""

    presence: Presence  # a device that is plugged in later is another one
    users: int = 0
    driver: str | None = None  # the driver when decoding was first turned on
    enabled: bool = False  # whether the kernel's `enable` counts it
    bits: int = 0  # the bits of the command register that were off before

    @property
    def is_present(self) -> bool:
        try:
            self.presence.check()
        except DeviceGone:
            return False
        return True


class Decoder:
    """Turns decoding of a function on with the first file that needs it, and off with the last.

    Decoding that a driver or somebody else turned on is left as it is. A function that may only be
    read is left as it is, too. After kill -9 decoding stays on. Several threads may use this.
    """

    def __init__(self, pci: Functions) -> None:
        self._pci = pci
        self._holds: dict[PciAddress, _Hold] = {}
        # There is one for each function, because the first file may have to wait until the device
        # has woken up.
        self._locks: defaultdict[PciAddress, Lock] = defaultdict(Lock)

    def hold(self, address: PciAddress, index: int) -> Callable[[], None]:
        """Have a BAR decoded until the returned function is called. It has to be called once.

        Reads the command register, and writes it if the bit is off. Raises DeviceGone and
        KernelRefused.
        """
        bit = COMMAND_MEMORY if self._pci.bar(address, index).is_memory else COMMAND_IO
        with self._locks[address]:
            hold = self._hold(address)
            hold.users += 1
            try:
                before = command_of(self._pci, address)
                silent = before == COMMAND_ABSENT or self._pci.is_virtual(address)
                wanted = not (silent or before & bit or self._pci.is_read_only(address))
                if wanted and self._are_in_place(address):
                    self._turn_on(address, bit, before, hold)
            except BaseException:
                self._release(address, hold)
                raise

        def release() -> None:
            with self._locks[address]:
                self._release(address, hold)

        return release

    def _hold(self, address: PciAddress) -> _Hold:
        """The hold on a function as it is now. A hold on a former one is left to its users."""
        hold = self._holds.get(address)
        if hold is None or not hold.is_present:
            hold = self._holds[address] = _Hold(self._pci.presence(address))
        return hold

    def _are_in_place(self, address: PciAddress) -> bool:
        """Whether all BARs are where the kernel has put them.

        Turned on elsewhere, they could take over the addresses of another device.
        """
        header = header_of(self._pci, address)
        resources = self._pci.resources(address)
        return all(
            is_in_place(self._pci, address, header, index, bar) for index, bar in resources.items()
        )

    def _turn_on(self, address: PciAddress, bit: int, before: int, hold: _Hold) -> None:
        if not hold.enabled and not hold.bits:
            hold.driver = self._pci.driver(address)
        # The kernel's way comes first: it wakes the function up and claims its resources. The
        # kernel writes the register only when its count goes from 0 to 1. It refuses if there is a
        # driver (drivers/pci/pci-sysfs.c, enable_store).
        if not hold.enabled and self._pci.attribute(address, "enable") == "0":
            try:
                self._set_enable(address, "1")
                hold.enabled = True
            except BarfsError as error:
                log.info("%s: not enabled: %s", address, error)
        command = command_of(self._pci, address)
        if command == COMMAND_ABSENT:
            return
        hold.bits |= command & ~before & DECODING
        if not command & bit:
            if not self._are_in_place(address):
                return
            self._set_command(address, command | bit)
            hold.bits |= bit
        log.info("%s: decoding turned on in the command register (--enable)", address)

    def _release(self, address: PciAddress, hold: _Hold) -> None:
        hold.users -= 1
        if hold.users:
            return
        # The hold may be one on a former function.
        if self._holds.get(address) is hold:
            del self._holds[address]
        try:
            if (hold.bits or hold.enabled) and hold.is_present:
                self._put_back(address, hold)
        except DeviceGone:
            pass
        except BarfsError as error:
            log.warning("%s: decoding stays on: %s", address, error)
        finally:
            hold.presence.close()

    def _put_back(self, address: PciAddress, hold: _Hold) -> None:
        driver = self._pci.driver(address)
        if driver not in {None, hold.driver}:
            log.info("%s: decoding stays on: the driver %s has come meanwhile", address, driver)
            return
        if hold.enabled:
            self._set_enable(address, "0")
        command = command_of(self._pci, address)
        if command != COMMAND_ABSENT and command & hold.bits:
            self._set_command(address, command & ~hold.bits)
            log.info("%s: decoding turned off again", address)

    def _set_enable(self, address: PciAddress, text: str) -> None:
        """Write the kernel's `enable`. Raises DeviceGone, ReadOnly, or what the kernel says."""
        path = self._pci.path(address, "enable")
        self._pci.check_writable(address, path)
        try:
            self._pci.source.write(path, text.encode())
        except OSError as error:
            raise refusal(FunctionPart(address), Setting(path, text), error) from error

    def _set_command(self, address: PciAddress, value: int) -> None:
        """Write the command register, 2 bytes of config space. Raises DeviceGone, KernelRefused."""
        config = self._pci.open_config(address, writable=True)
        try:
            config.write(COMMAND_OFFSET, value.to_bytes(2, "little"))
        finally:
            config.close()
