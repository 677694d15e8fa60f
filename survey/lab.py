"""A mount of the simulated machine whose log tells what a tool has done."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from survey import verdicts
from survey.terminal import Terminal
from survey.tools import Tool
from survey.verdicts import Request

PROGRAMS: Final = Path(__file__).parent / "programs"
DEVICE: Final = "1b36:0010"
# What is shown, and what is changed to what. The other bytes of the register are not zero.
WANTED: Final = range(8, 12)
CHANGED: Final = range(9, 10)
VALUE: Final = b"\x55"
TIMEOUT: Final = 60


@dataclass(frozen=True)
class Result:
    """What a tool did to the BAR."""

    reads: tuple[Request, ...]
    writes: tuple[Request, ...]
    verdict: str
    said: str  # on its output, if it failed


class Lab:
    """A mount, a directory for a tool's other files, and the log of what was read and written."""

    def __init__(self, mount: Path, work: Path) -> None:
        self.device = mount / DEVICE
        self.work = work
        self._log = (mount / "log").open("rb", buffering=0)
        bar = self.device / "bar0"
        self._path = f"{bar.resolve().relative_to(mount)}"
        self._image = bar.read_bytes()
        assert self._image[CHANGED.start :][:1] != VALUE  # noqa: S101
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(work),
            "LC_ALL": "C.UTF-8",
            "W": str(work),
            "P": str(PROGRAMS),
        }

    def close(self) -> None:
        """The mount can be unmounted then."""
        self._log.close()

    def run(self, part: str, tool: Tool) -> Result:
        """Show or change with a tool. The BAR is as it was at first before and after."""
        for name, content in (("image", self._image), ("changed", self._patched())):
            (self.work / name).write_bytes(content)
        if tool.prepare:
            self._shell(tool.prepare)
        self._events()
        status, said = self._interactive(tool) if tool.keys else self._shell(tool.command)
        events = [one for one in self._events() if one.get("path", "").startswith(self._path)]
        reads, writes = (
            tuple(
                Request(int(one["offset"], 16), one["length"])
                for one in events
                if one["event"] == event
            )
            for event in ("read", "write")
        )
        size = len(self._image)
        if part == "change":
            after = (self.device / "bar0").read_bytes()
            done = after == self._patched()
            if not done and after != self._image:
                raise RuntimeError(f"{tool.name} changed something else")
            verdict = verdicts.changed(reads, writes, CHANGED, size, done=done)
        else:
            verdict = verdicts.shown(reads, WANTED, size)
        with (self.device / "bar0").open("r+b", buffering=0) as bar:
            bar.write(self._image)
        return Result(reads, writes, verdict, said.strip() if status else "")

    def _patched(self) -> bytes:
        return self._image[: CHANGED.start] + VALUE + self._image[CHANGED.stop :]

    def _interactive(self, tool: Tool) -> tuple[int, str]:
        terminal = Terminal(tool.command, self.device, self._environment)
        return terminal.run(tool.keys, TIMEOUT), ""

    def _shell(self, command: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", command],
            cwd=self.device,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
            check=False,
        )
        return done.returncode, done.stdout.decode(errors="replace")

    def _events(self) -> list[dict[str, Any]]:
        """The log's records since the last call: up to an open of our own, which is the last."""
        (self.device / "config").open("rb").close()
        found: list[dict[str, Any]] = []
        end = time.monotonic() + TIMEOUT
        while not found or found[-1].get("pid") != os.getpid():
            found += map(json.loads, self._log.read(1 << 20).splitlines())
            if time.monotonic() > end:
                raise TimeoutError("what was opened is not in the log")
        numbers = [one["n"] for one in found]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise RuntimeError("lines of the log are missing")
        return found


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    """Mount the simulated machine for a block."""
    barfs = [sys.executable, "-m", "barfs"]
    with tempfile.TemporaryDirectory(prefix="barfs-survey-") as directory:
        mount, work = Path(directory) / "bars", Path(directory) / "work"
        mount.mkdir()
        work.mkdir()
        subprocess.run([*barfs, "demo", "--log-reads", mount], check=True, capture_output=True)
        try:
            with contextlib.closing(Lab(mount, work)) as made:
                yield made
        finally:
            subprocess.run([*barfs, "umount", mount], check=True)
