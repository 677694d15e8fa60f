"""Commands for root's shell that mend what keeps a device from answering. Touches no device."""

import shlex
from typing import Final

from barfs.machine.configspace import PowerControl
from barfs.machine.functions import Functions
from barfs.machine.resources import Resource
from barfs.names import PciAddress

# The drivers of the two ways to BARs that lockdown leaves open.
VFIO_DRIVER: Final = "vfio-pci"
UIO_DRIVER: Final = "uio_pci_generic"

# Drivers that functions are given to by hand. The kernel forgets that along with the function.
_GIVEN_BY_HAND: Final = frozenset((VFIO_DRIVER, UIO_DRIVER, "pci-stub"))


def _quoted(pci: Functions, address: PciAddress, name: str) -> str:
    """The path of an attribute for a shell."""
    return shlex.quote(pci.path(address, name))


def _setpci(pci: Functions, address: PciAddress, *settings: str) -> str:
    # For a copy of sysfs setpci is told where it is. Otherwise it would write to this machine's
    # device.
    path = f"{pci.source.sysfs}/bus/pci"
    other = "" if path == "/sys/bus/pci" else f"-A linux-sysfs -O sysfs.path={shlex.quote(path)} "
    return f"setpci {other}-s {address} {' '.join(settings)}"


def turn_decoding_on(pci: Functions, address: PciAddress, bit: int) -> str:
    """The command that turns decoding on, by its bit in the command register."""
    # The kernel counts how often a function is enabled. Only the step from 0 to 1 writes the
    # command register (drivers/pci/pci.c, pci_enable_device_flags). While there is a driver the
    # kernel refuses the step (drivers/pci/pci-sysfs.c, enable_store).
    if _kernel_can_enable(pci, address):
        return f"echo 1 > {_quoted(pci, address, 'enable')}"
    return _setpci(pci, address, f"COMMAND={bit}:{bit}")


def _kernel_can_enable(pci: Functions, address: PciAddress) -> bool:
    counted = pci.attribute(address, "enable") not in {None, "0"}
    return not counted and pci.driver(address) is None


def wake(pci: Functions, address: PciAddress) -> str:
    """The command that wakes up a function of which the kernel knows that it sleeps.

    The kernel is told not to let it sleep. If it has been told that already, what put the function
    to sleep was not the kernel's power management at run time, and that does not wake it.
    """
    if pci.attribute(address, "power/control") != "on":
        return f"echo on > {_quoted(pci, address, 'power/control')}"
    if _kernel_can_enable(pci, address):
        return f"echo 1 > {_quoted(pci, address, 'enable')}"
    return _setpci(pci, address, "CAP_PM+4.w=0:3")


def wake_unknown(
    pci: Functions, sleeper: PciAddress, control: PowerControl, wanted: PciAddress
) -> str:
    """The command that wakes up a function of which the kernel does not know that it sleeps.

    It is `wanted` itself or a bridge above. One that does not keep its settings has lost its
    addresses then, and is looked for anew.
    """
    power_on = _setpci(pci, sleeper, "CAP_PM+4.w=0:3")
    if control.keeps_settings:
        return power_on
    return f"{power_on} && {look_anew_after_reset(pci, sleeper, wanted)}"


def look_anew(pci: Functions, address: PciAddress) -> str:
    """The command that has the kernel forget a function, and look for it anew."""
    return f"echo 1 > {_quoted(pci, address, 'remove')} && {look_for_functions(pci)}"


def look_anew_after_reset(pci: Functions, forgotten: PciAddress, wanted: PciAddress) -> str:
    """The command that has the kernel look anew for a function whose decoding a reset turned off.

    `forgotten` is `wanted` itself or a bridge above. Looking for a function does not turn decoding
    on; its driver does that.
    """
    command = look_anew(pci, forgotten)
    driver = pci.driver(wanted)
    if driver is not None and driver not in _GIVEN_BY_HAND:
        return command
    return f"{command} && echo 1 > {_quoted(pci, wanted, 'enable')}"


def look_for_functions(pci: Functions) -> str:
    """The command that has the kernel look for functions anew."""
    return f"echo 1 > {shlex.quote(str(pci.source.sysfs / 'bus/pci/rescan'))}"


def take_from_driver(pci: Functions, address: PciAddress) -> str:
    """The command that takes a function from its driver."""
    return f"echo {address} > {_quoted(pci, address, 'driver/unbind')}"


def bind(pci: Functions, address: PciAddress, driver: str) -> str:
    """The command that binds a function to a driver, and takes it from the one that it has."""
    unbind = f" && {take_from_driver(pci, address)}" if pci.driver(address) is not None else ""
    probe = shlex.quote(str(pci.source.sysfs / "bus/pci/drivers_probe"))
    override = _quoted(pci, address, "driver_override")
    return f"echo {driver} > {override}{unbind} && echo {address} > {probe}"


def open_window(pci: Functions, bridge: PciAddress, window: Resource, first: int) -> str:
    """The command that sets a bridge's window as the kernel has it, from bus address `first`."""
    last = first + window.size - 1
    if not window.is_memory:
        settings = {
            "IO_BASE.b": first >> 8 & 0xF0,
            "IO_LIMIT.b": last >> 8 & 0xF0,
            "IO_BASE_UPPER16": first >> 16,
            "IO_LIMIT_UPPER16": last >> 16,
        }
    elif not window.prefetchable:
        settings = {"MEMORY_BASE": first >> 16 & 0xFFF0, "MEMORY_LIMIT": last >> 16 & 0xFFF0}
    else:
        settings = {
            "PREF_MEMORY_BASE": first >> 16 & 0xFFF0,
            "PREF_MEMORY_LIMIT": last >> 16 & 0xFFF0,
            "PREF_BASE_UPPER32": first >> 32,
            "PREF_LIMIT_UPPER32": last >> 32,
        }
    return _setpci(pci, bridge, *(f"{name}={value:x}" for name, value in settings.items()))
