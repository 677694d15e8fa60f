"""What can go wrong, each with the errno that a caller gets. fs.py is the one place that converts.

An error keeps its facts as fields: what it is about, what was being done, and the system's own
error. The sentence is made of them when somebody asks for it. If the place that raises an error
knows the cause and the mend, they are in the sentence. diagnosis/causes.py finds out the others
from the fields.
"""

import errno
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

from barfs.names import BarName, PciAddress

# The most that a message shows of a text that it complains about, in characters.
_EXCERPT: Final = 80


def excerpt(text: str) -> str:
    """What a message shows of a text that it complains about: ASCII, and little of a long one."""
    return ascii(text[:_EXCERPT]) + ("..." if len(text) > _EXCERPT else "")


class Cause(NamedTuple):
    """Why something is refused or does not work, and what mends it."""

    sentence: str
    mend: str | None = None  # a command for root's shell that mends it
    advice: str | None = None  # what helps besides, or if there is no command: a reboot, say

    def __str__(self) -> str:
        return "; ".join(filter(None, self))


class FunctionPart(NamedTuple):
    """A function, or one of its files: a BAR or a window into it, `config`, an attribute."""

    address: PciAddress
    file: BarName | str | None = None

    def __str__(self) -> str:
        return str(self.address) if self.file is None else f"{self.address} {self.file}"


class PhysicalSpan(NamedTuple):
    """`size` bytes from physical address `start`."""

    start: int
    size: int

    def __str__(self) -> str:
        return f"phys {self.start:#x}+{self.size:#x}"


# The thing that an error is about. A string is a path in the mount, or another name for people.
What: TypeAlias = FunctionPart | PhysicalSpan | str


class Opening(NamedTuple):
    """A file was being opened."""

    path: str

    def __str__(self) -> str:
        return self.path


class Mmap(NamedTuple):
    """`length` bytes were being mapped, from `offset` in the thing that the error is about."""

    offset: int
    length: int

    def __str__(self) -> str:
        return f"mapping {self.length:#x} bytes at {self.offset:#x}"


Verb: TypeAlias = Literal["read", "write"]


class Access(NamedTuple):
    """A read or write was being done, at `offset` in the thing that the error is about.

    `width` is the width of one access, `length` the length of a request. Both are in bytes, and
    None if they are not known.
    """

    verb: Verb
    offset: int
    length: int | None = None
    width: int | None = None

    def __str__(self) -> str:
        if self.width is not None:
            return f"{self.verb} of {self.width} bytes at {self.offset:#x}"
        if self.length is not None:
            return f"{self.verb} of {self.length:#x} bytes at {self.offset:#x}"
        return f"{self.verb} at {self.offset:#x}"


class Request(NamedTuple):
    """A file got a request of `length` bytes at `offset`, and no access was made for it."""

    verb: Verb
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.verb} of {self.length:#x} at {self.offset:#x}"


class Setting(NamedTuple):
    """A file of sysfs was being set: `text` was written to it."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"writing {self.text} to {self.path}"


During: TypeAlias = Opening | Mmap | Access | Request | Setting


class BarfsError(Exception):
    """A refusal of barfs. `errno` is the error that the caller's system call gets.

    `sentence` says what is the matter. If it is empty, the words of the system's error are used. A
    sentence that begins with a space or a comma continues the words for `during`. `system` is the
    error of the system call that failed, if one did. A BarfsError that is of no kind below takes
    its errno.
    """

    errno: int = errno.EIO

    def __init__(
        self,
        sentence: str = "",
        *,
        what: What | None = None,
        during: During | None = None,
        system: OSError | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.what = what
        self.during = during
        self.system = system
        if type(self) is BarfsError and system is not None and system.errno:
            self.errno = system.errno

    def __str__(self) -> str:
        sentence = self.sentence
        if not sentence and self.system is not None:
            sentence = str(self.system.strerror)
        facts = ": ".join(str(fact) for fact in (self.what, self.during) if fact is not None)
        if not facts or sentence.startswith((" ", ",")):
            return facts + sentence
        return f"{facts}: {sentence}"

    def restated(self, kind: "type[AnyError]") -> "AnyError":
        """An error of another kind with the same facts."""
        return kind(self.sentence, what=self.what, during=self.during, system=self.system)


AnyError = TypeVar("AnyError", bound=BarfsError)


class NoSuchNode(BarfsError):
    """There is no such device, BAR, or form of address."""

    errno = errno.ENOENT


class NoSuchAddress(BarfsError):
    """A physical address is in no range of /proc/iomem."""

    errno = errno.ENXIO


class DeviceGone(BarfsError):
    """The device went away, or its mapping was revoked."""

    errno = errno.ENODEV


class NotDecoded(BarfsError):
    """The device does not answer at this BAR's addresses."""

    errno = errno.EIO


class NotRecorded(BarfsError):
    """It was not read when the machine was recorded, so nobody knows it."""

    errno = errno.EIO


class AccessFault(BarfsError):
    """An access was made, and it faulted."""

    errno = errno.EIO


class Unsupported(BarfsError):
    """An operation that the files of barfs don't have: mkdir, unlink, chmod and the like."""

    errno = errno.EPERM


class KernelRefused(BarfsError):
    """The kernel refuses: lockdown, STRICT_DEVMEM."""

    errno = errno.EPERM


class CachingConflict(KernelRefused):
    """The kernel uses the memory in another caching type, and does not map it in a second one."""


class NotMappable(KernelRefused):
    """The kernel lets this System RAM be read and written, but not mapped."""


class DriverOwns(BarfsError):
    """A driver owns the range and the kernel refuses it to others."""

    errno = errno.EBUSY


class NotBound(BarfsError):
    """Another driver than vfio-pci has the function, or others of its group, or none has it."""

    errno = errno.EBUSY


class NotOffered(BarfsError):
    """The kernel refuses the BAR, and the driver that has the function does not offer it either."""

    errno = errno.EPERM


class CombinedElsewhere(BarfsError):
    """Another open file has the place mapped write-combining, which would merge accesses."""

    errno = errno.EBUSY


class TooManyFiles(BarfsError):
    """More files are open than there are descriptors for."""

    errno = errno.EMFILE


class TooManyRequests(BarfsError):
    """More requests of one user wait for slow devices than may."""

    errno = errno.EAGAIN


class NoThreads(TooManyRequests):
    """No thread can be started for a request."""


class MountEnded(BarfsError):
    """The mount ends before the request was done."""

    errno = errno.ENOTCONN


class NotAllowed(BarfsError):
    """The user who asks is not allowed to."""

    errno = errno.EACCES


class OnlyRead(BarfsError):
    """A write to a file that is there to be read, in any mount and for any user."""

    errno = errno.EACCES


class ReadOnly(BarfsError):
    """A write to a read-only mount, device or register."""

    errno = errno.EROFS


class BadRequest(BarfsError):
    """A request can't be made of accesses."""

    errno = errno.EINVAL


class BadRecording(BarfsError):
    """A file is no recording of a machine, or is damaged, or has what no recording has."""

    errno = errno.EINVAL


class MapRefused(BarfsError):
    """A map of registers is not as docs/registers.md says, or anybody could have written it."""

    errno = errno.EINVAL


class PastEnd(BarfsError):
    """A write at or past the end of a file."""

    errno = errno.ENOSPC
