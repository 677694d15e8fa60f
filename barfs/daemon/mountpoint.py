"""Mountpoints: what is mounted there, whether it still answers, and how to be rid of it.

Nothing here waits for a mount: a daemon that is stopped or hangs would keep whoever asks it.
"""

import enum
import errno
import os
import pwd
import re
import select
import signal
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from barfs.names import quoted

BARFS_TYPE: Final = "fuse.barfs"

MOUNT_TABLE: Final = Path("/proc/self/mountinfo")

# How long a mount may take to answer, in seconds. A request is done within milliseconds.
ANSWER_TIMEOUT: Final = 3.0

# What a request to a mount without a daemon gives (fs/fuse/dev.c: fuse_get_req, fuse_abort_conn).
_DEAD: Final = {errno.ENOTCONN, errno.ECONNABORTED}

# How many of those who use a mount are named.
_USERS_SHOWN: Final = 3

# As many as the kernel follows (include/linux/namei.h, MAXSYMLINKS).
_MAX_LINKS: Final = 40


class MountError(Exception):
    """The mount can't be; the message is for the user, one line, with what to do."""


class State(enum.Enum):
    """How a barfs mount answers."""

    LIVE = "answers"
    DEAD = "its daemon is gone"
    SILENT = "its daemon is there and does not answer"


class Mounted(NamedTuple):
    """A mount: the type of its file system and, of a FUSE one, who mounted it."""

    kind: str
    uid: int
    gid: int


def absolute(path: Path) -> Path:
    """A path from the root on. MountError if it counts from a working directory that is gone."""
    try:
        return path.absolute()
    except FileNotFoundError:
        raise MountError("the working directory is gone; go to another one: cd") from None


def _unescape(field: bytes) -> str:
    """Spaces and the like are octal escapes there (fs/proc_namespace.c, mangle)."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), field))


def _parse_line(line: bytes) -> tuple[str, Mounted]:
    """Where, and what: a line of mountinfo, as Documentation/filesystems/proc.rst has it."""
    fields = line.split(b" ")
    end = fields.index(b"-", 6)
    kind, options = _unescape(fields[end + 1]), fields[end + 3].decode(errors="replace")
    owner = dict(re.findall(r"(?:^|,)(user_id|group_id)=(\d+)", options))
    mounted = Mounted(kind, int(owner.get("user_id", 0)), int(owner.get("group_id", 0)))
    return _unescape(fields[4]), mounted


def mount_table() -> dict[str, Mounted]:
    """All mounts by their mountpoints; of several in one place the one that is seen."""
    lines = MOUNT_TABLE.read_bytes().split(b"\n")
    return dict(_parse_line(line) for line in lines if line)


def resolve(path: Path, mounts: dict[str, Mounted]) -> str:
    """The path without symbolic links, as os.path.realpath has it, but no barfs mount is touched.

    What lies inside of one is left as it is.
    """
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
        except OSError:  # no link, or nothing there
            done = candidate
            continue
        links += 1
        if links > _MAX_LINKS:
            return candidate
        left += target.split("/")[::-1]
        if target.startswith("/"):
            done = "/"
    return done


def mounted_at(mountpoint: Path) -> Mounted | None:
    """What is mounted there; None if nothing is. Does not touch it."""
    mounts = mount_table()
    return mounts.get(resolve(mountpoint, mounts))


def _ask(where: str, mounted: Mounted) -> int:
    """In a process of its own: the errno of a request to the mount; 0 if it answers."""
    try:
        if os.geteuid() == 0 and mounted.uid != 0:
            # To all but its owner the kernel answers itself (fs/fuse/inode.c, fuse_statfs).
            os.setgroups([])
            os.setresgid(mounted.gid, mounted.gid, mounted.gid)
            os.setresuid(mounted.uid, mounted.uid, mounted.uid)
        os.statvfs(where)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def state(where: str, mounted: Mounted) -> State:
    """How the barfs mount at a resolved path is. Waits ANSWER_TIMEOUT at most.

    The asking is done by a child process. One that gets no answer is killed; should the daemon
    have taken its request and hang, the child ends with the daemon and not before
    (fs/fuse/dev.c, request_wait_answer).
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


def _check_dead(mountpoint: Path, mounted: Mounted, how: State, *, replace_dead: bool) -> None:
    """Raise MountError unless a barfs mount may be replaced."""
    unmount_it = _unmount_command(mountpoint, mounted)
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


