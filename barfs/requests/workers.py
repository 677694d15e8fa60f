"""What takes long is done in a worker thread, so that a slow device holds up nobody else.

Small requests are done at once, in the loop's own thread: handing over costs more than most of
them take. How much is small is measured, device by device.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple, TypeVar

import trio

from barfs.access.contract import overlap

T = TypeVar("T")

# How long a request may hold up all others, in seconds.
AT_ONCE: Final = 0.001

# How long opening may. A function that has to wake up takes 10 ms and more (PCI Power Management
# 1.2, 5.6.1: D3hot to D0), one that is awake 0.1 ms.
OPEN_AT_ONCE: Final = 0.005

# A read of a register takes about 1 us on PCIe: what is tried at once before anything is measured,
# and the most that ever is, in bytes. That is more than any request, so that where all are made at
# once none is measured.
FIRST_TRY: Final = 4096
LARGEST: Final = 2 << 20

# The most threads for one device; more requests wait for their turn, so that one device's clients
# leave threads to those of others.
PER_DEVICE: Final = 4
THREADS: Final = 64


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


class Device:
    """What the requests of one device share: its threads, and how fast each of its parts is.

    `opens_at_once` is whether it did not take long the last time that a file of it was opened.
    """

    def __init__(self) -> None:
        self.opens_at_once = True
        self.threads = trio.CapacityLimiter(PER_DEVICE)
        self.paces: defaultdict[Hashable, Pace] = defaultdict(Pace)


class Place(NamedTuple):
    """What a request is for: its addresses on the bus, and whose they are."""

    reach: range
    device: Device


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

    def stand_back(self, reach: range, *, alone: bool = False) -> bool:
        """Whether a request has to wait for one that is under way, and so can't be done at once."""
        mine = _Claim(reach, alone=alone)
        return any(mine.conflicts(claim) for claim in self.claims)

    async def run(self, call: Callable[[], T], place: Place, *, alone: bool = False) -> T:
        """What `call` returns, from a worker thread, once no earlier request conflicts."""
        claim = _Claim(place.reach, alone=alone)
        earlier = {other for other in self.claims if claim.conflicts(other)}
        self.claims.append(claim)
        with self._away():
            try:
                while not earlier.isdisjoint(self.claims):
                    await self._changed.wait()
                async with place.device.threads:
                    return await trio.to_thread.run_sync(call, limiter=self._threads)
            finally:
                self.claims.remove(claim)
                self._changed.set()
                self._changed = trio.Event()
