"""Mountpoints: what is mounted there, whether it still answers, and how to unmount it.

Nothing here waits for a mount, because a daemon that is stopped or hangs would never answer. Only
the mount that was meant is unmounted. A path may lead elsewhere by then, since the owner of a
directory on the way can put a link there.
"""

import ctypes
import enum
import errno
import os
import pwd
import re
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from barfs.daemon import users
from barfs.names import quoted

BARFS_TYPE: Final = "fuse.barfs"

MOUNT_TABLE: Final = Path("/proc/self/mountinfo")

# How long a mount may take to answer, in seconds. A request is done within milliseconds.
ANSWER_TIMEOUT: Final = 3.0

# The errors of a request to a mount without a daemon (fs/fuse/dev.c: fuse_get_req,
# fuse_abort_conn).
_DEAD: Final = {errno.ENOTCONN, errno.ECONNABORTED}

# include/linux/fs.h
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8

_AT: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# The meanings of errors of umount2(2) here.
_WORDS: Final = {
    errno.EBUSY: "target is busy",
    errno.ESTALE: "something else is mounted over it, or a link has come to its place",
    errno.ENOTDIR: "a link has come to its place",
}

_libc: Final = ctypes.CDLL(None, use_errno=True)

# As many links as the kernel follows (include/linux/namei.h, MAXSYMLINKS).
_MAX_LINKS: Final = 40


class MountError(Exception):
    """The mount can't be made. The message is one line for the user that tells what to do."""


class State(enum.Enum):
    """How a barfs mount answers."""

    LIVE = "answers"
    DEAD = "its daemon is gone"
    SILENT = "its daemon is there and does not answer"


class Mounted(NamedTuple):
    """A mount: where it is, the type of its file system, and for FUSE who mounted it.

    As long as it is there, no other mount has its number and the number of its device, `0:45`.
    """

    where: str
    kind: str
    uid: int
    gid: int
    number: int
    device: str

    def is_same(self, other: "Mounted") -> bool:
        """Whether it is the same mount, which may have been moved."""
        return (self.number, self.device) == (other.number, other.device)


def absolute(path: Path) -> Path:
    """A path from the root on. MountError if it counts from a working directory that is gone."""
    try:
        return path.absolute()
    except FileNotFoundError:
        raise MountError("the working directory is gone; go to another one: cd") from None


