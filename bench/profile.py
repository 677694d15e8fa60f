"""Where a daemon's CPU time goes for one operation, pinned to one CPU with its client.

usage: python -m bench.profile [PAGE]

Needs perf (Debian's linux-perf) and strace. Prints a table: CPU time in the kernel, in the Python
interpreter, in libraries, and the system calls; and puts it into PAGE, docs/performance.md.
"""

import fnmatch
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import machines, page, report
from bench.cases import MIB
from bench.daemons import Daemon, wait_until
from bench.lab import COMPARED, ONE_CPU, Lab

SECONDS: Final = 3

# What perf calls an object of code, and what it is here; the first that fits.
_PARTS: Final = {
    "*kernel*": "kernel",
    "*python3*": "interpreter",
    "__init__.cpython*": "pyfuse3",
    "*libfuse*": "libfuse",
    "_mmio*": "accesses",
    "*": "libc and others",
}
_PATH: Final = f"pci/{machines.SUBJECT}/bar"
_REGISTERS: Final = ("-r", "-s", machines.REGISTERS_SIZE)
_MEMORY: Final = ("-l", MIB, "-s", machines.MEMORY_SIZE)
OPERATIONS: Final[dict[str, tuple[Sequence[object], int]]] = {
    "4-byte read": ((*_REGISTERS, "read"), machines.REGISTERS),
    "4-byte write": ((*_REGISTERS, "write"), machines.REGISTERS),
    "1 MiB read": ((*_MEMORY, "read"), machines.MEMORY),
    "1 MiB write": ((*_MEMORY, "write"), machines.MEMORY),
    "open, read, close": (("open",), machines.REGISTERS),
}


def _shares(data: Path, pid: int) -> dict[str, float]:
    """The shares of a process's CPU time by the parts in _PARTS. All together are 1."""
    # Not --pid, which leaves out what other processes have mapped as well.
    command = ["perf", "report", "-i", str(data), "--stdio", "--sort", "pid,dso"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = dict.fromkeys(_PARTS.values(), 0.0)
    rows = re.findall(rf"^\s*([\d.]+)%\s+{pid}:\S+\s+(\S+)", done.stdout, re.MULTILINE)
    for share, name in rows:
        part = next(part for pattern, part in _PARTS.items() if fnmatch.fnmatch(name, pattern))
        found[part] += float(share)
    total = sum(found.values())
    return {part: share / total for part, share in found.items()}


def _sampled(lab: Lab, daemon: Daemon, client: Sequence[str], cpu: int) -> dict[str, float]:
    """Shares while the client runs."""
    data = lab.directory / "perf.data"
    # All that is on the CPU: with -p each switch between processes would cost perf's own time.
    watch = ["perf", "record", "-q", "-a", "-C", str(cpu), "-F", "2000", "-o", str(data), "--"]
    subprocess.run([*watch, *client], check=True, capture_output=True)
    return _shares(data, daemon.pid)


def _traced(lab: Lab, daemon: Daemon, client: Sequence[str]) -> dict[str, float]:
    """System calls for one operation by name, the most frequent first."""
    strace = ["strace", "-f", "-q", "-c", "-U", "name,calls", "-p", str(daemon.pid)]
    with subprocess.Popen(strace, stderr=subprocess.PIPE, text=True) as tracer:
        wait_until(daemon.is_traced, "strace")
        ran = lab.run(client)
        tracer.send_signal(signal.SIGINT)
        _, said = tracer.communicate()
    rows = re.findall(r"^\s*(\w+)\s+(\d+)\s*$", said, re.MULTILINE)
    calls = {name: int(n) / ran["operations"] for name, n in rows if name != "total"}
    return dict(sorted(calls.items(), key=lambda item: -item[1]))


def profile(lab: Lab, label: str, name: str) -> list[str]:
    """A row of the table."""
    (*options, verb), bar = OPERATIONS[name]
    daemon, path = lab.daemon(16, label), lab.bar(label, bar)
    cpu = lab.through(daemon, *options, verb, path, placement=ONE_CPU).cpu or 0
    _, where = lab.placements()[ONE_CPU]
    assert where is not None  # noqa: S101 - for the type checker
    client = lab.client_command("-c", where, *options, verb, path, warm=False)
    shares = _sampled(lab, daemon, client, where)
    calls = _traced(lab, daemon, client)
    shown = ", ".join(f"{call} {n:.1f}" for call, n in calls.items() if n >= 0.2)
    times = [report.format_value(cpu * share, "ns") for share in shares.values()]
    return [f"{name}, {label}", report.format_value(cpu, "ns"), *times, shown]


def main() -> None:
    """Print the table, and put it into a page if there is one on the command line."""
    rows = [["", "CPU", *_PARTS.values(), "system calls"]]
    with Lab(1000 * SECONDS, 0) as lab:
        for name in OPERATIONS:
            rows += [profile(lab, label, name) for label in COMPARED]
    table = report.as_markdown(rows)
    print(table)
    for name in sys.argv[1:]:
        page.renew(Path(name), "profile", table + "\n")


if __name__ == "__main__":
    main()
