"""What takes long is done in a worker thread, so that a slow device holds up nobody else.

Small requests are done at once, in the loop's own thread: handing over costs more than most of
them take. How much is small is measured, device by device. So many requests of one user may be
under way or wait that nobody else is held up by them; what is more is refused.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Final, NamedTuple, TypeVar

import trio

from barfs.access.contract import overlap
from barfs.errors import MountEnded, NoThreads, TooManyRequests

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

# How long a request may hold up all others, in seconds.
AT_ONCE: Final = 0.001

# How long opening may. A function that has to wake up takes 10 ms and more (PCI Power Management
# 1.2, 5.6.1: D3hot to D0), one that is awake 0.1 ms. And for how long one that was opened so fast
# is taken for awake, in seconds.
OPEN_AT_ONCE: Final = 0.005
AWAKE: Final = 0.1

# What is tried at once before anything is measured, in bytes: one access, as an access to a device
# that does not answer may take 50 ms. And the most that ever is. That is more than any request, so
# that where all are made at once none is measured.
FIRST_TRY: Final = 8
LARGEST: Final = 2 << 20

# The most threads for one device and user; more requests wait for their turn, so that one device's
# clients leave threads to those of others. Root has as many that nobody else can take.
PER_DEVICE: Final = 4
THREADS: Final = 64

# How many requests may wait or be under way: those of one user, of all users but root for one
# device and in all, and of root. Each holds one of the loop's tasks (barfs.daemon.loop.MAX_TASKS),
# and there have to be some left. The users of one device leave half of it to those of others.
PER_USER: Final = 32
AT_ONE_DEVICE: Final = 64
OF_USERS: Final = 128
OF_ROOT: Final = 192

# The same for files that are being opened, so that who waits for a slow device may open others.
OPENS_PER_USER: Final = 16
OPENS_AT_ONE_DEVICE: Final = 24
OPENS_OF_USERS: Final = 48
OPENS_OF_ROOT: Final = 48

# How much data the writes of one user, and of all users but root, may keep waiting, in bytes.
DATA_PER_USER: Final = 8 << 20
DATA_OF_USERS: Final = 32 << 20


class Pace:
    """How fast a BAR, a physical range or a file of sysfs is: what of it is done at once."""

    def __init__(self) -> None:
        self.at_once = FIRST_TRY  # bytes

    def note(self, length: int, took: float, *, done: bool = True) -> None:
        """A request took so many seconds. `length` is that of its accesses, in bytes.

        One that was not done may have ended early: it only tells how slow the place is.
        """
        if took > AT_ONCE:
            self.at_once = min(self.at_once, int(length * AT_ONCE / took / 2))
        elif done and length >= self.at_once and took < AT_ONCE / 2:
            self.at_once = min(2 * length, LARGEST)


class Never(Pace):
    """Nothing is done at once."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = -1

    def note(self, length: int, took: float, *, done: bool = True) -> None:
        """It is so whatever is measured."""


class Device:
    """What the requests of one device share: its threads, and how fast each of its parts is."""

    def __init__(self) -> None:
        self._awake_until = 0.0
        self.paces: defaultdict[Hashable, Pace] = defaultdict(Pace)
        # By user who has requests, and whether they open files.
        self._threads: dict[tuple[int, bool], trio.CapacityLimiter] = {}

    @property
    def is_awake(self) -> bool:
        """Whether it was opened fast a moment ago, so that it won't have to wake up."""
        return perf_counter() < self._awake_until

    def note_open(self, took: float) -> None:
        """Opening a file of it took so many seconds."""
        if took < OPEN_AT_ONCE:
            self._awake_until = perf_counter() + AWAKE

    def fall_asleep(self) -> None:
        """It may have fallen asleep, for all that is known."""
        self._awake_until = 0.0

    @contextmanager
    def threads_for(self, uid: int, *, opening: bool) -> Iterator[trio.CapacityLimiter]:
        """What a user's threads are counted by, for a request."""
        threads = self._threads.setdefault((uid, opening), trio.CapacityLimiter(PER_DEVICE))
        try:
            yield threads
        finally:
            used = threads.statistics()
            if not used.borrowed_tokens and not used.tasks_waiting:
                self._threads.pop((uid, opening), None)


class Place(NamedTuple):
    """What a request is for: its addresses on the bus, whose they are, and who opened the file.

    `data` is how many bytes it keeps as long as it waits, `opening` whether it opens the file.
    """

    reach: range
    device: Device
    uid: int = 0
    data: int = 0
    opening: bool = False


