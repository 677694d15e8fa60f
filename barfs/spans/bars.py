"""Opening BARs: their apertures, of the function's own files in sysfs or through /dev/mem."""

import errno
import os
from functools import partial

from barfs.access.apertures import Aperture, MappedAperture, PortAperture, refuse_mapping
from barfs.access.files import PAGE_SIZE
from barfs.diagnosis.obstacles import low_power, mend_sleep, obstacle
from barfs.errors import BarfsError, Cause, DriverOwns, FunctionPart, Mmap, NotDecoded, What
from barfs.machine.functions import PciBus
from barfs.machine.resources import Resource, check_window
from barfs.names import AddressRange, BarName, PciAddress


def can_combine(pci: PciBus, address: PciAddress, index: int) -> bool:
    """Whether the kernel offers to map a BAR write-combining.

    It does for prefetchable ones, on machines with such mappings (drivers/pci/pci-sysfs.c,
    pci_create_resource_files).
    """
    return os.path.exists(pci.path(address, f"resource{index}_wc"))


def open_bar(
    pci: PciBus,
    address: PciAddress,
    index: int,
    *,
    writable: bool,
    offset: int = 0,
    size: int | None = None,
    resource: Resource | None = None,
    combine: bool = False,
) -> Aperture:
    """Open a BAR, or `size` bytes of it from `offset`. A memory BAR is mapped uncached.

    `resource` is the BAR's, where it is known already. With `combine` it is mapped
    write-combining, if it can be (`can_combine`). Reads the command register, not the BAR.
    Raises NotDecoded, DriverOwns, KernelRefused, DeviceGone, NoSuchNode, ReadOnly, and
    NoSuchAddress for a part that is not inside.
    """
    if resource is None:
        resource = pci.bar(address, index)
    if size is None:
        size = resource.size
    bar = FunctionPart(address, BarName(index))
    check_window(bar, offset, size, resource.size)
    if writable:
        pci.check_writable(address, bar)
    _check_decoded(pci, address, bar, resource)
    is_whole = (offset, size) == (0, resource.size)
    window = None if is_whole else AddressRange.of(offset, size)
    what = FunctionPart(address, BarName(index, window))
    path = pci.path(address, f"resource{index}")
    base = resource.start + offset
    if not resource.is_memory:
        return PortAperture(path, offset, size, what=what, base=base, writable=writable)
    memory_like = resource.prefetchable
    if pci.bars_via is not None:
        return pci.bars_via.map_device(
            base, size, what=what, memory_like=memory_like, writable=writable
        )
    # A mapping of resourceN starts with the page that holds the BAR's first byte
    # (drivers/pci/mmap.c), and BARs smaller than a page may share one.
    skip = resource.start % PAGE_SIZE if pci.is_real else 0
    return MappedAperture(
        f"{path}_wc" if combine else path,
        skip + offset,
        size,
        what=what,
        base=base,
        memory_like=memory_like,
        writable=writable,
        refuse=partial(_refuse_resource, pci=pci, address=address),
    )


def _check_decoded(pci: PciBus, address: PciAddress, bar: FunctionPart, resource: Resource) -> None:
    """Reads the command register, unless the function sleeps: that would wake it for a moment.

    With decoding off, or asleep, a BAR reads all ones, which is no data.
    """
    state = low_power(pci, address)
    if state is not None:
        asleep = Cause(f"the device sleeps ({state})", mend_sleep(pci, address))
        raise NotDecoded(str(asleep), what=bar)
    command = pci.command(address) if resource.assigned else None
    cause = obstacle(pci, address, resource, command)
    if cause is not None:
        raise NotDecoded(str(cause), what=bar)


def _refuse_resource(
    what: What, during: Mmap, error: OSError, start: int, *, pci: PciBus, address: PciAddress
) -> BarfsError:
    """What the kernel means when it does not map resourceN."""
    if error.errno != errno.EINVAL:
        return refuse_mapping(what, during, error, start)
    # iomem_is_exclusive(): a driver has the range and IO_STRICT_DEVMEM is on.
    driver = pci.driver(address)
    owner = f"the driver {driver}" if driver else "a driver (see /proc/iomem)"
    return DriverOwns(f"{owner} owns the range", what=what, during=during, system=error)
