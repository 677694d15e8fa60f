"""How requests are fetched and waited for.

pyfuse3 lets trio wait for each request. That takes five system calls, of which two are needed, and
a turn of trio's scheduler. Here one of pyfuse3's tasks waits in poll(2) by itself while requests
keep coming. It spins a little if that pays, and lets trio's other tasks run every few ms. When
nothing comes it leaves the waiting to trio.

pyfuse3 looks up its own `_wait_fuse_readable` and `_session_loop` in its module, and its asyncio
mode relies on that, too. They are replaced there (pyfuse3 3.4 and 3.5, src/pyfuse3/internal.pxi).
If they are not found, pyfuse3's own loop is used, and the log says so.
"""

import contextlib
import inspect
import logging
import os
import select
from collections.abc import Awaitable, Callable, Iterator
from time import perf_counter
from typing import Any, Final

import pyfuse3
import trio

from barfs.daemon.settings import LoopName

log = logging.getLogger(__name__)

# The names that are replaced in pyfuse3.
_WAIT: Final = "_wait_fuse_readable"
_SESSION_LOOP: Final = "_session_loop"

# How many requests may be under way at a time. Nearly all are done at once. The others wait for
# slow devices, each in a task of its own. barfs.requests.workers lets fewer than these wait.
MAX_TASKS: Final = 500

# How long poll(2) waits for a request, and trio's other tasks wait for their turn, in seconds.
TURN: Final = 0.004
_TURN_MS: Final = int(TURN * 1000)

# A client on another CPU comes back sooner than a sleeping process wakes up. How long to look for
# it before sleeping, in seconds.
SPIN: Final = 60e-6

# Spinning pays if it finds something. After so many misses in a row, the next so many waits go
# without it.
MISSES: Final = 5
PAUSE: Final = 100


class Loop:
    """pyfuse3's main loop. The `kind` "stock" leaves it as it is."""

    def __init__(self, kind: LoopName = "fast") -> None:
        self._kind = kind
        self._waiting: FastWait | None = None

    async def run(self, ended: Callable[[], None] = lambda: None) -> None:
        """Answer requests until `end`, or until unmounted. It is called once, after the mount.

        `ended` is called as soon as no more requests come. Some may be under way then. pyfuse3's
        own loop does not call it.
        """
        if self._kind == "fast":
            fd = _session_fd()
            if fd is not None and _has_known_insides():
                self._waiting = FastWait(fd, ended)
                await self._waiting.main()
                return
            log.warning("pyfuse3 %s is not as expected: its own loop is used", _version())
        await pyfuse3.main(max_tasks=MAX_TASKS)

    def end(self) -> None:
        """Let `run` return."""
        if self._waiting is not None:
            self._waiting.over = True
        pyfuse3.terminate()

    @staticmethod
    def is_disconnected() -> bool:
        """Whether the kernel has ended the session: it was unmounted, or aborted."""
        fd = _session_fd()
        if fd is None:
            return False
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return any(event & select.POLLERR for _, event in poll.poll(0))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """A handler waits inside this. Another task fetches requests meanwhile."""
        if self._waiting is None:
            yield
        else:
            with self._waiting.away():
                yield


def _version() -> str:
    # It is needed only here, and slow to import.
    from importlib.metadata import version  # noqa: PLC0415

    return version("pyfuse3")


def _has_known_insides() -> bool:
    insides = (getattr(pyfuse3, name, None) for name in (_WAIT, _SESSION_LOOP))
    return all(inspect.iscoroutinefunction(inside) for inside in insides)


def _session_fd() -> int | None:
    """The descriptor of this process's only FUSE session. None if there is not exactly one."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the directory's own
        if target == "/dev/fuse":
            found.append(int(name))
    return found[0] if len(found) == 1 else None


class FastWait:
    """Chooses the one of pyfuse3's tasks that fetches the next request, and waits for it.

    One task at a time is the reader. It stays the reader as long as its handlers don't wait. A
    handler that is about to wait goes `away`, and a parked task becomes the reader.
    """

    def __init__(self, fd: int, ended: Callable[[], None] = lambda: None) -> None:
        self.over = False
        self._ended = ended
        self._fd = fd
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._poll = poll.poll
        self._parked: list[
            trio.lowlevel.Task
        ] = []  # the last one is used first: its buffer is warm
        # The reader is in `wait`, or does the request that `wait` gave it. Nothing else runs
        # meanwhile, so the next caller of `wait` is the reader.
        self._reading = self._processing = False
        self._away = 0
        self._turn_ends = 0.0
        self._misses_left = 1
        self._pause_left = 0

    async def main(self) -> None:
        """Run pyfuse3.main with its way to wait replaced."""
        insides = {name: getattr(pyfuse3, name) for name in (_WAIT, _SESSION_LOOP)}
        setattr(pyfuse3, _WAIT, self.wait)
        setattr(pyfuse3, _SESSION_LOOP, self._until_over(insides[_SESSION_LOOP]))
        try:
            await pyfuse3.main(max_tasks=MAX_TASKS)
        finally:
            for name, inside in insides.items():
                setattr(pyfuse3, name, inside)

    def _until_over(
        self, session_loop: Callable[..., Awaitable[None]]
    ) -> Callable[..., Awaitable[None]]:
        """A session loop that ends all others, too. It ends only with the session."""

        async def until_over(*args: Any) -> None:
            try:
                await session_loop(*args)
            finally:
                if not self.over:
                    self.over = True
                    self._ended()
                while self._parked:
                    self._unpark()

        return until_over

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """See Loop."""
        self._processing = False
        self._away += 1
        if self._parked and not self._reading:
            self._unpark()
        try:
            yield
        finally:
            self._away -= 1

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def cancelled(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(cancelled)

    def _unpark(self) -> None:
        trio.lowlevel.reschedule(self._parked.pop())

    async def wait(self) -> bool:
        """Wait, in the place of pyfuse3's own: True when there is a request, False at the end."""
        if self._processing:
            self._processing = False
        else:
            while self._reading and not self.over:
                await self._park()
        if self.over:
            return False
        # Handlers that are away need trio's attention when they are done. So trio has to wait then.
        if not self._away and perf_counter() < self._turn_ends and self._look():
            self._processing = True
            return True
        self._reading = True
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except trio.ClosedResourceError:
            return False
        finally:
            self._reading = False
        self._turn_ends = perf_counter() + TURN
        self._processing = not self.over
        return self._processing

    def _look(self) -> bool:
        """Whether there is a request within a turn. It spins first, if that has paid lately."""
        if self._pause_left:
            self._pause_left -= 1
            return bool(self._poll(_TURN_MS))
        until = perf_counter() + SPIN
        while not self._poll(0):
            if perf_counter() > until:
                self._misses_left -= 1
                if not self._misses_left or len(os.sched_getaffinity(0)) == 1:
                    self._misses_left, self._pause_left = 1, PAUSE
                return bool(self._poll(_TURN_MS))
        self._misses_left = MISSES
        return True