class _Crowd:
    """The requests that wait or are under way, and how many there may be."""

    def __init__(self, per_user: int, at_one_device: int, of_users: int, of_root: int) -> None:
        self._per_user, self._at_one_device = per_user, at_one_device
        self._of_users, self._of_root = of_users, of_root
        self._requests: Counter[int] = Counter()  # by user
        self._at: Counter[Device] = Counter()  # those of all but root
        self._data: Counter[int] = Counter()  # by user, in bytes

    def check(self, place: Place) -> None:
        """TooManyRequests if there are too many already. Fast, since a crowd meets it."""
        uid = place.uid
        mine, at_it = self._requests.get(uid, 0), self._at.get(place.device, 0)
        if uid:
            full = (
                mine >= self._per_user
                or at_it >= self._at_one_device
                or self._requests.total() - self._requests.get(0, 0) >= self._of_users
            )
        else:
            full = mine >= self._of_root
        if full or (place.data and not self._has_room(uid, place.data)):
            raise TooManyRequests(
                f"{mine} requests of user {uid} wait already, and {at_it} of users for the device;"
                " try again later"
            )

    def _has_room(self, uid: int, data: int) -> bool:
        """Whether so many bytes more may wait."""
        if self._data.get(uid, 0) + data > DATA_PER_USER:
            return False
        of_users = self._data.total() - self._data.get(0, 0)
        return not uid or of_users + data <= DATA_OF_USERS

    @contextmanager
    def counted(self, place: Place) -> Iterator[None]:
        """Count a request that has been checked."""
        uid = place.uid
        self._requests[uid] += 1
        self._data[uid] += place.data
        self._at[place.device] += bool(uid)
        try:
            yield
        finally:
            _take(self._requests, uid, 1)
            _take(self._data, uid, place.data)
            _take(self._at, place.device, int(bool(uid)))


def _take(counter: Counter[K], key: K, amount: int) -> None:
    """Take from a counter, and leave no zeros in it."""
    counter[key] -= amount
    if not counter[key]:
        del counter[key]


class _Claim:
    """A request that is under way in a thread, or waits to be."""

    def __init__(self, reach: range, *, alone: bool) -> None:
        self.reach = reach
        self.alone = alone

    def conflicts(self, other: "_Claim") -> bool:
        """Whether the two must not run at the same time."""
        return (self.alone or other.alone) and overlap(self.reach, other.reach)


class Workers:
    """Requests in worker threads, and the order among those that must not run side by side.

    Only a request that reads and then writes (`alone`) keeps others off the bytes that it is for.
    `away` is entered while a request waits, so that the loop can see to others.
    """

    def __init__(self, away: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._away = away
        self.claims: list[_Claim] = []  # in the order they came; some still wait
        self._changed = trio.Event()
        self._threads = trio.CapacityLimiter(THREADS)
        self._roots_threads = trio.CapacityLimiter(THREADS)
        self._requests = _Crowd(PER_USER, AT_ONE_DEVICE, OF_USERS, OF_ROOT)
        self._opens = _Crowd(OPENS_PER_USER, OPENS_AT_ONE_DEVICE, OPENS_OF_USERS, OPENS_OF_ROOT)
        self._waiting: set[trio.CancelScope] = set()
        self._ended = False

    def stand_back(self, reach: range, *, alone: bool = False) -> bool:
        """Whether a request has to wait for one that is under way, and so can't be done at once."""
        mine = _Claim(reach, alone=alone)
        return any(mine.conflicts(claim) for claim in self.claims)

    def check(self) -> None:
        """MountEnded after `end`. To be called between the pieces of a long request."""
        if self._ended:
            raise MountEnded("the mount ends")

    def end(self) -> None:
        """Refuse what waits and what comes; what is under way ends with its next `check`."""
        self._ended = True
        for scope in self._waiting:
            scope.cancel()

    async def run(self, call: Callable[[], T], place: Place, *, alone: bool = False) -> T:
        """What `call` returns, from a worker thread, once no earlier request conflicts.

        TooManyRequests if its user has too many already. One that is cancelled in its thread is
        left to itself: that happens at the end of the mount only.
        """
        self.check()
        crowd = self._opens if place.opening else self._requests
        crowd.check(place)
        claimed = self._claimed(place.reach, alone=alone)
        threads_for = place.device.threads_for(place.uid, opening=place.opening)
        with crowd.counted(place), self._away(), claimed as earlier, threads_for as threads:
            with trio.CancelScope() as scope:
                self._waiting.add(scope)
                try:
                    while not earlier.isdisjoint(self.claims):
                        await self._changed.wait()
                    async with threads:
                        self._waiting.discard(scope)
                        return await self._in_thread(call, place.uid)
                finally:
                    self._waiting.discard(scope)
            raise MountEnded("the mount ends")

    @contextmanager
    def _claimed(self, reach: range, *, alone: bool) -> Iterator[set[_Claim]]:
        """Claim addresses; what has to be waited for."""
        claim = _Claim(reach, alone=alone)
        earlier = {other for other in self.claims if claim.conflicts(other)}
        self.claims.append(claim)
        try:
            yield earlier
        finally:
            self.claims.remove(claim)
            self._changed.set()
            self._changed = trio.Event()

    async def _in_thread(self, call: Callable[[], T], uid: int) -> T:
        begun = False

        def checked() -> T:
            nonlocal begun
            begun = True
            self.check()
            return call()

        limiter = self._threads if uid else self._roots_threads
        try:
            return await trio.to_thread.run_sync(checked, abandon_on_cancel=True, limiter=limiter)
        except RuntimeError as error:
            if begun:
                raise
            raise NoThreads("no thread can be started for it; try again later") from error
