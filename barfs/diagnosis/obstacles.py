"""What keeps a function's BARs from answering, and the commands that mend it. Touches no device."""

import shlex

from barfs.errors import Cause
from barfs.machine.configspace import COMMAND_ABSENT, COMMAND_IO, COMMAND_MEMORY
from barfs.machine.functions import Functions
from barfs.machine.resources import Resource
from barfs.names import PciAddress


def sleeping(pci: Functions, address: PciAddress) -> str | None:
    """How a function sleeps: `D3hot` or `suspended`, say. None if it is not known to sleep.

    The kernel is asked, and not the function, so nothing is woken. Raises DeviceGone.
    """
    state = low_power(pci, address)
    if state is not None:
        return state
    runtime = pci.attribute(address, "power/runtime_status")
    return runtime if runtime in {"suspended", "suspending"} else None


def low_power(pci: Functions, address: PciAddress) -> str | None:
    """A function's power state, if its BARs do not answer in that state. None if they do.

    The kernel is asked, and not the function, so nothing is woken (PCI Power Management 1.2, 5.4).
    Raises DeviceGone.
    """
    state = pci.attribute(address, "power_state")
    return state if state in {"D1", "D2", "D3hot", "D3cold"} else None


def obstacle(
    pci: Functions, address: PciAddress, resource: Resource, command: int | None
) -> Cause | None:
    """What keeps a BAR from answering. None if nothing is known that does.

    `command` is the value of the function's command register, None if it is not known. Touches no
    device.
    """
    if not resource.assigned:
        return Cause(
            "the kernel has given it no address",
            advice="reboot with pci=realloc on the kernel's command line",
        )
    space, bit = ("memory", COMMAND_MEMORY) if resource.is_memory else ("I/O", COMMAND_IO)
    if command is None or (command & bit and command != COMMAND_ABSENT):
        return None
    if pci.is_virtual(address):
        return None
    if command == COMMAND_ABSENT:
        return silence(pci, address)
    return Cause(
        f"{space} decoding is off in the command register", _mend_decoding(pci, address, bit)
    )


def silence(pci: Functions, address: PciAddress) -> Cause:
    """Why config space of a function reads all ones. Touches no device."""
    return Cause(
        "the device does not answer, its config space reads all ones: its link is down or its "
        "power off",
        mend_sleep(pci, address) if sleeping(pci, address) else _mend_silence(pci, address),
    )


def _mend_decoding(pci: Functions, address: PciAddress, bit: int) -> str:
    """The command that turns decoding on."""
    # The kernel counts how often a function is enabled. Only the step from 0 to 1 writes the
    # command register (drivers/pci/pci.c, pci_enable_device_flags). While there is a driver the
    # kernel refuses the step (drivers/pci/pci-sysfs.c, enable_store).
    counted = pci.attribute(address, "enable") not in {None, "0"}
    if not counted and pci.driver(address) is None:
        return f"echo 1 > {_quoted(pci, address, 'enable')}"
    # For a copy of sysfs setpci is told where it is. Otherwise it would write to this machine's
    # device.
    path = f"{pci.source.sysfs}/bus/pci"
    other = "" if path == "/sys/bus/pci" else f"-A linux-sysfs -O sysfs.path={shlex.quote(path)} "
    return f"setpci {other}-s {address} COMMAND={bit}:{bit}"


def mend_sleep(pci: Functions, address: PciAddress) -> str:
    """The command that wakes a function up and keeps it awake."""
    return f"echo on > {_quoted(pci, address, 'power/control')}"


def _mend_silence(pci: Functions, address: PciAddress) -> str:
    """The command that has the kernel forget a silent function and look for it anew."""
    return f"echo 1 > {_quoted(pci, address, 'remove')} && {mend_absence(pci)}"


def mend_absence(pci: Functions) -> str:
    """The command that has the kernel look for functions anew."""
    return f"echo 1 > {shlex.quote(str(pci.source.sysfs / 'bus/pci/rescan'))}"


def mend_driver(pci: Functions, address: PciAddress) -> str:
    """The command that takes a function from its driver."""
    return f"echo {address} > {_quoted(pci, address, 'driver/unbind')}"


def mend_vfio(pci: Functions, address: PciAddress) -> str:
    """The command that binds a function to vfio-pci, which takes it from its driver."""
    unbind = f" && {mend_driver(pci, address)}" if pci.driver(address) is not None else ""
    probe = shlex.quote(str(pci.source.sysfs / "bus/pci/drivers_probe"))
    override = _quoted(pci, address, "driver_override")
    return f"echo vfio-pci > {override}{unbind} && echo {address} > {probe}"


def _quoted(pci: Functions, address: PciAddress, name: str) -> str:
    """The path of an attribute for a shell."""
    return shlex.quote(pci.path(address, name))
