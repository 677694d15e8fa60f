"""Operations that nobody misses. The kernel is told so, and then asks less, or not at all."""

import errno
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import FUSEError, RequestContext


class Unneeded(pyfuse3.Operations):
    """What the operations of barfs begin from. Each error here is what the kernel is to get."""

    # The kernel need not ask for these, and after an ENOSYS it does not. It then takes writes for
    # done, and files for always ready. That saves a request at each close.

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing is kept back."""
        raise FUSEError(errno.ENOSYS)

    async def poll(self, inode: int, fh: int, poll_handle: object, ctx: RequestContext) -> int:
        """Always ready."""
        raise FUSEError(errno.ENOSYS)

    # There are no extended attributes. They are refused with ENOTSUP, and without a line in the
    # log, since ls asks for some on every file.

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """None."""
        raise FUSEError(errno.ENOTSUP)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """None."""
        raise FUSEError(errno.ENOTSUP)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """None."""
        raise FUSEError(errno.ENOTSUP)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """None."""
        raise FUSEError(errno.ENOTSUP)
