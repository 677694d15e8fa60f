"""Whether a function sleeps, as far as the kernel knows. Nothing is woken to find out."""

from typing import Final

from barfs.machine.functions import Functions
from barfs.names import PciAddress

# States in which a function does not answer at its BARs (PCI Power Management 1.2, 5.4).
_LOW_POWER: Final = frozenset(("D1", "D2", "D3hot", "D3cold"))


def low_power(pci: Functions, address: PciAddress) -> str | None:
    """A function's power state, if it does not answer at its BARs in it. Raises DeviceGone."""
    state = pci.attribute(address, "power_state")
    return state if state in _LOW_POWER else None


def sleeping(pci: Functions, address: PciAddress) -> str | None:
    """How a function sleeps, `D3hot` or `suspended`; None: it is awake, or not known to sleep.

    Raises DeviceGone.
    """
    state = low_power(pci, address)
    if state is not None:
        return state
    runtime = pci.attribute(address, "power/runtime_status")
    return runtime if runtime in {"suspended", "suspending"} else None
