"""What the kernel says of PCI functions that come and go: uevents, through libudev."""

import logging
from collections.abc import Callable

import trio

from barfs.names import PciAddress

log = logging.getLogger(__name__)


async def watch(tell: Callable[[PciAddress, str], None]) -> None:
    """Call `tell` with each function's address and add, remove, bind, unbind, ..., until cancelled.

    Returns at once where there is no libudev, or no netlink: nothing depends on these messages
    alone, as an open file looks itself whether its device is there.
    """
    # Needed only where a real sysfs is mounted, and it takes its time.
    try:
        import pyudev  # noqa: PLC0415

        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        monitor.filter_by("pci")
        monitor.start()
    except (ImportError, OSError) as error:
        log.info("no uevents: %s", error)
        return
    while True:
        await trio.lowlevel.wait_readable(monitor)
        try:
            while (device := monitor.poll(0)) is not None:
                address = PciAddress.parse(device.sys_name)
                if address is not None and device.action is not None:
                    tell(address, device.action)
        except OSError as error:
            # ENOBUFS: there were more than the socket holds (netlink(7)).
            log.warning("uevents were lost: %s", error.strerror)
