"""Whether a function is still there, with its resources where they were."""

import os
import time
from collections.abc import Mapping
from typing import Final

from barfs.access.files import PAGE_SIZE, StrPath, open_file
from barfs.errors import DeviceGone, FunctionPart
from barfs.machine.resources import Resource, parse_resources
from barfs.names import PciAddress

# A time of change is that of the kernel's last clock tick. Ticks are at most 10 ms apart. Only
# after that a second change is sure to show.
_TICK: Final = 20_000_000  # ns


def settled(changed: int) -> int | None:
    """A time of change in ns. None if a change right now could have the same time."""
    return changed if time.time_ns() - changed > _TICK else None


class Presence:
    """Tells whether a function is still there, with its resources where they were.

    A mapping outlives its device, and another device may come to lie at its addresses. The open
    `resource` of sysfs knows: when the function was removed it gives ENODEV for ever, whatever is
    plugged in at the same place later. One check is one read of `resource`, which takes about 1 us.
    Config space is not read.
    """

    def __init__(self, path: StrPath, address: PciAddress) -> None:
        self._what = what = FunctionPart(address)
        self._lost: DeviceGone | None = None  # why it is gone, when it is
        self._fd = open_file(path, what, writable=False)
        try:
            self._then = self._read()
        except BaseException:
            os.close(self._fd)
            raise

    def _read(self) -> bytes:
        try:
            return os.pread(self._fd, PAGE_SIZE, 0)
        except OSError as error:
            sentence = f"the device is gone ({error.strerror})"
            raise DeviceGone(sentence, what=self._what, system=error) from error

    def resources(self, address: PciAddress) -> Mapping[int, Resource]:
        """BARs and expansion ROM as they were when the watch began."""
        return parse_resources(address, self._then.rstrip(b"\0").decode(errors="replace"))

    def check(self) -> None:
        """DeviceGone if it has gone or moved since. This stays so even if it comes back."""
        if self._lost is not None:
            raise self._lost.restated(DeviceGone)
        try:
            self._look()
        except DeviceGone as error:
            self.lose(error)
            raise

    def lose(self, error: DeviceGone) -> None:
        """Take it for gone, for good: somebody else has found that out."""
        self._lost = error.restated(DeviceGone)  # without its traceback

    def _look(self) -> None:
        """DeviceGone if it is not there now, or has moved."""
        if self._read() != self._then:
            raise DeviceGone("its resources have changed since it was opened", what=self._what)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class PlainPresence(Presence):
    """A watch over a simulated function. When it goes, only the name of its plain file goes.

    A change of the file shows in its time of change, if that is old enough.
    """

    _changed: int | None = None  # None before the first look, and when it is lost

    def check(self) -> None:
        """See Presence."""
        now = os.fstat(self._fd)
        if now.st_nlink == 0 or now.st_ctime_ns != self._changed:
            super().check()

    def lose(self, error: DeviceGone) -> None:
        """See Presence."""
        super().lose(error)
        self._changed = None

    def _look(self) -> None:
        now = os.fstat(self._fd)
        if now.st_nlink == 0:
            raise DeviceGone("the device is gone", what=self._what)
        if now.st_ctime_ns != self._changed:
            changed = settled(now.st_ctime_ns)
            super()._look()
            self._changed = changed
