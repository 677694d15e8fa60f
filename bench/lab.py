"""Machines, daemons and clients: what the cases measure with."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from barfs.machine.simulated import Paths
from bench import machines
from bench.daemons import BenchError, Daemon, barfs_command, reference_command
from bench.programs import program
from bench.stats import Sample

# The daemons by what they are called in tables.
REFERENCE: Final = "C"
BARFS: Final = "barfs"
STOCK: Final = "stock"
UNCOPIED: Final = "C without a copy"
COMPARED: Final = (REFERENCE, BARFS, STOCK)

# Where a daemon and its client run.
ONE_CPU: Final = "one CPU"
APART: Final = "two CPUs"
UNPINNED: Final = "unpinned"

# In slices: what takes longer than so many is given up, where the rest can be reckoned.
GIVE_UP: Final = 20


class Lab:
    """Makes machines and mounts when they are first needed, and removes them all at the end.

    A measurement takes `slice_ms`, after a quarter of that to warm up. In /dev/shm where there is
    one: on a disk, what is written to BARs would be written back meanwhile.
    """

    def __init__(self, slice_ms: int, idle_s: float) -> None:
        self.slice_ms = slice_ms
        self.idle_s = idle_s
        self.reference = program("reference")
        self.client_program = program("client")
        self.cpus = sorted(os.sched_getaffinity(0))
        shm = Path("/dev/shm")  # noqa: S108
        self._place = shm if os.access(shm, os.W_OK) else None
        self._machines: dict[int, Paths] = {}
        self._daemons: dict[tuple[int, str], Daemon] = {}

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="barfs-bench-", dir=self._place))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for daemon in self._daemons.values():
                stack.callback(daemon.end)

    def machine(self, functions: int) -> Paths:
        """The machine of that many functions."""
        if functions not in self._machines:
            directory = self.directory / f"machine-{functions}"
            directory.mkdir()
            self._machines[functions] = machines.build(directory, functions)
        return self._machines[functions]

    def resource(self, bar: int) -> Path:
        """The file behind a BAR of the subject."""
        devices = self.machine(16).sysfs / "bus/pci/devices"
        return devices / str(machines.SUBJECT) / f"resource{bar}"

    def daemon(self, functions: int, label: str) -> Daemon:
        """The daemon of that name on the machine of that many functions."""
        key = functions, label
        if key not in self._daemons:
            name = label.replace(" ", "-")
            self._daemons[key] = Daemon(
                self.command(functions, label), self.directory / f"mnt-{functions}-{name}"
            )
        return self._daemons[key]

    def command(self, functions: int, label: str) -> list[str]:
        """How that daemon is mounted, but for the mountpoint."""
        machine = self.machine(functions)
        if label == REFERENCE:
            return reference_command(self.reference, "copy", machine)
        if label == UNCOPIED:
            return reference_command(self.reference, "map", machine)
        return barfs_command(machine, "--loop", "fast" if label == BARFS else "stock")

    def bar(self, label: str, bar: int, view: str = "") -> Path:
        """A BAR of the subject in that daemon's mount."""
        mountpoint = self.daemon(16, label).path
        return mountpoint / "pci" / str(machines.SUBJECT) / view / f"bar{bar}"

    def client_command(self, *arguments: object, warm: bool = True) -> list[str]:
        """The client for one slice."""
        command = [
            str(self.client_program),
            "-t",
            str(self.slice_ms),
            "-m",
            str(GIVE_UP * self.slice_ms),
        ]
        if warm:
            command += ["-w", str(max(1, self.slice_ms // 4))]
        return [*command, *map(str, arguments)]

    @staticmethod
    def run(command: Sequence[str]) -> dict[str, Any]:
        """What a client prints. BenchError if it fails."""
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def sample(self, command: Sequence[str]) -> Sample:
        """Measure a client, without a look at any daemon."""
        result = self.run(command)
        return Sample(result["ns"] / result["operations"], partial=result["partial"])

    def through(
        self,
        daemon: Daemon,
        *arguments: object,
        placement: str = UNPINNED,
        clients: int = 1,
        warm: bool = True,
    ) -> Sample:
        """Measure a client of a daemon, with the daemon's CPU time for an operation."""
        daemon_cpus, client_cpu = self.placements()[placement]
        daemon.pin(daemon_cpus)
        options: list[object] = [] if client_cpu is None else ["-c", client_cpu]
        if clients > 1:
            options += ["-j", clients]
        options += ["-d", daemon.pid]
        result = self.run(self.client_command(*options, *arguments, warm=warm))
        done, partial = result["operations"], result["partial"]
        cpu = None if partial else result["daemon_ns"] / done
        return Sample(result["ns"] / done, cpu, partial)

    def placements(self) -> Mapping[str, tuple[set[int], int | None]]:
        """The daemon's CPUs and the client's; two CPUs only where there are two."""
        first, last = self.cpus[0], self.cpus[-1]
        found: dict[str, tuple[set[int], int | None]] = {ONE_CPU: ({last}, last)}
        if first != last:
            found[APART] = ({first}, last)
        found[UNPINNED] = (set(self.cpus), None)
        return found
