"""Whether a BAR is where the kernel has put it, also on hosts whose bus has other addresses.

What sysfs's `resource` has are the CPU's addresses, and what BARs have are those of the bus. On
most machines the two are the same. On others a host bridge adds an offset, the same for all that is
behind it, and only other functions tell whether a BAR that differs by one is right.
"""

from collections.abc import Iterator

from barfs.errors import BarfsError
from barfs.machine.configspace import Header, header_of
from barfs.machine.functions import AllFunctions, Functions
from barfs.machine.power import low_power
from barfs.machine.resources import ROM_RESOURCE, Resource
from barfs.names import PciAddress


def register_of(header: Header, index: int, resource: Resource) -> int | None:
    """The bus address in a BAR's registers; None where they are not for the kernel to set.

    Those of the ROM are set when it is read. Enhanced Allocation and IDE in compatibility mode have
    addresses of their own, which the kernel marks as fixed.
    """
    if index == ROM_RESOURCE or resource.is_fixed or not resource.assigned:
        return None
    return header.bar(index, is_memory=resource.is_memory, is_64bit=resource.is_64bit)


def offsets_elsewhere(
    functions: Functions, address: PciAddress, *, is_memory: bool
) -> Iterator[int]:
    """The offsets that other functions of the same host bridge tell of, for memory or for ports.

    Those of the same device are left out, as they are reset with it, and so are functions that
    sleep. Reads config space of one function after the other.
    """
    everything = functions.everything
    host = everything.lineage(address).host
    for other in everything.addresses():
        if other[:3] == address[:3]:
            continue
        try:
            behind = everything.lineage(other).host == host
            if behind and not everything.is_virtual(other) and low_power(everything, other) is None:
                yield from _offsets_of(everything, other, is_memory=is_memory)
        except BarfsError:
            continue


def _offsets_of(functions: AllFunctions, address: PciAddress, *, is_memory: bool) -> Iterator[int]:
    header = header_of(functions, address)
    for index, resource in functions.resources(address).items():
        register = register_of(header, index, resource)
        if resource.is_memory == is_memory and register:
            yield resource.start - register
    if not header.is_bridge:
        return
    of_memory, of_prefetchable = header.windows.memory, header.windows.prefetchable
    for resource in functions.windows(address):
        if resource.is_memory != is_memory:
            continue
        window = header.windows.io
        if is_memory:
            window = of_prefetchable if resource.prefetchable else of_memory
        if window:
            yield resource.start - window.start


def is_in_place(
    functions: Functions, address: PciAddress, header: Header, index: int, resource: Resource
) -> bool:
    """Whether a BAR's registers have the address that the kernel gave it. Raises DeviceGone.

    They may differ from it by what other functions tell of. Where none tells, the function's other
    BARs have to differ by as much. What is not known counts as in place.
    """
    register = register_of(header, index, resource)
    if register is None or register == resource.start:
        return True
    offset = resource.start - register
    told = False
    for other in offsets_elsewhere(functions, address, is_memory=resource.is_memory):
        if other == offset:
            return True
        told = True
    # A CPU may number ports from elsewhere than 0, but never from below what is on the bus.
    if told or (offset < 0 and not resource.is_memory):
        return False
    for sibling, other_bar in functions.resources(address).items():
        found = register_of(header, sibling, other_bar)
        alike = other_bar.is_memory == resource.is_memory
        if alike and found is not None and (not found or other_bar.start - found != offset):
            return False
    return True
