"""What the kernel says of PCI functions that come and go: uevents, through libudev."""

import logging
from collections.abc import Callable
from typing import Any

from barfs.names import PciAddress

log = logging.getLogger(__name__)


class Watch:
    """Hears what functions are added, removed, bound, unbound, while `run` does.

    Nothing depends on these messages alone: an open file looks itself whether its device is there.
    """

    def __init__(self) -> None:
        self._monitor: Any = None  # pyudev has no types
        self._tell: Callable[[PciAddress, str], None] = lambda _address, _action: None
        self._heard = 0

    def stamp(self) -> int | None:
        """A number that is another one after each message heard; None if none can be heard."""
        return None if self._monitor is None else self._heard

    def hear(self) -> None:
        """Hear the messages that wait, and tell of them, so that what the kernel did is known."""
        if self._monitor is not None:
            self._hear()

    async def run(self, tell: Callable[[PciAddress, str], None]) -> None:
        """Call `tell` with each function's address and add, remove, ..., until cancelled.

        Returns at once where there is no libudev, or no netlink.
        """
        # Needed only where a real sysfs is mounted, and they take their time.
        import trio  # noqa: PLC0415

        try:
            import pyudev  # noqa: PLC0415

            monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
            monitor.filter_by("pci")
            monitor.start()
        except (ImportError, OSError) as error:
            log.info("no uevents: %s", error)
            return
        self._tell = tell
        self._monitor = monitor
        try:
            while True:
                await trio.lowlevel.wait_readable(monitor)
                self._hear()
        finally:
            self._monitor = None

    def _hear(self) -> None:
        try:
            while (device := self._monitor.poll(0)) is not None:
                self._heard += 1
                address = PciAddress.parse(device.sys_name)
                if address is not None and device.action is not None:
                    self._tell(address, device.action)
        except OSError as error:
            # ENOBUFS: there were more than the socket holds (netlink(7)).
            self._heard += 1
            log.warning("uevents were lost: %s", error.strerror)
