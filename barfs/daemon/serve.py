"""The daemon's life: checks before the mount, the mount, readiness, signals, the end."""

import contextlib
import gc
import logging
import os
import resource
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from barfs.daemon import confine
from barfs.daemon.interruption import ENDING, held
from barfs.daemon.loop import Loop
from barfs.daemon.mountpoint import (
    Mounted,
    MountError,
    check_free,
    clear_dead,
    made_since,
    mount_table,
    mounts,
    resolve,
    unmount_own,
)
from barfs.daemon.outlets import StandardError, log_to, notify
from barfs.daemon.settings import Settings, check, group_id
from barfs.devmem import REAL_DEVMEM, PhysicalMemory
from barfs.diagnosis.causes import Machine
from barfs.errors import BadRecording
from barfs.fs import Operations
from barfs.journal.logfile import LogFile
from barfs.journal.records import Change, Journal
from barfs.machine.functions import AllFunctions, Allowed
from barfs.machine.kcore import CoreFile
from barfs.machine.recorded import source_at, symbols_of
from barfs.machine.source import REAL_PROC, REAL_SYSFS, is_no_data
from barfs.names import PciAddress
from barfs.nodes import Tree
from barfs.registers.devices import DeviceMaps
from barfs.registers.files import MapFiles
from barfs.requests.policy import OWNER_ONLY, Policy
from barfs.requests.workers import Workers
from barfs.spans.choosing import ways_to_bars
from barfs.spans.combining import Combining
from barfs.spans.enabling import Decoder, Later
from barfs.spans.opening import Spans
from barfs.spans.vfio import VfioDevices
from barfs.spans.ways import Ways
from barfs.tree.branches import branches

log = logging.getLogger(__name__)

# An open file has at most as many mappings as descriptors. A process may have 65530 mappings
# (vm.max_map_count), and threads and buffers need some, too.
MOST_FILES: Final = 1 << 15

# How long, in seconds, the end of a mount waits for requests that are under way, for open files to
# be closed, and for the last lines of the log to be written.
GRACE: Final = 0.8
CLOSING: Final = 0.3
LAST_LINES: Final = 0.5

# After how many seconds a background task begins anew when it met an unforeseen error.
RETRY: Final = 1.0