def _unmount_command(mountpoint: Path | str, mounted: Mounted) -> str:
    """What this user types to unmount."""
    sudo = "" if os.geteuid() in {0, mounted.uid} else "sudo "
    return f"{sudo}barfs umount {quoted(mountpoint)}"


def clear_dead(mountpoint: Path) -> None:
    """Unmount the dead barfs mounts there, busy or not: nothing can be lost. MountError."""
    while True:
        mounts = mount_table()
        where = resolve(mountpoint, mounts)
        mounted = mounts.get(where)
        if mounted is None or mounted.kind != BARFS_TYPE:
            return
        if state(where, mounted) is not State.DEAD:
            return
        refused = _unmount(where, lazily=True)
        if refused is not None:
            raise MountError(refused)


def _unmount(where: str, *, lazily: bool) -> str | None:
    """Unmount a resolved path, without a look at it. Why it can't be, in umount's own words."""
    if os.geteuid() == 0:
        # -c: no look at the mountpoint, which may hang.
        command = ["umount", "-c", *(["-l"] if lazily else []), where]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazily else []), where]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            errors="surrogateescape",
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return f"{command[0]} is missing; install util-linux and fuse3"
    if done.returncode == 0:
        return None
    return "; ".join(line.rstrip(".") for line in done.stderr.splitlines() if line)


def users(where: str) -> list[str]:
    """Who is in a mount at a resolved path or has a file of it open, as far as this user may see.

    Reads links in /proc, and does not touch the mount.
    """
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        for link, how in (("cwd", "is in it"), ("root", "has its root there")):
            if _leads_into(process / link, where):
                found.append(f"{_name_of(process)} {how}")
                break
        else:
            try:
                files = list((process / "fd").iterdir())
            except OSError:  # somebody else's, or gone
                continue
            if any(_leads_into(file, where) for file in files):
                found.append(f"{_name_of(process)} has a file of it open")
    return found


def _leads_into(link: Path, where: str) -> bool:
    try:
        return os.path.commonpath((where, os.readlink(link))) == where
    except (OSError, ValueError):  # not to be read, or a socket and the like
        return False


def _name_of(process: Path) -> str:
    """`bash (731)`."""
    try:
        name = (process / "comm").read_bytes().decode(errors="replace").rstrip("\n")
    except OSError:
        name = "a process"
    return f"{name} ({process.name})"


def _in_use(mountpoint: Path, where: str) -> str:
    """What to say of a mount that is in use."""
    found = users(where)
    if not found:
        return f"{mountpoint} is busy; see who uses it with: fuser -vm {quoted(where)}"
    shown = [*found[:_USERS_SHOWN], *(["others"] if len(found) > _USERS_SHOWN else [])]
    return f"{mountpoint} is busy: {', '.join(shown)}; leave it (cd) or end them first"


def unmount(mountpoint: Path, *, quiet: bool = False) -> None:
    """Unmount a barfs mount; a dead one, busy or not. With `quiet` there need be none. MountError.

    A live one that is in use is left as it is.
    """
    mounts = mount_table()
    where = resolve(mountpoint, mounts)
    mounted = mounts.get(where)
    if mounted is None and quiet:
        return
    if mounted is None or mounted.kind != BARFS_TYPE:
        # A barfs mount above it is not touched.
        above = (mounts.get(str(path)) for path in Path(where).parents)
        in_one = any(mount is not None and mount.kind == BARFS_TYPE for mount in above)
        if in_one or os.path.lexists(where):
            raise MountError(f"{mountpoint} is not a barfs mount")
        raise MountError(f"{mountpoint} does not exist")
    if os.geteuid() not in {0, mounted.uid}:
        raise MountError(
            f"{mountpoint} was mounted by {_user(mounted.uid)}; unmount with:"
            f" {_unmount_command(where, mounted)}"
        )
    # First without a question: that needs no answer, and who asks makes it busy.
    refused = _unmount(where, lazily=False)
    if refused is None:
        return
    how = state(where, mounted)
    if how is State.DEAD:
        refused = _unmount(where, lazily=True)
        if refused is None:
            return
        raise MountError(refused)
    if how is State.SILENT:
        raise MountError(
            f"{refused}; its daemon does not answer: find and kill it (pgrep -af barfs), then"
            f" again: {_unmount_command(where, mounted)}"
        )
    raise MountError(_in_use(mountpoint, where) if "busy" in refused else refused)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"
