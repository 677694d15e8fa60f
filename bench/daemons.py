"""The daemons that are compared: mounted, pinned to CPUs, what they cost, unmounted."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from barfs.daemon.mountpoint import mount_table, resolve
from barfs.machine.kernel import cpu_time
from barfs.machine.simulated import Paths

PATIENCE: Final = 60  # seconds; for a mount, and for its end

# So that the kernel checks permissions as it does for barfs.
_REFERENCE_OPTIONS: Final = "default_permissions,fsname=reference,subtype=reference"


def _is_mounted(path: Path) -> bool:
    """Whether something is mounted there. Does not touch it."""
    mounts = mount_table()
    return resolve(path, mounts) in mounts


class BenchError(Exception):
    """It can't be measured; the message says why."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """BenchError if it takes longer than PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"in vain: {what}")
        time.sleep(0.001)


def unmount(path: Path) -> None:
    """Unmount if need be. BenchError."""
    if _is_mounted(path):
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        done = subprocess.run([*command, str(path)], check=False, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(done.stderr.strip())


def barfs_command(machine: Paths, *options: str) -> list[str]:
    """`barfs mount` of a machine, but for the mountpoint."""
    barfs = str(Path(sys.executable).parent / "barfs")
    paths = ["--sysfs", str(machine.sysfs), "--proc", str(machine.proc)]
    return [barfs, "mount", *paths, "--devmem", str(machine.devmem), *options]


def reference_command(program: Path, mode: str, machine: Paths) -> list[str]:
    """The reference on a machine, but for the mountpoint. `mode` is "copy" or "map"."""
    devices = str(machine.sysfs / "bus/pci/devices")
    return [str(program), mode, devices, "-o", _REFERENCE_OPTIONS]


class Daemon:
    """A daemon in the foreground; its mount answers once this is made. BenchError."""

    def __init__(self, command: Sequence[str], mountpoint: Path) -> None:
        self.path = mountpoint
        mountpoint.mkdir()
        self._log = mountpoint.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "-f", str(mountpoint)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.pid = self._process.pid
        try:
            wait_until(self._answers, f"mount by {command[0]}")
        except BaseException:
            self.end()
            raise

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise BenchError(f"{self._process.args!r} ended: {self._log.read_text()}")
        return _is_mounted(self.path) and (self.path / "phys").exists()

    def cpu_ns(self) -> int:
        """CPU time of all its threads so far, those that have ended as well."""
        return cpu_time(self.pid)

    def is_traced(self) -> bool:
        """Whether strace or the like is at it."""
        return "TracerPid:\t0\n" not in Path(f"/proc/{self.pid}/status").read_text()

    def pin(self, cpus: set[int]) -> None:
        """Have all its threads run on these CPUs, and those that it starts."""
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread), cpus)

    def resident(self, kind: str) -> int:
        """Bytes of memory: `kind` is VmRSS, or RssAnon for what is not of files."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(rf"^{kind}:\s+(\d+) kB$", status, re.MULTILINE)
        if match is None:
            raise BenchError(f"/proc/{self.pid}/status has no {kind}")
        return int(match[1]) * 1024

    def end(self) -> None:
        """Unmount and wait for its end."""
        unmount(self.path)
        if self._process.poll() is None and not _is_mounted(self.path):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if "Traceback" in self._log.read_text(errors="replace"):
            raise BenchError(f"{self._process.args!r}: {self._log.read_text()}")


def time_start(command: Sequence[str], mountpoint: Path) -> int:
    """Mount in the background and unmount again; how many ns it took to return, mounted."""
    mountpoint.mkdir(exist_ok=True)
    started = time.perf_counter_ns()
    done = subprocess.run(
        [*command, str(mountpoint)], check=False, stdin=subprocess.DEVNULL, capture_output=True
    )
    took = time.perf_counter_ns() - started
    if done.returncode:
        raise BenchError(f"{command[0]}: {done.stderr.decode(errors='replace')}")
    wait_until(lambda: _is_mounted(mountpoint), "background mount")
    unmount(mountpoint)
    return took
