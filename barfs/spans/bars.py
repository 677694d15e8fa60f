"""Opening BARs: first it is checked that they answer, then the ways to them are tried."""

from barfs.access.apertures import Aperture
from barfs.errors import FunctionPart, NotDecoded
from barfs.machine.functions import Functions
from barfs.machine.resources import Resource, check_window
from barfs.names import AddressRange, BarName, PciAddress
from barfs.spans.ways import BarPart, Ways


def can_combine(pci: Functions, address: PciAddress, index: int) -> bool:
    """Whether the kernel offers to map a BAR write-combining.

    It offers that for prefetchable BARs, on machines that have such mappings
    (drivers/pci/pci-sysfs.c, pci_create_resource_files).
    """
    return pci.source.exists(pci.path(address, f"resource{index}_wc"))


def open_bar(
    ways: Ways,
    address: PciAddress,
    index: int,
    *,
    writable: bool,
    offset: int = 0,
    size: int | None = None,
    resource: Resource | None = None,
    combine: bool = False,
    memory_like: bool = False,
) -> Aperture:
    """Open a BAR, or `size` bytes of it from `offset`. A memory BAR is mapped uncached.

    `resource` is that of the BAR, if it is known already. `memory_like` says that it may be copied.
    With `combine` the BAR is mapped
    write-combining; `can_combine` tells whether it can be. This reads the command register, and not
    the BAR. Raises NotDecoded, DriverOwns, KernelRefused, DeviceGone, NoSuchNode, ReadOnly, and
    NoSuchAddress if the part is not inside the BAR.
    """
    pci = ways.pci
    if resource is None:
        resource = pci.bar(address, index)
    if size is None:
        size = resource.size
    bar = FunctionPart(address, BarName(index))
    check_window(bar, offset, size, resource.size)
    if writable:
        # Tree.open has asked already. This is the second line of defence.
        pci.check_writable(address, bar)
    if ways.holder is not None:
        ways.holder.decode(address, resource)
    check_answers(ways, address, index, resource)
    is_whole = (offset, size) == (0, resource.size)
    window = None if is_whole else AddressRange.of(offset, size)
    what = FunctionPart(address, BarName(index, window))
    part = BarPart(what, address, index, resource, offset, size, combine, memory_like)
    return ways.open_part(part, writable=writable)


def check_answers(ways: Ways, address: PciAddress, index: int, resource: Resource) -> None:
    """NotDecoded if a BAR is known not to answer. Raises DeviceGone.

    Reads config space, unless the function sleeps.
    """
    if ways.pci.source.recording is not None:
        return  # what was recorded had answered
    cause = ways.obstacles.of_bar(address, index, resource)
    if cause is not None:
        raise NotDecoded(str(cause), what=FunctionPart(address, BarName(index)))