@contextlib.contextmanager
def _captured_stderr(into: list[str]) -> Iterator[None]:
    """Collect what libfuse and fusermount3 print, line by line, instead of showing it.

    In memory: the disk may be full.
    """
    with os.fdopen(os.memfd_create("stderr"), "rb") as collected:
        saved = os.dup(2)
        try:
            os.dup2(collected.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            collected.seek(0)
            into.extend(collected.read().decode(errors="replace").splitlines())


def _fuse_options(settings: Settings) -> list[str]:
    """The options, each once and in their order. The kernel takes the last of two that exclude each
    other.

    ro and rw are left out except for the one that counts, because libfuse takes them out of order.
    """
    options = [option for option in settings.options if option not in {"ro", "rw"}]
    if settings.read_only:
        options.append("ro")
    if not any(option.startswith("fsname=") for option in options):
        options.append("fsname=barfs")
    options = [*sorted(pyfuse3.default_options), "subtype=barfs", *options]
    return list(dict.fromkeys(reversed(options)))[::-1]


def _init(operations: Operations, settings: Settings) -> Mounted | None:
    """Mount, and return what has been mounted. MountError has libfuse's own words if that fails."""
    said: list[str] = []
    before = mounts()
    try:
        with _captured_stderr(said):
            options = _fuse_options(settings)
            # It takes any iterable, though its types say a set.
            pyfuse3.init(operations, str(settings.mountpoint), options)  # type: ignore[arg-type]
    except RuntimeError:
        words = "; ".join(line.strip() for line in said if line.strip())
        raise MountError(
            f"cannot mount on {settings.mountpoint}: {words or 'no reason given'}"
        ) from None
    return made_since(before, settings.mountpoint)


def _close(own: Mounted | None, loop: Loop) -> None:
    """End the session and unmount. MountError if that fails, or if the session was aborted."""
    ended = loop.is_disconnected()
    pyfuse3.close(unmount=False)
    if own is None:
        return
    refused = unmount_own(own, ended=ended)
    if refused:
        raise MountError(f"a dead mount is left: {refused}")
    if refused is not None:
        raise MountError(
            f"the mount on {own.where} was aborted, by umount -f or in /sys/fs/fuse/connections;"
            " it is unmounted"
        )


def machine_of(settings: Settings) -> Machine:
    """The machine that the settings name. MountError if it is recorded, and the recording bad."""
    try:
        source = source_at(settings.machine, settings.sysfs, settings.proc)
    except BadRecording as error:
        raise MountError(str(error)) from error
    is_recorded = source.recording is not None
    devmem = source.proc / "kcore" if is_recorded else settings.devmem
    pci = Allowed(AllFunctions(source), settings.rules)
    memory = PhysicalMemory(source, devmem, unclaimed=settings.unclaimed)
    maps = DeviceMaps(pci, memory, MapFiles(settings.map_directories))
    # They are opened here and kept, before rights are given up.
    phys = settings.phys and not (is_recorded and not source.exists(source.proc / "iomem"))
    symbols = symbols_of(source) if phys else None
    core = CoreFile(source.proc) if phys and settings.kcore and not is_recorded else None
    via_devmem = settings.bars_via == "devmem"
    via_vfio = settings.bars_via == "vfio"
    return Machine(pci, memory, maps, phys, via_devmem, symbols, core, via_vfio)


def vfio_of(settings: Settings, machine: Machine, journal: Journal) -> VfioDevices | None:
    """The holder of functions that are reached through VFIO, if the settings want that."""
    if settings.bars_via != "vfio":
        return None

    def opened(address: PciAddress) -> None:
        log.info("%s: opened through VFIO, which reset it; held until the mount ends", address)
        journal.add(Change("reset", str(address)))

    return VfioDevices(machine.pci, opened, noiommu=settings.noiommu)


def tree_of(
    settings: Settings,
    machine: Machine,
    journal: Journal,
    vfio: VfioDevices | None = None,
    *,
    check: Callable[[], None] = lambda: None,
    later: Callable[[Callable[[], None]], None] = lambda call: call(),
) -> Tree:
    """The tree over a machine, as the settings want it.

    `check` is that of Spans, and `later` that of Decoder.
    """
    pci, memory = machine.pci, machine.memory
    ways = ways_to_bars(pci, memory, settings.bars_via, vfio)
    spans = Spans(
        Ways(pci, memory, ways, core=machine.core, holder=vfio),
        machine.memory,
        decoder=Decoder(machine.pci, later) if settings.enable else None,
        combining=Combining() if settings.write_combining else None,
        check=check,
    )
    return Tree(branches(machine, spans, journal))


def _raise_limit() -> None:
    """Raise the limit on descriptors as far as this process may, and its mappings allow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MOST_FILES), hard))


def _policy_of(settings: Settings) -> Policy:
    return Policy(
        uid=os.getuid(),
        gid=os.getgid(),
        group=group_id(settings),
        mode=OWNER_ONLY if settings.mode is None else settings.mode,
        read_only=settings.read_only,
    )


def serve(settings: Settings, ready: Callable[[], None]) -> None:
    """Mount, answer requests until unmounted or signalled, unmount. Raises MountError.

    `ready` is called when the mount has answered a request. The service manager is told, too. This
    raises the process's limit on open files as far as it may. It gives up capabilities that are not
    needed, for good.
    """

    def close() -> None:
        operations.close()
        later.finish()

    def announce() -> None:
        notify(f"READY=1\nSTATUS=mounted on {settings.mountpoint}")
        ready()

    _raise_limit()
    loop = Loop(settings.loop)
    machine = machine_of(settings)
    machine.source.listen()
    journal = Journal(reads=settings.log_reads)
    vfio = vfio_of(settings, machine, journal)
    workers = Workers(loop.away)
    later = Later()
    tree = tree_of(settings, machine, journal, vfio, check=workers.check, later=later)
    operations = Operations(tree, machine, journal, _policy_of(settings), workers)
    log_file = _open_log_file(settings, journal)
    background: list[Callable[[], Awaitable[None]]] = [operations.follow]
    if log_file is not None:
        background.append(log_file.follow)
    watch, changes = machine.source.watch, machine.source.changes
    if watch is not None:
        background.append(partial(watch.run, operations.device_changed, operations.names_changed))
    background.append(partial(changes.run, operations.names_changed, is_no_data))
    if vfio is not None:
        background.append(partial(vfio.run, operations.let_go))
    # Objects that are there by now stay. The garbage collector need not look through them; all
    # requests wait for it.
    gc.freeze()
    # Signals wait until the loop takes them. Their default action would leave a dead mount.
    with held():
        own = _init(operations, settings)
        # At the end these run in reverse order, each whatever becomes of the others.
        with contextlib.ExitStack() as ending:
            if log_file is not None:
                ending.callback(_within, LAST_LINES, log_file.close)
            ending.callback(_close, own, loop)
            if vfio is not None:
                ending.callback(_within, CLOSING, vfio.close)
            ending.callback(_within, CLOSING, close)
            ending.callback(notify, "STOPPING=1")
            _give_up_rights(settings)
            silent = trio.run(_serve, settings.mountpoint, loop, workers, background, announce)
    if silent is not None:
        raise MountError(f"the mount on {settings.mountpoint} does not answer: {silent}")


def _within(seconds: float, call: Callable[[], None]) -> None:
    """Call something in a thread, and wait for it at most so long. It may wait for a disk or a
    device.

    The thread ends with the process.
    """
    thread = threading.Thread(target=call, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there are no more threads
        call()
    else:
        thread.join(seconds)


def _give_up_rights(settings: Settings) -> None:
    """Keep the capabilities that serving needs. No program that is run gains any.

    A user who is not root has no capabilities. fusermount3 unmounts for him, and no_new_privs would
    switch off its set-user-ID bit.
    """
    if os.geteuid() != 0:
        return
    keep = confine.SERVING
    real = {REAL_SYSFS, REAL_PROC, REAL_DEVMEM}
    # A tar stays open, and the files of a directory are opened when they are read.
    of_others = settings.machine is not None and settings.machine.is_dir()
    of_others |= not {settings.sysfs, settings.proc, settings.devmem} <= real
    log_directory = settings.log_file and os.path.dirname(settings.log_file)
    # The log is opened anew if it was moved away.
    if of_others or (log_directory and not confine.may_enter(log_directory, keep, writing=True)):
        keep |= confine.OTHER_PEOPLES_FILES
    mounted_in = os.path.dirname(resolve(settings.mountpoint, mount_table()))
    if not confine.may_enter(mounted_in, keep):
        keep |= confine.OTHER_PEOPLES_DIRECTORIES
    try:
        confine.keep_only(keep)
    except OSError as error:
        raise MountError(f"capabilities cannot be given up: {error.strerror}") from None


def _open_log_file(settings: Settings, journal: Journal) -> LogFile | None:
    if settings.log_file is None:
        return None
    try:
        return LogFile(settings.log_file, journal)
    except OSError as error:
        raise MountError(f"--log {settings.log_file}: {error.strerror}") from None


async def _kept_up(task: Callable[[], Awaitable[None]]) -> None:
    """A background task that goes on after unforeseen errors, so that the mount lives on."""
    while True:
        try:
            await task()
        except Exception:
            log.exception("a background task failed; it is begun anew")
            await trio.sleep(RETRY)
        else:
            return


async def _serve(
    mountpoint: Path,
    loop: Loop,
    workers: Workers,
    background: Iterable[Callable[[], Awaitable[None]]],
    ready: Callable[[], None],
) -> Exception | None:
    """Run the loop, and the `background` when it answers. Returns the error if it never did."""
    silent: Exception | None = None

    async def announce() -> None:
        nonlocal silent
        try:
            await trio.to_thread.run_sync(os.stat, mountpoint / "pci", abandon_on_cancel=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads can be started
            silent = error
            end()
        else:
            ready()
            for task in background:
                nursery.start_soon(_kept_up, task)

    def end() -> None:
        """Refuse requests that wait, and give the others a moment."""
        workers.end()
        loop.end()
        scope = nursery.cancel_scope
        scope.deadline = min(scope.deadline, trio.current_time() + GRACE)

    async def end_on_signal(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*ENDING) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            task_status.started()
            try:
                async for number in signals:
                    log.info("%s: unmounting", signal.Signals(number).name)
                    end()
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)

    async with trio.open_nursery() as nursery:
        await nursery.start(end_on_signal)
        nursery.start_soon(announce)
        await loop.run(end)
        nursery.cancel_scope.cancel()
    return silent


def prepare(settings: Settings) -> None:
    """Check, and remove a dead mount that is to be replaced. Raises MountError."""
    check(settings)
    if settings.force:
        clear_dead(settings.mountpoint)
        check_free(settings.mountpoint)


def run_in_foreground(settings: Settings, ready: Callable[[], None]) -> None:
    """Check and serve in this process, with the log on standard error. Raises MountError."""
    log_to(StandardError(), "barfs: %(message)s")
    prepare(settings)
    serve(settings, ready)