def _unescape(field: bytes) -> str:
    """The text of a field. Spaces and the like are octal escapes (fs/proc_namespace.c, mangle)."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), field))


def _parse_line(line: bytes) -> Mounted:
    """Parse a line of mountinfo (Documentation/filesystems/proc.rst)."""
    fields = line.split(b" ")
    end = fields.index(b"-", 6)
    kind, options = _unescape(fields[end + 1]), fields[end + 3].decode(errors="replace")
    owner = dict(re.findall(r"(?:^|,)(user_id|group_id)=(\d+)", options))
    uid, gid = int(owner.get("user_id", 0)), int(owner.get("group_id", 0))
    return Mounted(_unescape(fields[4]), kind, uid, gid, int(fields[0]), fields[2].decode())


def mounts() -> list[Mounted]:
    """All mounts. A mount comes after the one that it covers."""
    return [_parse_line(line) for line in MOUNT_TABLE.read_bytes().split(b"\n") if line]


def mount_table() -> dict[str, Mounted]:
    """All mounts by their mountpoints. If there are several in one place, it has the visible
    one.
    """
    return {mounted.where: mounted for mounted in mounts()}


def made_since(before: Sequence[Mounted], mountpoint: Path) -> Mounted | None:
    """The barfs mount that has been made there. None if it is gone again."""
    found = [
        mounted
        for mounted in mounts()
        if mounted.kind == BARFS_TYPE and not any(map(mounted.is_same, before))
    ]
    where = resolve(mountpoint, mount_table())
    return next((one for one in reversed(found) if one.where == where), None)


def resolve(path: Path, mounts: dict[str, Mounted]) -> str:
    """The path without symbolic links, as from os.path.realpath. No barfs mount is touched.

    The part of a path inside a barfs mount stays as it is.
    """
    return _resolve(path, mounts, lambda _: None)


def _resolve_trusted(path: Path, mounts: dict[str, Mounted]) -> str:
    """The same, but MountError for a link that neither root nor this user has made."""

    def check(link: str) -> None:
        if os.lstat(link).st_uid not in {0, os.geteuid()}:
            raise MountError(f"{link} is a symbolic link that somebody else has made")

    return _resolve(path, mounts, check)


def _resolve(path: Path, mounts: dict[str, Mounted], check: Callable[[str], None]) -> str:
    left = str(path.absolute()).split("/")[::-1]
    done = "/"
    links = 0
    while left:
        name = left.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            done = os.path.dirname(done)
            continue
        candidate = os.path.join(done, name)
        if candidate in mounts and mounts[candidate].kind == BARFS_TYPE:
            return os.path.normpath(os.path.join(candidate, *left[::-1]))
        try:
            target = os.readlink(candidate)
        except OSError:  # it is no link, or nothing is there
            done = candidate
            continue
        check(candidate)
        links += 1
        if links > _MAX_LINKS:
            return candidate
        left += target.split("/")[::-1]
        if target.startswith("/"):
            done = "/"
    return done


def _ask(where: str, mounted: Mounted) -> int:
    """Ask the mount in a process of its own. The errno of the request, 0 if it answers."""
    try:
        if os.geteuid() == 0 and mounted.uid != 0:
            # For all but the owner the kernel itself answers (fs/fuse/inode.c, fuse_statfs).
            os.setgroups([])
            os.setresgid(mounted.gid, mounted.gid, mounted.gid)
            os.setresuid(mounted.uid, mounted.uid, mounted.uid)
        os.statvfs(where)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def state(where: str, mounted: Mounted) -> State:
    """How the barfs mount at a resolved path is. Waits at most ANSWER_TIMEOUT.

    A child process asks. If it gets no answer, it is killed. If the daemon has taken its request
    and hangs, the child ends only when the daemon ends (fs/fuse/dev.c, request_wait_answer).
    """
    child = os.fork()
    if child == 0:
        code = 255
        try:
            code = _ask(where, mounted)
        finally:
            os._exit(code)
    ended = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        if not poll.poll(ANSWER_TIMEOUT * 1000):
            os.kill(child, signal.SIGKILL)
            poll.poll(100)
            os.waitpid(child, os.WNOHANG)
            return State.SILENT
    finally:
        os.close(ended)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return State.DEAD if code in _DEAD else State.LIVE


def check_free(mountpoint: Path, *, replace_dead: bool = False) -> None:
    """Raise MountError unless it is a directory with no mount, or a dead one to be replaced."""
    mounts = mount_table()
    where = resolve(mountpoint, mounts)
    mounted = mounts.get(where)
    if mounted is not None and mounted.kind == BARFS_TYPE:
        _check_dead(mountpoint, mounted, state(where, mounted), replace_dead=replace_dead)
        return
    if mounted is not None:
        raise MountError(
            f"{mountpoint} is already a {mounted.kind} mount; choose another directory"
        )
    try:
        is_directory = mountpoint.is_dir()
    except OSError as error:
        raise MountError(f"{mountpoint}: {error.strerror}") from None
    if not os.path.lexists(mountpoint):
        raise MountError(
            f"{mountpoint} does not exist; create it with: mkdir -p {quoted(mountpoint)}"
        )
    if not is_directory:
        raise MountError(f"{mountpoint} is not a directory; mount on a directory")


def hides_something(mountpoint: Path) -> bool:
    """Whether a mount there would hide files. It does not look into a mount that is there
    already.
    """
    table = mount_table()
    where = resolve(mountpoint, table)
    if where in table or is_in_barfs(where, table):
        return False
    try:
        return bool(os.listdir(where))
    except OSError:
        return False


def is_in_barfs(where: str, table: dict[str, Mounted]) -> bool:
    """Whether a resolved path lies in a barfs mount. Touches no mount."""
    above = (table.get(str(path)) for path in Path(where).parents)
    return any(one is not None and one.kind == BARFS_TYPE for one in above)


def _check_dead(mountpoint: Path, mounted: Mounted, how: State, *, replace_dead: bool) -> None:
    """Raise MountError unless a barfs mount may be replaced."""
    unmount_it = unmount_command(mountpoint, mounted)
    if how is State.LIVE:
        raise MountError(f"{mountpoint} is already mounted; unmount with: {unmount_it}")
    if how is State.SILENT:
        raise MountError(
            f"{mountpoint} is already mounted, and its daemon does not answer; find and kill it"
            f" (pgrep -af barfs), then: {unmount_it}"
        )
    if not replace_dead:
        raise MountError(
            f"{mountpoint} holds a dead mount; replace it with the option --force, or clear it"
            f" with: {unmount_it}"
        )


def unmount_command(mountpoint: Path | str, mounted: Mounted) -> str:
    """The command with which this user unmounts it."""
    sudo = "" if os.geteuid() in {0, mounted.uid} else "sudo "
    return f"{sudo}barfs umount {quoted(mountpoint)}"


def clear_dead(mountpoint: Path) -> None:
    """Unmount the dead barfs mounts there, even busy ones: nothing can be lost. Raises
    MountError.
    """
    while True:
        table = mount_table()
        mounted = table.get(_resolve_trusted(mountpoint, table))
        if mounted is None or mounted.kind != BARFS_TYPE:
            return
        if state(mounted.where, mounted) is not State.DEAD:
            return
        refused = _unmount(mounted, lazily=True)
        if refused is not None:
            raise MountError(refused)


def _unmount(mounted: Mounted, *, lazily: bool) -> str | None:
    """Unmount this mount, and nothing else. Returns why that fails, in words that name it."""
    if os.geteuid() == 0:
        try:
            _unmount_as_root(mounted, lazily=lazily)
        except OSError as error:
            words = _WORDS.get(error.errno or 0, error.strerror)
            return f"{mounted.where}: {words}"
        return None
    if mount_table().get(mounted.where) != mounted:
        return f"{mounted.where}: {_WORDS[errno.ESTALE]}"
    # fusermount3 takes care of links, and unmounts only the user's own mounts.
    command = ["fusermount3", "-u", *(["-z"] if lazily else []), mounted.where]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            errors="surrogateescape",
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return f"{command[0]} is missing; install fuse3"
    if done.returncode == 0:
        return None
    return "; ".join(line.rstrip(".") for line in done.stderr.splitlines() if line)


def _unmount_as_root(mounted: Mounted, *, lazily: bool) -> None:
    """Unmount this mount as root. OSError if that fails. ESTALE if something else is at its
    path.
    """
    directory, name = os.path.split(mounted.where)
    above = os.open(directory, _AT)
    try:
        # A path through a descriptor leads to this very mount. But a mount with an open descriptor
        # is busy.
        root = os.open(name, _AT, dir_fd=above)
        try:
            if _number_of(root) != mounted.number:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            if lazily:
                _umount2(f"/proc/self/fd/{root}", _MNT_DETACH)
                return
        finally:
            os.close(root)
        # As long as something is mounted there, the kernel lets nobody rename or remove the
        # directory (fs/namei.c, vfs_rename: is_local_mountpoint).
        _umount2(f"/proc/self/fd/{above}/{name}", _UMOUNT_NOFOLLOW)
    finally:
        os.close(above)


def _number_of(fd: int) -> int:
    """The number of the mount that an open file is in (Documentation/filesystems/proc.rst)."""
    about = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(about.partition("mnt_id:")[2].split(maxsplit=1)[0])


def _umount2(path: str, flags: int) -> None:
    """See umount2(2)."""
    if _libc.umount2(os.fsencode(path), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unmount_own(own: Mounted, *, ended: bool) -> str | None:
    """Unmount a mount that this process has made, even if it is busy, wherever it is by now.

    The session is closed already. `ended` tells whether its connection to the kernel was gone
    before that. Then another mount may have the same numbers by now, and is left as it is. Returns
    why it can't be unmounted, or an empty string if it was there though the connection was gone.
    """
    now = next(filter(own.is_same, mounts()), None)
    if now is None or (ended and state(now.where, now) is not State.DEAD):
        return None
    refused = _unmount(now, lazily=True)
    return "" if ended and refused is None else refused


def unmount(mountpoint: Path, *, quiet: bool = False, dead: bool = False) -> None:
    """Unmount a barfs mount. With `quiet` it need not be there. Raises MountError.

    A dead mount is unmounted even if it is busy. A live mount that is in use is left as it is. With
    `dead` any mount that answers is left as it is.
    """
    table = mount_table()
    where = _resolve_trusted(mountpoint, table)
    mounted = table.get(where)
    if mounted is None and quiet:
        return
    if mounted is None or mounted.kind != BARFS_TYPE:
        raise MountError(f"{where} {_what_it_is(where, table)}")
    if os.geteuid() not in {0, mounted.uid}:
        raise MountError(
            f"{mounted.where} was mounted by {_user(mounted.uid)}; unmount with:"
            f" {unmount_command(where, mounted)}"
        )
    if dead:
        clear_dead(mountpoint)
        if not quiet and mount_table().get(mounted.where) == mounted:
            raise MountError(f"{mounted.where} is not dead: its daemon is there")
        return
    _unmount_alive(mounted)


def _unmount_alive(mounted: Mounted) -> None:
    """Unmount a mount that may be alive. It is left as it is if it is in use. Raises MountError."""
    # This comes first, since it needs no answer of the daemon, and asking makes the mount busy.
    refused = _unmount(mounted, lazily=False)
    if refused is None:
        return
    how = state(mounted.where, mounted)
    if how is State.DEAD:
        refused = _unmount(mounted, lazily=True)
        if refused is None:
            return
        raise MountError(refused)
    if how is State.SILENT:
        raise MountError(
            f"{refused}; its daemon does not answer: find and kill it (pgrep -af barfs), then"
            f" again: {unmount_command(mounted.where, mounted)}"
        )
    if "busy" not in refused:
        raise MountError(refused)
    raise MountError(f"{mounted.where} is busy: {users.who_uses(mounted.where)}")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


def _what_it_is(where: str, table: dict[str, Mounted]) -> str:
    """Why the thing at a resolved path can't be unmounted."""
    is_there = is_in_barfs(where, table) or os.path.lexists(where)
    return "is not a barfs mount" if is_there else "does not exist"
