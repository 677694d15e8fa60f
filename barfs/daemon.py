"""The daemon's life: checks before the mount, the mount, readiness, signals, the end."""

import contextlib
import dataclasses
import errno
import grp
import logging
import logging.handlers
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

import pyfuse3
import trio

from barfs.checkup import FUSE_DEVICE, State, check_fuse
from barfs.decoding import Decoder
from barfs.devmem import PhysicalMemory
from barfs.diagnose import Machine
from barfs.fs import Operations
from barfs.journal import Journal
from barfs.logfile import LogFile
from barfs.loop import Kind as LoopKind
from barfs.loop import Loop
from barfs.nodes import Tree
from barfs.patterns import NO_RULES, Rules
from barfs.pci import PciBus
from barfs.policy import OWNER_ONLY, Policy
from barfs.uevents import Watch
from barfs.workers import Workers

log = logging.getLogger(__name__)

SYSLOG_SOCKET: Final = Path("/dev/log")
REAL_SYSFS: Final = Path("/sys")
REAL_PROC: Final = Path("/proc")
REAL_DEVMEM: Final = Path("/dev/mem")

# Behind an open file are no more mappings than descriptors, of which there may be 65530
# (vm.max_map_count); threads and buffers need some too.
MOST_FILES: Final = 1 << 15

# Mount options that break barfs, and why.
REFUSED_OPTIONS: Final = {
    "max_read": "cuts requests into other accesses than were asked for",
    "writeback_cache": "writes later than asked, in other pieces",
}


class MountError(Exception):
    """The mount can't be; the message is for the user, one line, with what to do."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to mount, where, and how."""

    mountpoint: Path
    options: tuple[str, ...] = ()
    sysfs: Path = REAL_SYSFS
    proc: Path = REAL_PROC
    devmem: Path = REAL_DEVMEM
    bars_via: Literal["resource", "devmem"] = "resource"
    enable: bool = False
    log_file: Path | None = None
    log_reads: bool = False
    loop: LoopKind = "fast"
    phys: bool = True
    group: str | None = None  # a name or a number
    mode: int | None = None
    rules: Rules = NO_RULES

    @property
    def uses_devmem(self) -> bool:
        """Whether /dev/mem is read or mapped at all."""
        return self.phys or self.bars_via == "devmem"

    @property
    def read_only(self) -> bool:
        """Of ro and rw the last one counts, as for mount(8)."""
        chosen = [option for option in self.options if option in ("ro", "rw")]
        return bool(chosen) and chosen[-1] == "ro"


def mounted_at(mountpoint: Path) -> str | None:
    """The type of the file system mounted there, from /proc/self/mountinfo; None if there is none.

    Does not touch the mountpoint, which may be dead.
    """
    wanted = os.path.realpath(mountpoint)
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        where = fields.split()[4].encode("utf-8", "surrogateescape")
        # Spaces and the like are written as octal escapes (fs/proc_namespace.c, mangle).
        if os.fsdecode(where.decode("unicode_escape").encode("latin-1")) == wanted:
            found = rest.split()[0]
    return found


def check(settings: Settings) -> None:
    """Raise MountError for what can be known before mounting. Changes nothing."""
    for option in settings.options:
        reason = REFUSED_OPTIONS.get(option.partition("=")[0])
        if reason:
            raise MountError(f"-o {option} {reason}; leave it out")
    _check_sharing(settings)
    _check_mountpoint(settings.mountpoint)
    if not settings.sysfs.is_dir():
        raise MountError(f"--sysfs {settings.sysfs} is not a directory")
    if settings.phys and not settings.proc.is_dir():
        raise MountError(f"--proc {settings.proc} is not a directory")
    _check_covered(settings)
    fuse = check_fuse(FUSE_DEVICE)
    if fuse.state is not State.OK:
        raise MountError(str(fuse.cause))
    if os.geteuid() != 0:
        devmem = settings.devmem if settings.uses_devmem else None
        if settings.sysfs == REAL_SYSFS or devmem == REAL_DEVMEM:
            raise MountError("device memory is for root only; run it with sudo, or try: barfs demo")
        if shutil.which("fusermount3") is None:
            raise MountError("fusermount3 is missing; install it with: apt install fuse3")


def _check_sharing(settings: Settings) -> None:
    """Rights that nobody could use are a mistake."""
    if settings.group is None and settings.mode is None:
        return
    if settings.mode is None:
        raise MountError("--group gives no rights by itself; add --mode 660, or 640 to read only")
    if "allow_other" not in settings.options:
        raise MountError("--mode is for others, who see nothing of a mount; add -o allow_other")
    _group_id(settings)


