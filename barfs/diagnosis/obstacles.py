"""What keeps a function's BARs from answering, and the commands that mend it. Touches no device."""

import shlex

from barfs.errors import Cause
from barfs.machine.configspace import COMMAND_ABSENT, COMMAND_IO, COMMAND_MEMORY
from barfs.machine.functions import Functions
from barfs.machine.resources import Resource
from barfs.names import PciAddress


def sleeping(pci: Functions, address: PciAddress) -> str | None:
    """How a function sleeps, `D3hot` or `suspended`; None: it is awake, or not known to sleep.

    DeviceGone. What the kernel knows is asked for, not the function: nothing is woken.
    """
    state = low_power(pci, address)
    if state is not None:
        return state
    runtime = pci.attribute(address, "power/runtime_status")
    return runtime if runtime in {"suspended", "suspending"} else None


def low_power(pci: Functions, address: PciAddress) -> str | None:
    """Its power state, if a function does not answer at its BARs in it; DeviceGone.

    As the kernel has it: nothing is woken (PCI Power Management 1.2, 5.4).
    """
    state = pci.attribute(address, "power_state")
    return state if state in {"D1", "D2", "D3hot", "D3cold"} else None


def obstacle(
    pci: Functions, address: PciAddress, resource: Resource, command: int | None
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
    if pci.is_virtual(address):
        return None
    if command == COMMAND_ABSENT:
        return silence(pci, address)
    return Cause(
        f"{space} decoding is off in the command register", _mend_decoding(pci, address, bit)
    )


def silence(pci: Functions, address: PciAddress) -> Cause:
    """Of a function whose config space reads all ones. Touches no device."""
    return Cause(
        "the device does not answer, its config space reads all ones: its link is down or its "
        "power off",
        mend_sleep(pci, address) if sleeping(pci, address) else _mend_silence(pci, address),
    )


def _mend_decoding(pci: Functions, address: PciAddress, bit: int) -> str:
    """The command that turns decoding on."""
    # The kernel counts: only the step from 0 to 1 writes the command register
    # (drivers/pci/pci.c, pci_enable_device_flags). It takes none while there is a driver
    # (drivers/pci/pci-sysfs.c, enable_store).
    counted = pci.attribute(address, "enable") not in {None, "0"}
    if not counted and pci.driver(address) is None:
        return f"echo 1 > {_quoted(pci, address, 'enable')}"
    # Of a copy; else setpci would write to this machine's own device.
    path = f"{pci.source.sysfs}/bus/pci"
    other = "" if path == "/sys/bus/pci" else f"-A linux-sysfs -O sysfs.path={shlex.quote(path)} "
    return f"setpci {other}-s {address} COMMAND={bit}:{bit}"


def mend_sleep(pci: Functions, address: PciAddress) -> str:
    """The command that wakes a function up and keeps it awake."""
    return f"echo on > {_quoted(pci, address, 'power/control')}"


def _mend_silence(pci: Functions, address: PciAddress) -> str:
    """The command that forgets a function that does not answer, and looks for it anew."""
    return f"echo 1 > {_quoted(pci, address, 'remove')} && {mend_absence(pci)}"


def mend_absence(pci: Functions) -> str:
    """The command that looks for functions anew."""
    return f"echo 1 > {shlex.quote(str(pci.source.sysfs / 'bus/pci/rescan'))}"


def mend_driver(pci: Functions, address: PciAddress) -> str:
    """The command that takes a function from its driver."""
    return f"echo {address} > {_quoted(pci, address, 'driver/unbind')}"


def _quoted(pci: Functions, address: PciAddress, name: str) -> str:
    """The path of an attribute for a shell."""
    return shlex.quote(pci.path(address, name))
