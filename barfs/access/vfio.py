"""Functions that are bound to vfio-pci. One descriptor leads to all regions of a function.

The interface is in include/uapi/linux/vfio.h and iommufd.h. VFIO works under lockdown. But it needs
an IOMMU that confines the function, so that its DMA can't reach the system's memory.
"""

import array
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from barfs.access.files import refusal
from barfs.errors import Access, What

# _IO(';', 100 + n) of include/uapi/asm-generic/ioctl.h.
_BASE: Final = ord(";") << 8 | 100
_SET_IOMMU: Final = _BASE + 2
_GROUP_GET_STATUS: Final = _BASE + 3
_GROUP_SET_CONTAINER: Final = _BASE + 4
_GROUP_GET_DEVICE_FD: Final = _BASE + 6
_DEVICE_GET_REGION_INFO: Final = _BASE + 8
_DEVICE_SET_IRQS: Final = _BASE + 10
_DEVICE_BIND_IOMMUFD: Final = _BASE + 18

_TYPE1_IOMMU: Final = 1
_NOIOMMU_IOMMU: Final = 8

_GROUP_VIABLE: Final = 1

# struct vfio_region_info, and its flags.
_REGION: Final = struct.Struct("IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
_READ: Final = 1
_WRITE: Final = 2
_MMAP: Final = 4
_CAPS: Final = 8

# struct vfio_info_cap_header; VFIO_REGION_INFO_CAP_*.
_CAPABILITY: Final = struct.Struct("HHI")  # id, version, next
_CAP_SPARSE_MMAP: Final = 1
_CAP_MSIX_MAPPABLE: Final = 3

# VFIO_PCI_*_REGION_INDEX: the BARs are 0 to 5.
ROM_REGION: Final = 6
CONFIG_REGION: Final = 7

# VFIO_PCI_REQ_IRQ_INDEX is signalled when the kernel wants the function back.
_REQUEST_IRQ: Final = 4
_SET_EVENTFD_TRIGGER: Final = 1 << 2 | 1 << 5

# The most bytes of an answer. The kernel's answers have some hundred bytes.
_MOST_INFORMATION: Final = 1 << 16


class NotViable(OSError):
    """The function's IOMMU group has other functions that drivers use."""


class Region(NamedTuple):
    """`size` bytes at `offset` of the device's descriptor.

    `mappable` has the parts that can be mapped, as offsets in the region, ascending.
    """

    size: int
    offset: int
    readable: bool
    writable: bool
    mappable: tuple[range, ...]


class Place(NamedTuple):
    """Where a function is opened: its iommufd device, or its group."""

    cdev: Path | None
    group: Path | None


def place_of(device: Path, dev: Path) -> Place:
    """The files by which a function can be opened, from its directory in sysfs."""
    cdev = group = None
    try:
        names = sorted(os.listdir(device / "vfio-dev"))
    except OSError:
        names = []
    if names:
        cdev = dev / "vfio/devices" / names[0]
    try:
        number = os.path.basename(os.readlink(device / "iommu_group"))
    except OSError:
        number = ""
    if number:
        for name in (number, f"noiommu-{number}"):
            if (dev / "vfio" / name).exists():
                group = dev / "vfio" / name
                break
        else:
            group = dev / "vfio" / number
    return Place(cdev, group)


class Device:
    """An opened function. Its first open resets it, and so does its last close.

    Everything that asks the kernel raises OSError.
    """

    def __init__(self, fd: int, held: Iterable[int]) -> None:
        self.fd = fd
        self._held = [*held]  # descriptors that are kept open with it: container, group or iommufd
        self._regions: dict[int, Region] = {}

    def region(self, index: int) -> Region:
        """The region of a BAR, the ROM or config space behind the descriptor."""
        found = self._regions.get(index)
        if found is None:
            found = self._regions[index] = _region(self.fd, index)
        return found

    def wanted_back(self) -> int:
        """A descriptor that becomes readable when the kernel wants the function back.

        When the function is unbound or unplugged, the kernel waits until its users close it
        (drivers/vfio/vfio_main.c, vfio_unregister_group_dev). The caller closes the descriptor.
        """
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            request = struct.pack("IIIIIi", 24, _SET_EVENTFD_TRIGGER, _REQUEST_IRQ, 0, 1, event)
            fcntl.ioctl(self.fd, _DEVICE_SET_IRQS, request)
        except BaseException:
            os.close(event)
            raise
        return event

    def close(self) -> None:
        """Give it back. The last close of a function resets it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            for held in self._held:
                os.close(held)


class RegionFile:
    """A region that VFIO reads for its caller: the expansion ROM. OSError if there is none."""

    def __init__(self, device: Device, index: int, what: What) -> None:
        region = device.region(index)
        self.size = region.size
        self._start = region.offset
        self._what = what
        self._fd = os.dup(device.fd)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes, in one read."""
        try:
            return os.pread(self._fd, length, self._start + offset)
        except OSError as error:
            raise refusal(self._what, Access("read", offset, length), error) from error

    def close(self) -> None:
        """Close the copy of the descriptor."""
        os.close(self._fd)


def _information(fd: int, index: int, length: int) -> bytearray:
    buffer = bytearray(length)
    _REGION.pack_into(buffer, 0, length, 0, index, 0, 0, 0)
    fcntl.ioctl(fd, _DEVICE_GET_REGION_INFO, buffer)
    return buffer


def _region(fd: int, index: int) -> Region:
    buffer = _information(fd, index, _REGION.size)
    needed, flags, *_ = _REGION.unpack_from(buffer)
    if flags & _CAPS and _REGION.size < needed <= _MOST_INFORMATION:
        buffer = _information(fd, index, needed)
    return parse_region(buffer)


def parse_region(buffer: bytes | bytearray) -> Region:
    """Parse the answer of VFIO_DEVICE_GET_REGION_INFO."""
    _, flags, _, at, size, offset = _REGION.unpack_from(buffer)
    mappable: tuple[range, ...] = (range(size),) if flags & _MMAP else ()
    if flags & _MMAP and flags & _CAPS:
        capabilities = dict(_capabilities(buffer, at))
        if _CAP_SPARSE_MMAP in capabilities and _CAP_MSIX_MAPPABLE not in capabilities:
            mappable = tuple(_areas(buffer, capabilities[_CAP_SPARSE_MMAP]))
    return Region(size, offset, bool(flags & _READ), bool(flags & _WRITE), mappable)


def _capabilities(buffer: bytes | bytearray, at: int) -> Iterator[tuple[int, int]]:
    """The number of each capability, and the offset of its contents."""
    seen = set()
    while at and at not in seen and at + _CAPABILITY.size <= len(buffer):
        seen.add(at)
        number, _, following = _CAPABILITY.unpack_from(buffer, at)
        yield number, at + _CAPABILITY.size
        at = following


def _areas(buffer: bytes | bytearray, at: int) -> Iterator[range]:
    """The parts of a region that can be mapped, ascending."""
    (count,) = struct.unpack_from("I", buffer, at)
    areas = []
    for place in range(at + 8, min(at + 8 + 16 * count, len(buffer) - 15), 16):
        start, size = struct.unpack_from("QQ", buffer, place)
        areas.append(range(start, start + size))
    return iter(sorted(areas, key=lambda area: area.start))


def open_device(name: str, place: Place, dev: Path, *, noiommu: bool = False) -> Device:
    """Open a function: by its iommufd device, or else by its group. Raises OSError, NotViable.

    `name` is its PCI address. Without an IOMMU it opens only with `noiommu`, because its DMA can
    then reach all memory.
    """
    refusals: list[OSError] = []
    if place.cdev is not None and (dev / "iommu").exists():
        try:
            return _open_cdev(place.cdev, dev / "iommu")
        except OSError as error:
            refusals.append(error)
    if place.group is not None and (noiommu or not place.group.name.startswith("noiommu-")):
        try:
            return _open_group(name, place.group, dev / "vfio/vfio")
        except OSError as error:
            refusals.append(error)
    if refusals:
        raise refusals[-1]
    raise FileNotFoundError(2, "neither a device of iommufd's nor an IOMMU group")


def _open_cdev(path: Path, iommufd: Path) -> Device:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    held: list[int] = []
    try:
        held.append(os.open(iommufd, os.O_RDWR | os.O_CLOEXEC))
        # struct vfio_device_bind_iommufd: argsz, flags, iommufd, out_devid
        fcntl.ioctl(fd, _DEVICE_BIND_IOMMUFD, bytearray(struct.pack("IIiI", 16, 0, held[0], 0)))
    except BaseException:
        for opened in (fd, *held):
            os.close(opened)
        raise
    return Device(fd, held)


def _open_group(name: str, path: Path, container: Path) -> Device:
    held: list[int] = []
    try:
        held.append(os.open(container, os.O_RDWR | os.O_CLOEXEC))
        group = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        held.insert(0, group)
        _check_viable(group)
        fcntl.ioctl(group, _GROUP_SET_CONTAINER, array.array("i", [held[1]]))
        kind = _NOIOMMU_IOMMU if path.name.startswith("noiommu-") else _TYPE1_IOMMU
        fcntl.ioctl(held[1], _SET_IOMMU, kind)
        fd = fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, bytearray(name.encode() + b"\0"))
    except BaseException:
        for opened in held:
            os.close(opened)
        raise
    return Device(fd, held)


def _check_viable(group: int) -> None:
    status = bytearray(struct.pack("II", 8, 0))
    fcntl.ioctl(group, _GROUP_GET_STATUS, status)
    if not struct.unpack("II", status)[1] & _GROUP_VIABLE:
        raise NotViable(1, "its IOMMU group has functions in it that other drivers use")