def _group_id(settings: Settings) -> int:
    """Of the group that --group names, else the daemon's own. MountError if there is none."""
    if settings.group is None:
        return os.getgid()
    # Numbers that no group has are as good as those that one has; -1 means none to the kernel.
    if re.fullmatch("[0-9]{1,10}", settings.group) and int(settings.group) < (1 << 32) - 1:
        return int(settings.group)
    try:
        return grp.getgrnam(settings.group).gr_gid
    except (KeyError, ValueError):
        raise MountError(f"--group: there is no group {settings.group!a}") from None


def _check_covered(settings: Settings) -> None:
    """A mount over what barfs itself reads would wait for itself for ever."""
    mountpoint = os.path.realpath(settings.mountpoint)
    paths = [settings.sysfs / "bus/pci/devices"]
    if settings.phys:
        paths.append(settings.proc / "iomem")
    if settings.uses_devmem:
        paths.append(settings.devmem)
    for path in paths:
        read = os.path.realpath(path)
        if os.path.commonpath((mountpoint, read)) in {mountpoint, read}:
            raise MountError(f"{mountpoint} would hide {path}; choose another directory")
    if settings.log_file is not None:
        written = os.path.realpath(settings.log_file)
        if os.path.commonpath((mountpoint, written)) == mountpoint:
            raise MountError(f"{mountpoint} would hide {settings.log_file}; log to another place")


def _check_mountpoint(mountpoint: Path) -> None:
    kind = mounted_at(mountpoint)
    try:
        is_directory = mountpoint.is_dir()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountError(
                f"{mountpoint} holds a dead mount; clear it with: barfs umount {mountpoint}"
            ) from None
        raise MountError(f"{mountpoint}: {error.strerror}") from None
    if kind == "fuse.barfs":
        raise MountError(
            f"{mountpoint} is already mounted; unmount with: barfs umount {mountpoint}"
        )
    if kind is not None:
        raise MountError(f"{mountpoint} is already a {kind} mount; choose another directory")
    if not os.path.lexists(mountpoint):
        raise MountError(f"{mountpoint} does not exist; create it with: mkdir -p {mountpoint}")
    if not is_directory:
        raise MountError(f"{mountpoint} is not a directory; mount on a directory")


