"""Refusals in both logs: each with cause and mend. A flood of them is told as a number.

Everybody who gets to the mount can ask for names that are not there, as fast as he can. So each
user except root and the mount's owner has an allowance of lines. Refusals beyond it are counted.
"""

import errno
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final, NamedTuple, TypeAlias

import trio

from barfs.errors import BarfsError, TooManyRequests
from barfs.journal.records import Caller, Journal, MoreRefusals, Refusal, Subject

log = logging.getLogger(__name__)

# How many refusals of one user get lines of their own: so many at once, and then so many a second.
# The same for all users together.
AT_ONCE: Final = 1000
A_SECOND: Final = 2.0
OF_ALL_AT_ONCE: Final = 4000
OF_ALL_A_SECOND: Final = 20.0

# After how many seconds counted refusals are told.
GATHER: Final = 1.0

# For how many users an allowance is kept, and how many users are told apart in counts.
_USERS: Final = 1024
_TOLD_APART: Final = 8


class Asked(NamedTuple):
    """A request: who asked, and for what."""

    caller: Caller | None = None
    subject: Subject | None = None
    offset: int | None = None
    length: int | None = None


# The user whose request it was, and the facts about it.
Asking: TypeAlias = tuple[int, Callable[[], Asked]]


class _Allowance:
    """An allowance: so many at once, and so many a second."""

    def __init__(self, at_once: int, a_second: float) -> None:
        self._most = self._left = float(at_once)
        self._a_second = a_second
        self._when = monotonic()

    def take(self) -> bool:
        """Take one. Whether one was left."""
        now = monotonic()
        self._left = min(self._most, self._left + (now - self._when) * self._a_second)
        self._when = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Refusals:
    """Tells of refusals in a journal and in the daemon's own log, in the words of `explain`."""

    def __init__(
        self, journal: Journal, explain: Callable[[BarfsError], str], owner: int = 0
    ) -> None:
        self._journal = journal
        self._trusted = {0, owner}
        self._explain = explain
        self._users: dict[int, _Allowance] = {}
        self._others = _Allowance(OF_ALL_AT_ONCE, OF_ALL_A_SECOND)
        self._counted: Counter[int] = Counter()  # by user
        self._flood = trio.Event()

    def note(
        self, operation: str, number: int, error: Exception, ask: Callable[[], Asking]
    ) -> None:
        """Tell of a refused request. `number` is the errno.

        Raises nothing, so that the caller gets an answer in any case.
        """
        name = errno.errorcode[number]
        try:
            uid, asked = ask()
            # A crowd of requests is refused as a crowd, whoever makes them.
            trusted = uid in self._trusted and not isinstance(error, TooManyRequests)
            if not trusted and not self._is_told(uid):
                self._counted[uid] += 1
                self._flood.set()
                return
            if isinstance(error, BarfsError):
                message = self._explain(error)
                log.warning("%s: %s (%s)", operation, message, name)
            else:
                message = f"unforeseen: {type(error).__name__}"
                log.error("%s: unforeseen (EIO)", operation, exc_info=error)
            self._record(operation, number, message, asked)
        except Exception:
            # The exception can't even be printed, or the printing failed.
            with suppress(Exception):
                log.exception("%s: not explained (%s)", operation, name)

    def _record(
        self, operation: str, number: int, message: str, asked: Callable[[], Asked]
    ) -> None:
        try:
            caller, subject, offset, length = asked()
            self._journal.add(Refusal(operation, caller, subject, offset, length, number, message))
        except Exception:
            log.exception("%s: not recorded", operation)

    def _is_told(self, uid: int) -> bool:
        """Whether a user's refusal is a line of its own."""
        allowance = self._users.get(uid)
        if allowance is None:
            if len(self._users) >= _USERS:
                self._users.pop(next(iter(self._users)))
            allowance = self._users[uid] = _Allowance(AT_ONCE, A_SECOND)
        return allowance.take() and self._others.take()

    async def follow(self) -> None:
        """Tell the counts from time to time, until cancelled."""
        while True:
            await self._flood.wait()
            await trio.sleep(GATHER)
            self.tell()

    def tell(self) -> None:
        """Tell the counts of refusals."""
        counted, self._counted = self._counted, Counter()
        self._flood = trio.Event()
        several = len(counted) > _TOLD_APART
        told = [(None, counted.total())] if several else list(counted.items())
        for uid, times in told:
            whose = "several users" if uid is None else f"user {uid}"
            message = f"{times} more requests of {whose} were refused"
            log.warning("%s", message)
            self._journal.add(MoreRefusals(uid, times, message))
