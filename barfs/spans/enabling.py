"""Decoding, turned on as long as a file is open. `--enable` does this."""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Final

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
from barfs.spans.sharing import Marks

log = logging.getLogger(__name__)

DECODING = COMMAND_IO | COMMAND_MEMORY

# The marks that mounts set on a function: that files of it are open, that the kernel's `enable`
# counts a mount, and each bit of the command register that a mount has turned on, by its value.
_IN_USE: Final = 0
_COUNTED: Final = 16
_BITS: Final = (COMMAND_IO, COMMAND_MEMORY)


class Later:
    """Calls in the order they come, in a thread that nobody waits for."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)

    def __call__(self, call: Callable[[], None]) -> None:
        """Have it called. Without threads it is called now."""
        if self._thread.ident is None:
            try:
                self._thread.start()
            except RuntimeError:  # there are no more threads
                call()
                return
        self._calls.put(call)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:
                log.exception("putting decoding back: unforeseen")

    def finish(self) -> None:
        """Wait for the calls that are still to be made."""
        if self._thread.ident is not None:
            self._calls.put(None)
            self._thread.join()


def _now(call: Callable[[], None]) -> None:
    call()


@dataclass
class _Hold:
    """What was done to a function for those who have a file of it open."""

    presence: Presence  # a device that is plugged in later is another one
    marks: Marks  # what other mounts are to know
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

    Several mounts may do so with the same function. Then the last file of all of them counts.

    The device may take a while to do what the last one asks for, so `later` has it done.
    """

    def __init__(self, pci: Functions, later: Callable[[Callable[[], None]], None] = _now) -> None:
        self._pci = pci
        self._later = later
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
                with hold.marks.alone():
                    self._have_decoded(address, bit, hold)
                    self._mark(hold)
            except BaseException:
                self._release(address, hold)
                raise

        def release() -> None:
            with self._locks[address]:
                self._release(address, hold)

        return partial(self._later, release)

    def _hold(self, address: PciAddress) -> _Hold:
        """The hold on a function as it is now. A hold on a former one is left to its users."""
        hold = self._holds.get(address)
        if hold is None or not hold.is_present:
            presence = self._pci.presence(address)
            try:
                hold = _Hold(presence, Marks(self._file_of(address)))
            except BaseException:
                presence.close()
                raise
            self._holds[address] = hold
        return hold

    def _file_of(self, address: PciAddress) -> str | None:
        """A file that all mounts open to tell each other of a function.

        It is the `resourceN` of a BAR, which only root may open.
        """
        index = min(self._pci.bars(address), default=None)
        return None if index is None else self._pci.path(address, f"resource{index}")

    @staticmethod
    def _mark(hold: _Hold) -> None:
        """Tell other mounts what this one does, and take over what they have done."""
        try:
            hold.marks.set(_IN_USE)
            for bit in _BITS:
                if hold.marks.of_others(bit):
                    hold.bits |= bit
                if hold.bits & bit:
                    hold.marks.set(bit)
            hold.enabled = hold.enabled or hold.marks.of_others(_COUNTED)
            if hold.enabled:
                hold.marks.set(_COUNTED)
        except OSError as error:
            log.warning("decoding: other mounts are not told: %s", error.strerror)

    def _have_decoded(self, address: PciAddress, bit: int, hold: _Hold) -> None:
        before = command_of(self._pci, address)
        silent = before == COMMAND_ABSENT or self._pci.is_virtual(address)
        wanted = not (silent or before & bit or self._pci.is_read_only(address))
        if wanted and self._are_in_place(address):
            self._turn_on(address, bit, before, hold)

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
            with hold.marks.alone():
                if not self._is_left_to_others(address, hold):
                    self._put_back(address, hold)
        except DeviceGone:
            pass
        except BarfsError as error:
            log.warning("%s: decoding stays on: %s", address, error)
        finally:
            hold.marks.close()
            hold.presence.close()

    @staticmethod
    def _is_left_to_others(address: PciAddress, hold: _Hold) -> bool:
        """Whether nothing is to be put back, or another mount is to do it. Takes marks away."""
        with contextlib.suppress(OSError):
            hold.marks.clear()
            if hold.marks.of_others(_IN_USE):
                log.info("%s: another mount has it open, and decoding stays on", address)
                return True
        return not ((hold.bits or hold.enabled) and hold.is_present)

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