@contextlib.contextmanager
def _captured_stderr(into: list[str]) -> Iterator[None]:
    """Collect what libfuse and fusermount3 print, line by line, instead of showing it."""
    with tempfile.TemporaryFile() as collected:
        saved = os.dup(2)
        try:
            os.dup2(collected.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            collected.seek(0)
            into.extend(collected.read().decode(errors="replace").splitlines())


def _fuse_options(settings: Settings) -> set[str]:
    return {*pyfuse3.default_options, "fsname=barfs", "subtype=barfs", *settings.options}


def _init(operations: Operations, settings: Settings) -> None:
    """Mount. MountError with libfuse's own words if that fails."""
    said: list[str] = []
    try:
        with _captured_stderr(said):
            pyfuse3.init(operations, str(settings.mountpoint), _fuse_options(settings))
    except RuntimeError:
        words = "; ".join(line.strip() for line in said if line.strip())
        raise MountError(
            f"cannot mount on {settings.mountpoint}: {words or 'no reason given'}"
        ) from None


def tree_of(settings: Settings, stamp: Callable[[], Hashable | None] = lambda: None) -> Tree:
    """The tree over the machine that the settings name; `stamp` is that of barfs.pci.PciBus."""
    memory = PhysicalMemory(settings.proc, settings.devmem)
    bars_via = memory if settings.bars_via == "devmem" else None
    pci = PciBus(settings.sysfs, bars_via, settings.rules, stamp)
    return Tree(
        pci,
        memory if settings.phys else None,
        Journal(reads=settings.log_reads),
        Decoder(pci) if settings.enable else None,
        Machine(pci, memory, phys=settings.phys),
    )


def _raise_limit() -> None:
    """Have as many descriptors as this process may, but not more than its mappings allow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MOST_FILES), hard))


def _policy_of(settings: Settings) -> Policy:
    return Policy(
        uid=os.getuid(),
        gid=os.getgid(),
        group=_group_id(settings),
        mode=OWNER_ONLY if settings.mode is None else settings.mode,
        read_only=settings.read_only,
    )


def serve(settings: Settings, ready: Callable[[], None]) -> None:
    """Mount, answer requests until unmounted or signalled, unmount. Raises MountError.

    `ready` is called once the mount has answered a request. Raises this process's limit on open
    files as far as it may.
    """
    _raise_limit()
    loop = Loop(settings.loop)
    watch = Watch()
    tree = tree_of(settings, watch.stamp)
    operations = Operations(tree, _policy_of(settings), Workers(loop.away))
    log_file = _open_log_file(settings, operations.journal)
    background: list[Callable[[], Awaitable[None]]] = []
    if log_file is not None:
        background.append(log_file.follow)
    if settings.sysfs == REAL_SYSFS:
        background.append(partial(watch.run, operations.device_changed))
    _init(operations, settings)
    with contextlib.ExitStack() as stack:
        # In this order at the end, each whatever becomes of the others.
        if log_file is not None:
            stack.callback(log_file.close)
        stack.callback(pyfuse3.close, unmount=True)
        stack.callback(operations.close)
        silent = trio.run(_serve, settings.mountpoint, loop, background, ready)
    if silent is not None:
        raise MountError(f"the mount on {settings.mountpoint} does not answer: {silent.strerror}")


def _open_log_file(settings: Settings, journal: Journal) -> LogFile | None:
    if settings.log_file is None:
        return None
    try:
        return LogFile(settings.log_file, journal)
    except OSError as error:
        raise MountError(f"--log {settings.log_file}: {error.strerror}") from None


async def _serve(
    mountpoint: Path,
    loop: Loop,
    background: Iterable[Callable[[], Awaitable[None]]],
    ready: Callable[[], None],
) -> OSError | None:
    """The loop itself, and the `background` once it answers; the error if it never did."""
    silent = None

    async def announce() -> None:
        nonlocal silent
        try:
            await trio.to_thread.run_sync(os.stat, mountpoint / "pci", abandon_on_cancel=True)
        except OSError as error:
            silent = error
            loop.end()
        else:
            ready()
            for task in background:
                nursery.start_soon(task)

    async def end_on_signal(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                log.info("%s: unmounting", signal.Signals(number).name)
                loop.end()

    async with trio.open_nursery() as nursery:
        await nursery.start(end_on_signal)
        nursery.start_soon(announce)
        await loop.run()
        nursery.cancel_scope.cancel()
    return silent


def _log_to(handler: logging.Handler, form: str) -> None:
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger("barfs")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def run_in_foreground(settings: Settings, ready: Callable[[], None]) -> None:
    """Check and serve in this process, with the log on standard error. Raises MountError."""
    _log_to(logging.StreamHandler(), "barfs: %(message)s")
    check(settings)
    serve(settings, ready)


def run_in_background(settings: Settings, finish: Callable[[], None]) -> None:
    """Check, serve in a child process of its own session, and return once the mount answers.

    The child logs to syslog where there is one, and calls `finish` at its end. Raises MountError
    if the mount can't be; nothing is left mounted then.
    """
    check(settings)
    receive, send = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os.close(send)
        with os.fdopen(receive) as answers:
            answer = answers.read()
        if answer != "mounted":
            raise MountError(answer or "the daemon ended at once; see why with: barfs mount -f")
        return
    os.close(receive)
    status = 1
    try:
        _detach()
        with os.fdopen(send, "w") as answers:

            def report(answer: str) -> None:
                if not answers.closed:
                    answers.write(answer)
                    answers.close()

            try:
                serve(settings, lambda: report("mounted"))
                status = 0
            except MountError as error:
                report(str(error))
            except Exception as error:
                log.exception("ended")
                report(f"{type(error).__name__}: {error}")
    finally:
        finish()
        os._exit(status)


def _detach() -> None:
    """Leave the terminal, the session, the working directory and the standard streams."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    if SYSLOG_SOCKET.exists():
        handler: logging.Handler = logging.handlers.SysLogHandler(
            str(SYSLOG_SOCKET), logging.handlers.SysLogHandler.LOG_DAEMON
        )
    else:
        handler = logging.NullHandler()
    _log_to(handler, f"barfs[{os.getpid()}]: %(message)s")


def unmount(mountpoint: Path) -> None:
    """Unmount a barfs mount, a dead one too. Raises MountError."""
    kind = mounted_at(mountpoint)
    if kind != "fuse.barfs":
        raise MountError(f"{mountpoint} is not a barfs mount")
    where = os.path.realpath(mountpoint)
    command = ["umount", where] if os.geteuid() == 0 else ["fusermount3", "-u", where]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise MountError(f"{command[0]} is missing; install util-linux and fuse3") from None
    if done.returncode:
        words = done.stderr.strip().replace("\n", "; ")
        raise MountError(f"{words}; see who uses it with: fuser -vm {where}")
