"""What can go wrong, each with the errno that a caller gets. fs.py is the one place that converts.

A message names the device, file, offset and width concerned, and begins with the first of them: a
PCI address, or `phys <start>+<size>`. Cause and mend follow if they are known where it is raised;
diagnose.py finds out the others.
"""

import errno
from typing import NamedTuple


class Cause(NamedTuple):
    """Why something is refused or does not work, and what mends it."""

    sentence: str
    mend: str | None = None  # a command for root's shell
    advice: str | None = None  # what helps where no command does, or instead: a reboot, for one

    def __str__(self) -> str:
        return "; ".join(filter(None, self))


class BarfsError(Exception):
    """Any refusal of barfs; `errno` is what the system call fails with."""

    errno: int = errno.EIO


class NoSuchNode(BarfsError):
    """No such device, BAR, or form of address."""

    errno = errno.ENOENT


class NoSuchAddress(BarfsError):
    """A physical address in no range of /proc/iomem."""

    errno = errno.ENXIO


class DeviceGone(BarfsError):
    """The device went away, or its mapping was revoked."""

    errno = errno.ENODEV


class NotDecoded(BarfsError):
    """The device does not answer at this BAR's addresses."""

    errno = errno.EIO


class AccessFault(BarfsError):
    """An access was made and faulted."""

    errno = errno.EIO


class Unsupported(BarfsError):
    """An operation that the files of barfs don't have: mkdir, unlink, chmod and the like."""

    errno = errno.EPERM


class KernelRefused(BarfsError):
    """The kernel refuses: lockdown, STRICT_DEVMEM."""

    errno = errno.EPERM


class DriverOwns(BarfsError):
    """A driver owns the range and the kernel refuses it to others."""

    errno = errno.EBUSY


class CombinedElsewhere(BarfsError):
    """The place is mapped write-combining for another open file, which merges accesses."""

    errno = errno.EBUSY


class TooManyFiles(BarfsError):
    """More files are open than there are descriptors for."""

    errno = errno.EMFILE


class NotAllowed(BarfsError):
    """Not to this user."""

    errno = errno.EACCES


class ReadOnly(BarfsError):
    """A write to a read-only mount or file."""

    errno = errno.EROFS


class BadRequest(BarfsError):
    """A request that no access can be made of."""

    errno = errno.EINVAL


class MapRefused(BarfsError):
    """A map of registers is not what docs/registers.md says, or anybody could have written it."""

    errno = errno.EINVAL


class PastEnd(BarfsError):
    """A write at or past the end of a file."""

    errno = errno.ENOSPC
