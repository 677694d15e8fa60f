"""Interactive programs, driven through a terminal of their own."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

SIZE: Final = struct.pack("4H", 24, 80, 0, 0)
# How often in a row a program has to be found waiting for keys before it gets some.
STILL: Final = 3


class Terminal:
    """A shell's command on a terminal of 24 lines and 80 columns."""

    def __init__(self, command: str, where: Path, environment: Mapping[str, str]) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, SIZE)
        self._output = b""
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", "bash", "--norc", "-c", command],
            cwd=where,
            env={**environment, "TERM": "xterm"},
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
        )

    def run(self, keys: Sequence[bytes], timeout: float) -> int:
        """Type each of `keys` when the program waits for it; the exit status.

        Raises TimeoutError, with what was on the screen last, if it does not end in `timeout`
        seconds.
        """
        end = time.monotonic() + timeout
        try:
            for some in keys:
                still = 0
                while still < STILL and self._process.poll() is None:
                    self._check(end)
                    still = still + 1 if self._waits() else 0
                os.write(self._master, some)
            while self._process.poll() is None:
                self._check(end)
                self._collect()
            return self._process.returncode
        finally:
            if self._process.poll() is None:
                self._end()
            os.close(self._slave)
            os.close(self._master)

    def _check(self, end: float) -> None:
        if time.monotonic() > end:
            raise TimeoutError(f"it goes on, and its screen ends with {self._output[-400:]!r}")

    def _collect(self) -> bool:
        """Whether it has printed something in some milliseconds."""
        if not select.select([self._master], [], [], 0.02)[0]:
            return False
        self._output += os.read(self._master, 65536)
        return True

    def _waits(self) -> bool:
        """Whether it has read and shown all it was given, and sleeps, without the line editor."""
        if self._collect():
            return False
        (unread,) = struct.unpack("i", fcntl.ioctl(self._slave, termios.FIONREAD, bytes(4)))
        if unread or termios.tcgetattr(self._slave)[3] & termios.ICANON:
            return False
        try:
            stat = Path(f"/proc/{self._foreground()}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "S"

    def _foreground(self) -> int:
        (group,) = struct.unpack("i", fcntl.ioctl(self._master, termios.TIOCGPGRP, bytes(4)))
        return int(group)

    def _end(self) -> None:
        group = self._foreground()
        if group:
            os.killpg(group, signal.SIGKILL)
        else:  # the terminal is nobody's yet, and 0 would be the group of this process
            self._process.kill()
        self._process.wait()
