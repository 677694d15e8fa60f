"""The FUSE side: pyfuse3's operations, handles, attributes. No policy.

This is the one place where exceptions become errno. pyfuse3 ends the mount on any exception but
FUSEError, so no other exception leaves this module. On ENOSYS the kernel switches an operation off
for good, so only operations that are better off raise it.
"""

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from inspect import signature
from itertools import count
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from barfs.access.files import Buffer
from barfs.diagnosis.causes import Machine, explain
from barfs.errors import BadRequest, BarfsError, ReadOnly, Unsupported
from barfs.journal.records import Change, Journal
from barfs.names import PciAddress, quoted
from barfs.nodes import Attributes, InodeNumbers, Node, Tree, Type
from barfs.requests import kept
from barfs.requests.callers import caller_of
from barfs.requests.files import OpenFiles
from barfs.requests.listings import Listings
from barfs.requests.policy import Policy
from barfs.requests.refusals import Asked, Asking, Refusals
from barfs.requests.unneeded import Unneeded
from barfs.requests.workers import Workers

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]


def boundary(handler: Handler[P, R]) -> Handler[P, R]:
    """Make FUSEError of whatever a handler raises, and a line in both logs of each refusal."""
    name = handler.__name__
    parameters = list(signature(handler).parameters)[1:]
    of_context = parameters.index("ctx") if "ctx" in parameters else None

    async def bounded(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:
            context = () if of_context is None else (args[of_context],)
            raise self._answer(name, error, self._of_context, *context) from None

    return bounded


def _errno_of(error: Exception) -> int:
    """The errno that the kernel gets for an exception. EIO if it has none that fits a refusal.

    An errno of a system call may be ENOSYS, which would switch the operation off for good.
    """
    number = error.errno if isinstance(error, (BarfsError, FUSEError)) else errno.EIO
    return number if number in errno.errorcode and number != errno.ENOSYS else errno.EIO


def refuse(what: str) -> NoReturn:
    """Refuse an operation that would change the tree. Only the machine changes it."""
    raise Unsupported(f"{what}: the tree is the machine's own and cannot be changed")


def _refusing(operation: str, words: str, *, name: int = 1) -> Any:
    """An operation that is always refused. Its argument number `name` is a name in a directory.

    Its last argument is the context.
    """

    async def refusing(self: "Operations", *args: Any) -> NoReturn:
        try:
            refuse(f"{words} {quoted(os.fsdecode(args[name]))}")
        except Exception as error:
            raise self._answer(operation, error, self._of_context, args[-1]) from None

    return refusing


class Operations(Unneeded):
    """The tree over FUSE, for the users that the policy allows. `machine` explains refusals.

    The machine's source may call `device_changed` when it takes in the kernel's messages.
    """

    supports_dot_lookup = False

    def __init__(
        self, tree: Tree, machine: Machine, journal: Journal, policy: Policy, workers: Workers
    ) -> None:
        super().__init__()
        self._tree = tree
        self._machine = machine
        self._journal = journal
        self._files = OpenFiles(tree, journal, workers, self._announce)
        self._refusals = Refusals(journal, lambda error: explain(error, machine), policy.uid)
        self._policy = policy
        self._inodes = InodeNumbers(tree.kinds)
        self._kept = kept.Kept(machine.source, machine.maps.files.directories, self._drop)
        self._listings = Listings()
        self._handles = count(1)
        self._started = time.time_ns()

    def _entry(self, node: Node, attributes: Attributes | None = None) -> EntryAttributes:
        """The attributes of a node for the kernel. They are read now unless they are given."""
        if attributes is None:
            attributes = self._tree.attributes(node)
        kind = node.kind
        size = self._files.text_size(node)
        size = attributes.size if size is None else size
        entry = EntryAttributes()
        entry.st_ino = self._inodes.number(node)
        entry.st_mode = self._policy.mode_of(kind, writable=self._tree.is_writable(node))
        entry.st_nlink = 2 if kind.type is Type.DIRECTORY else 1
        if kind.type is Type.FILE:
            # As many blocks as it has bytes. With 0, tar and cp take a file for one big hole.
            entry.st_blocks = -(-size // 512)
        entry.st_size = size
        entry.st_blksize = attributes.blksize
        entry.st_uid, entry.st_gid = self._policy.uid, self._policy.group_of(node)
        modified = self._started if attributes.modified is None else attributes.modified
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = modified
        entry.entry_timeout, entry.attr_timeout = 0, kept.attributes_lifetime(kind)
        return entry

    def _entry_to(
        self, ctx: RequestContext, node: Node, attributes: Attributes | None = None
    ) -> EntryAttributes:
        """As `_entry`, with the size that the file has to those who have truncated it."""
        entry = self._entry(node, attributes)
        if self._files.is_truncated(node):
            entry.attr_timeout = 0
            size = self._files.size_to(node, caller_of(ctx.uid, ctx.pid))
            entry.st_size = entry.st_size if size is None else size
        return entry

    def _answer(
        self, name: str, error: Exception, ask: Callable[..., Asking], *args: Any
    ) -> FUSEError:
        """What the kernel is told of an exception, after the logs have been.

        What was asked for is what `ask` makes of the arguments.
        """
        number = _errno_of(error)
        if not isinstance(error, FUSEError):
            self._refusals.note(name, number, error, partial(ask, *args))
        return FUSEError(number)

    @staticmethod
    def _of_context(context: RequestContext | None = None) -> Asking:
        """A request about names, or one that the kernel makes for nobody."""
        if context is None:
            return 0, Asked
        return context.uid, lambda: Asked(caller_of(context.uid, context.pid))

    def _of_open(self, inode: int, context: RequestContext) -> Asking:
        """A request for a file."""
        return context.uid, lambda: Asked(
            caller_of(context.uid, context.pid), self._tree.subject(self._inodes.node(inode))
        )

    # Changes of the machine, and the end of the mount

    def device_changed(self, address: PciAddress, action: str) -> None:
        """The kernel says that a function was added, removed, bound or unbound.

        Open files of a function that is gone give up their mappings, which would outlive it. The
        kernel is told to forget the names.
        """
        self._journal.add(Change(action, str(address)))
        log.info("%s: %s", address, action)
        try:
            if action == "remove":
                self._files.give_up(address)
            for directory, file in self._tree.names_of(address):
                self._drop(directory, file)
            self.names_changed()
        except Exception:
            log.exception("%s: %s: unforeseen", address, action)

    def names_changed(self) -> None:
        """Something has changed. The kernel is to ask for all names anew."""
        self._kept.changed()

    def _drop(self, directory: Node, name: str) -> None:
        """Have the kernel forget a name."""
        number = self._inodes.number(directory)
        pyfuse3.invalidate_entry_async(number, os.fsencode(name), ignore_enoent=True)

    def _is_open(self, ctx: RequestContext, node: Node) -> bool:
        """Whether it may be fstat that asks: of any file, or of a directory that is listed."""
        if node.kind.type is Type.FILE:
            return self._files.has_open(node.address)
        return self._listings.has(node, ctx.pid)

    def _check_name(self, ctx: RequestContext, node: Node, error: Exception) -> None:
        """FUSEError if the kernel is to look a name up again, because it has kept it too long."""
        if isinstance(error, kept.NOT_THERE) and self._kept.is_doubtful(node, ctx.pid):
            raise FUSEError(errno.ESTALE) from None

    def let_go(self, address: PciAddress) -> None:
        """The kernel wants a function back. Open files of it give up what is mapped of it."""
        self._journal.add(Change("wanted back", str(address)))
        self._files.give_up(address)

    def close(self) -> None:
        """Close what is still open, at the end of the mount, and tell what was only counted."""
        self._refusals.tell()
        self._files.close_all()

    async def follow(self) -> None:
        """Tell, in the logs, of refusals that were only counted, until cancelled."""
        await self._refusals.follow()

    # Names and attributes

    @boundary
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """See pyfuse3.Operations. A link by vendor:device goes by what the kernel said last."""
        if parent_inode == pyfuse3.ROOT_INODE:
            self._machine.source.hear()
        parent, file = self._inodes.node(parent_inode), os.fsdecode(name)
        try:
            node, attributes = self._tree.find(parent, file)
        except BarfsError:
            self._kept.has_come(ctx.pid)
            raise
        entry = self._entry_to(ctx, node, attributes)
        entry.entry_timeout = self._kept.lifetime(parent, file, node)
        surplus = self._inodes.remember(entry.st_ino, (parent_inode, name))
        if surplus is not None:
            pyfuse3.invalidate_entry_async(*surplus, ignore_enoent=True)
        return entry

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """See pyfuse3.Operations. Nobody would get an error, so nothing is raised."""
        for inode, times in inode_list:
            try:
                self._inodes.forget(inode, times)
            except Exception:
                log.exception("forget: unforeseen")

    @boundary
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """See pyfuse3.Operations."""
        node = self._inodes.node(inode)
        try:
            entry = self._entry_to(ctx, node)
        except BarfsError as error:
            if not self._is_open(ctx, node):  # fstat does not ask again
                self._check_name(ctx, node, error)
            raise
        if node.kind.type is Type.FILE:  # a directory may be on the way
            self._kept.has_come(ctx.pid)
        return entry

    @boundary
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Accept truncation and times, which do nothing, and a mode or an owner that is the same.

        `>` and dd truncate before they write. touch, rsync -t and cp -p set times.
        """
        node = self._inodes.node(inode)
        entry = self._entry(node)
        if fields.update_size and fh is not None:
            self._files.truncate(fh, attr.st_size)
        if fields.update_size and attr.st_size > entry.st_size:
            path = self._tree.path(node)
            raise BadRequest(f"{path}: has {entry.st_size} bytes and cannot be made longer")
        changes = (
            (fields.update_mode and stat.S_IMODE(attr.st_mode) != stat.S_IMODE(entry.st_mode))
            or (fields.update_uid and attr.st_uid != entry.st_uid)
            or (fields.update_gid and attr.st_gid != entry.st_gid)
        )
        if changes:
            refuse(f"chmod or chown of {self._tree.path(node)}")
        return entry

    @boundary
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """See pyfuse3.Operations. A link leads where the kernel's last message says."""
        self._machine.source.hear()
        node = self._inodes.node(inode)
        if self._kept.is_stale(node, ctx.pid):
            raise FUSEError(errno.ESTALE)
        return os.fsencode(self._tree.target(node))

    @boundary
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Yes: with default_permissions the kernel has checked already."""
        return True

    @boundary
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """A file system that has no room of its own."""
        stats = pyfuse3.StatvfsData()
        stats.f_bsize = stats.f_frsize = 4096
        stats.f_namemax = 255
        return stats

    # Directories

    @boundary
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """List the directory as it is now. readdir goes through this listing."""
        node = self._inodes.node(inode)
        try:
            self._tree.attributes(node)
        except BarfsError as error:
            self._check_name(ctx, node, error)
            raise
        self._kept.has_come(ctx.pid)
        handle = next(self._handles)
        self._listings.begin(handle, node, ctx.pid, self._tree.entries(node))
        return handle

    @boundary
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """See pyfuse3.Operations. Names that have vanished since opendir are left out."""
        directory, _, listing = self._listings[fh]
        for index in range(start_id, len(listing)):
            name, node = listing[index]
            try:
                entry = self._entry(node)
            except BarfsError as error:
                log.info("readdir: left out: %s", error)
                continue
            entry.entry_timeout = self._kept.lifetime(directory, name, node)
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, index + 1):
                self._inodes.settle(entry.st_ino)
                break
            self._inodes.remember(entry.st_ino)

    @boundary
    async def releasedir(self, fh: int) -> None:
        """See pyfuse3.Operations."""
        del self._listings[fh]

    # Files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """See pyfuse3.Operations. The device is mapped here, and not touched."""
        try:
            node = self._inodes.node(inode)
            try:
                handle = await self._open(node, flags, ctx)
            except BarfsError as error:
                self._check_name(ctx, node, error)
                raise
            self._kept.has_come(ctx.pid)
            # keep_cache would keep pages that a MAP_PRIVATE mapping of the file has read.
            return FileInfo(fh=handle, direct_io=True, keep_cache=False)
        except Exception as error:
            raise self._answer("open", error, self._of_open, inode, ctx) from None

    def _announce(self, node: Node, size: int) -> None:
        """Tell the kernel that a text has so many bytes. A byte in its cache does that.

        Opening empties the cache. The kernel may wait for a read of the file here.
        """
        with contextlib.suppress(OSError):  # at the end of the mount
            pyfuse3.notify_store(self._inodes.number(node), size - 1, b"\n")

    async def _open(self, node: Node, flags: int, ctx: RequestContext) -> int:
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if flags & os.O_APPEND:
            raise BadRequest(f"{self._tree.path(node)}: cannot be appended to (O_APPEND, >>)")
        if writable and self._policy.read_only:
            raise ReadOnly(f"{self._tree.path(node)}: mounted read-only")
        return await self._files.open(node, flags, caller_of(ctx.uid, ctx.pid))

    # These two have to be fast. So the boundary is inside them, and they wait only if they have to.

    async def read(self, fh: int, off: int, size: int) -> Buffer:  # type: ignore[override]
        """See pyfuse3.Operations. It takes any contiguous buffer, though its types say bytes."""
        try:
            data = self._files.read(fh, off, size)
            return await self._files.read_later(fh, off, size) if data is None else data
        except Exception as error:
            raise self._answer("read", error, self._files.asking, fh, off, size) from None

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """See pyfuse3.Operations."""
        try:
            done = self._files.write(fh, off, buf)
            return await self._files.write_later(fh, off, buf) if done is None else done
        except Exception as error:
            raise self._answer("write", error, self._files.asking, fh, off, buf) from None

    async def flush(self, fh: int) -> None:
        """A descriptor of an open file is closed: what was typed is carried out before that."""
        try:
            await self._files.end_line(fh)
        except Exception as error:
            raise self._answer("flush", error, self._files.asking, fh, 0) from None

    async def fsync(self, fh: int, datasync: bool) -> None:
        """What was typed is carried out; nothing else is kept back."""
        try:
            await self._files.end_line(fh)
        except Exception as error:
            raise self._answer("fsync", error, self._files.asking, fh, 0) from None

    @boundary
    async def release(self, fh: int) -> None:
        """See pyfuse3.Operations."""
        self._files.close(fh)

    # Changes to the tree

    @boundary
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """O_CREAT of a name that was not there a moment ago. It is most likely a typing error.

        It fails as the look-up does, as in /proc, unless the file has come meanwhile.
        """
        entry = await self.lookup(parent_inode, name, ctx)
        try:
            return await self.open(entry.st_ino, flags, ctx), entry
        except FUSEError:
            self._inodes.forget(entry.st_ino, 1)
            raise

    mknod = _refusing("mknod", "mknod")
    mkdir = _refusing("mkdir", "mkdir")
    symlink = _refusing("symlink", "symlink")
    link = _refusing("link", "link", name=2)
    rename = _refusing("rename", "rename of")
    unlink = _refusing("unlink", "unlink of")
    rmdir = _refusing("rmdir", "rmdir of")
