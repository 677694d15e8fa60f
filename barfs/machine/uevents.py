"""The kernel's messages of PCI functions that come and go: uevents, through libudev."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from barfs.names import PciAddress

log = logging.getLogger(__name__)


class Watch:
    """Hears which functions are added, removed, bound and unbound, while `run` runs.

    Nothing depends on these messages alone. An open file looks by itself whether its device is
    there.
    """

    def __init__(self) -> None:
        self._monitor: Any = None  # pyudev has no types
        self._tell: Callable[[PciAddress, str], None] = lambda _address, _action: None
        self._tell_lost: Callable[[], None] = lambda: None
        self._heard = 0
        self._is_first_namespace = False

    @property
    def hears_all(self) -> bool:
        """Whether the kernel sends each message here.

        It sends none to network namespaces that belong to another user namespace than the first
        (lib/kobject_uevent.c, uevent_net_init).
        """
        return self._monitor is not None and self._is_first_namespace

    def stamp(self) -> int | None:
        """A number that changes with each message. None if no messages can be heard."""
        return None if self._monitor is None else self._heard

    def hear(self) -> None:
        """Take in the messages that wait, so that everything that the kernel did is known."""
        if self._monitor is not None:
            self._hear()

    async def run(
        self, tell: Callable[[PciAddress, str], None], tell_lost: Callable[[], None] = lambda: None
    ) -> None:
        """Call `tell` for each message with the function's address and `add`, `remove`, ...

        `tell_lost` is called when messages were lost. It runs until it is cancelled. It returns at
        once if there is no libudev, or no netlink.
        """
        # They are needed only for a real sysfs, and are slow to import.
        import trio  # noqa: PLC0415

        try:
            import pyudev  # noqa: PLC0415

            monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
            monitor.filter_by("pci")
            monitor.start()
        except (ImportError, OSError) as error:
            log.info("no uevents: %s", error)
            return
        self._tell, self._tell_lost = tell, tell_lost
        self._is_first_namespace = _is_first_namespace()
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
            log.warning("uevents were lost: %s", error.strerror or error)
            self._tell_lost()


def _is_first_namespace() -> bool:
    """Whether this process is in the first user namespace, which maps all users to themselves."""
    try:
        users = Path("/proc/self/uid_map").read_text()
    except OSError:
        return False
    return users.split() == ["0", "0", "4294967295"]
