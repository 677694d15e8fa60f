"""What is done at once and what in a thread, and who waits for whom."""

import threading
import time
from collections import defaultdict

import pytest
import trio
import trio.testing
from tasks import until

from barfs.daemon.loop import MAX_TASKS
from barfs.errors import BarfsError, MountEnded, NoThreads, TooManyRequests
from barfs.requests.workers import (
    AT_ONCE,
    AT_ONE_DEVICE,
    DATA_OF_USERS,
    DATA_PER_USER,
    FIRST_TRY,
    LARGEST,
    OF_ROOT,
    OF_USERS,
    OPENS_AT_ONE_DEVICE,
    OPENS_OF_ROOT,
    OPENS_OF_USERS,
    OPENS_PER_USER,
    PER_DEVICE,
    PER_USER,
    THREADS,
    Device,
    Never,
    Pace,
    Place,
    Workers,
)

FAST, SLOW = AT_ONCE / 10, AT_ONCE * 10


@pytest.mark.parametrize(
    ("requests", "at_once"),
    [
        ([], FIRST_TRY),
        ([(4, FAST)], FIRST_TRY),
        ([(FIRST_TRY, FAST)], 2 * FIRST_TRY),
        ([(FIRST_TRY, AT_ONCE * 0.7)], FIRST_TRY),
        ([(1 << 20, FAST)], LARGEST),
        ([(4096, SLOW)], FIRST_TRY),
        ([(4096, FAST), (4096, SLOW)], 204),  # half of what can be done in time
        ([(1 << 20, FAST), (1 << 20, 4.0)], 131),
        ([(4, SLOW)], 0),  # so the next one is made in a thread
        ([(4096, FAST), (4096, SLOW), (1 << 20, SLOW)], 204),
        ([(4, SLOW), (4, FAST)], 8),  # it was something else that took its time
        ([(1, SLOW), (1, FAST), (2, FAST), (4, FAST)], 8),
        ([(0, FAST)], FIRST_TRY),
        ([(1 << 20, SLOW), (0, FAST)], FIRST_TRY),
    ],
)
def test_how_much_is_done_at_once_is_learnt(requests, at_once):
    pace = Pace()
    for length, took in requests:
        pace.note(length, took)
    assert pace.at_once == at_once


def test_what_waits_is_never_done_at_once():
    pace = Never()
    pace.note(1 << 20, FAST)
    assert pace.at_once < 0


def test_what_failed_only_tells_how_slow_it_is():
    pace = Pace()
    pace.note(LARGEST, FAST, done=False)
    assert pace.at_once == FIRST_TRY
    pace.note(4, SLOW, done=False)
    assert pace.at_once == 0


class Work:
    """Requests that begin when they may and end when they are told to; `made` is what happened."""

    def __init__(self, nursery):
        self.workers = Workers()
        self.devices = defaultdict(Device)
        self.nursery = nursery
        self.made = []
        self.running = set()
        self.most = 0
        self._ends = {}
        self._lock = threading.Lock()

    def _call(self, name, result):
        with self._lock:
            self.made.append(f"{name} begins")
            self.running.add(name)
            self.most = max(self.most, len(self.running))
        assert self._ends[name].wait(20), f"{name} was not told to end"
        with self._lock:
            self.made.append(f"{name} ends")
            self.running.discard(name)
        if isinstance(result, Exception):
            raise result
        return result

    async def start(self, name, start, end, *, device="a", alone=False, result=None, ends=False):
        """A request for bytes, in its own task. Once it is running, or waits."""
        self._ends[name] = threading.Event()
        if ends:
            self._ends[name].set()
        place = Place(range(start, end), self.devices[device])

        async def request():
            await self.workers.run(lambda: self._call(name, result), place, alone=alone)

        self.nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()

    def end(self, *names):
        for name in names:
            self._ends[name].set()

    async def until(self, *made):
        """Wait until exactly this has happened; what begins at a time does so in any order."""
        await until(lambda: len(self.made) >= len(made))
        await trio.testing.wait_all_tasks_blocked()
        beginning = all(each.endswith("begins") for each in made)
        assert (sorted(self.made) if beginning else self.made) == (
            sorted(made) if beginning else list(made)
        )
        self.made.clear()


def run(scenario):
    async def main():
        async with trio.open_nursery() as nursery:
            await scenario(Work(nursery))

    trio.run(main)


def test_requests_run_side_by_side_unless_one_is_alone():
    async def scenario(work):
        await work.start("a", 0, 8)
        await work.start("b", 0, 8)
        await work.until("a begins", "b begins")
        await work.start("alone", 4, 8, alone=True)
        await work.start("c", 0, 4)  # not its bytes
        await work.start("d", 7, 8)  # after it, though a and b would let it
        await work.until("c begins")
        work.end("a")
        await work.until("a ends")
        work.end("b")
        await work.until("b ends", "alone begins")
        work.end("alone")
        await work.until("alone ends", "d begins")
        work.end("c", "d")

    run(scenario)


def test_two_that_are_alone_go_one_after_the_other_in_their_order():
    async def scenario(work):
        for name in "abc":
            await work.start(name, 0, 4, alone=True)
        await work.until("a begins")
        work.end("b", "a")
        await work.until("a ends", "b begins", "b ends", "c begins")
        work.end("c")

    run(scenario)


@pytest.mark.parametrize(
    ("start", "end", "waits"),
    [
        *((0, 4, False), (8, 12, False), (4, 4, False), (6, 6, False)),
        *((3, 5, True), (7, 8, True), (0, 12, True), (5, 6, True), (4, 8, True)),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_only_bytes_that_are_shared_count(start, end, waits, alone):
    async def scenario(work):
        place = Place(range(start, end), Device())
        assert not work.workers.stand_back(place.reach, alone=alone), "nobody is there"
        await work.start("a", 4, 8, alone=not alone)
        assert work.workers.stand_back(place.reach, alone=alone) is waits
        assert not work.workers.stand_back(range(8, 9), alone=True)
        work.end("a")
        await work.until("a begins", "a ends")
        assert not work.workers.stand_back(place.reach, alone=alone)

    run(scenario)


def test_one_device_does_not_take_all_threads():
    async def scenario(work):
        slow = [f"slow{n}" for n in range(20)]
        for n, name in enumerate(slow):
            await work.start(name, n, n + 1)
        await work.until(*(f"{name} begins" for name in slow[:PER_DEVICE]))
        await work.start("other", 0, 4, device="b", ends=True)
        await until(lambda: "other ends" in work.made)
        assert work.most == PER_DEVICE + 1
        work.end(*slow)

    run(scenario)


def test_there_is_an_end_to_threads():
    async def scenario(work):
        names = [f"r{n}" for n in range(THREADS + 8)]
        for n, name in enumerate(names):
            await work.start(name, 0, 4, device=n // PER_DEVICE)
        await until(lambda: len(work.running) >= THREADS)
        assert work.most == THREADS
        work.end(*names)

    run(scenario)


def test_what_a_request_returns_and_raises():
    async def main():
        workers = Workers()
        place = Place(range(4), Device())
        assert await workers.run(lambda: 42, place, alone=True) == 42
        with pytest.raises(OSError, match="broken"):
            await workers.run(lambda: (_ for _ in ()).throw(OSError("broken")), place, alone=True)
        # It left nothing behind that others would wait for.
        assert not workers.stand_back(place.reach, alone=True)
        assert await workers.run(threading.get_ident, place) != threading.get_ident()

    trio.run(main)


def test_one_that_is_cancelled_while_it_waits_lets_the_others_go_on():
    async def scenario(work):
        await work.start("first", 0, 4)
        with trio.CancelScope() as scope:
            scope.cancel()
            await work.workers.run(
                lambda: work.made.append("never"), Place(range(4), work.devices["a"])
            )
        scope = trio.CancelScope()

        async def waiting():
            with scope:
                await work.workers.run(
                    lambda: work.made.append("never"),
                    Place(range(4), work.devices["a"]),
                    alone=True,
                )

        work.nursery.start_soon(waiting)
        await trio.testing.wait_all_tasks_blocked()
        await work.start("last", 0, 4)
        await work.until("first begins")
        scope.cancel()
        await work.until("last begins")
        work.end("first", "last")

    run(scenario)


def test_one_that_is_cancelled_in_its_thread_is_left_to_itself():
    """As at the end of the mount, when there is no more time."""

    async def main():
        workers, begun, end = Workers(), threading.Event(), threading.Event()
        async with trio.open_nursery() as nursery:
            place = Place(range(4), Device())
            nursery.start_soon(workers.run, lambda: begun.set() or end.wait(20), place)
            await until(begun.is_set)
            nursery.cancel_scope.cancel()
        assert not workers.stand_back(range(4), alone=True)
        end.set()

    trio.run(main)


async def outcome(workers, call, place, outcomes, **how):
    try:
        outcomes.append(await workers.run(call, place, **how))
    except BarfsError as error:
        outcomes.append(type(error))


def test_at_the_end_what_waits_is_refused_and_what_is_under_way_can_ask():
    async def main():
        workers, outcomes, begun = Workers(), [], threading.Semaphore(0)
        device = Device()

        def call():
            begun.release()
            while True:  # pieces
                workers.check()
                time.sleep(0.001)

        async with trio.open_nursery() as nursery:
            for n in range(PER_DEVICE + 8):
                nursery.start_soon(outcome, workers, call, Place(range(n, n + 1), device), outcomes)
            masked = Place(range(1), Device())
            nursery.start_soon(
                lambda: outcome(workers, call, masked, outcomes, alone=True)  # waits for the first
            )
            for _ in range(PER_DEVICE):
                await until(lambda: begun.acquire(blocking=False))
            await trio.testing.wait_all_tasks_blocked()
            assert outcomes == []
            workers.end()
        await outcome(workers, lambda: 42, Place(range(1), Device()), outcomes)
        assert outcomes == [MountEnded] * (PER_DEVICE + 10)

    trio.run(main)


class Crowd:
    """Requests that wait until they are told to go on, of several users."""

    def __init__(self, nursery):
        self.workers, self.nursery = Workers(), nursery
        self.outcomes = {}
        self.go_on = threading.Event()

    async def come(self, uid, count, *, device=None, data=0, opening=False):
        """So many requests; how many of the user's are refused by now."""
        device = device or Device()
        outcomes = self.outcomes.setdefault(uid, [])
        for _ in range(count):
            place = Place(range(0), device, uid, data, opening)
            self.nursery.start_soon(outcome, self.workers, self._call, place, outcomes)
        await trio.testing.wait_all_tasks_blocked()
        return len(outcomes)

    def _call(self):
        assert self.go_on.wait(20)
        return "done"


def crowded(scenario):
    async def main():
        async with trio.open_nursery() as nursery:
            crowd = Crowd(nursery)
            try:
                await scenario(crowd)
            finally:
                crowd.go_on.set()

    trio.run(main)


def test_one_user_has_only_so_many_requests_and_others_have_theirs():
    async def scenario(crowd):
        device = Device()
        assert await crowd.come(1000, PER_USER + 5, device=device) == 5
        assert await crowd.come(1000, 1) == 6, "at another device too"
        assert await crowd.come(1001, PER_USER, device=device) == 0
        assert await crowd.come(0, PER_USER + 5, device=device) == 0
        assert set(crowd.outcomes[1000]) == {TooManyRequests}
        crowd.go_on.set()
        await until(lambda: len(crowd.outcomes[1000]) == PER_USER + 6)
        assert crowd.outcomes[1000].count("done") == PER_USER
        await until(lambda: len(crowd.outcomes[1001]) == PER_USER)
        await crowd.come(1000, 1)
        await until(lambda: len(crowd.outcomes[1000]) == PER_USER + 7)
        assert crowd.outcomes[1000][-1] == "done", "as the others have gone"

    crowded(scenario)


def test_who_waits_may_open_files():
    async def scenario(crowd):
        assert await crowd.come(1000, PER_USER) == 0
        assert await crowd.come(1000, OPENS_PER_USER, opening=True) == 0
        assert await crowd.come(1000, 1, opening=True) == 1

    crowded(scenario)


def test_many_users_leave_room_for_root():
    async def scenario(crowd):
        users = range(1, 2 + OF_USERS // PER_USER)
        refused = [await crowd.come(uid, PER_USER) for uid in users]
        assert refused == [0] * (len(users) - 1) + [PER_USER]
        assert await crowd.come(0, OF_ROOT + 1) == 1
        assert OF_USERS + OF_ROOT + OPENS_OF_USERS + OPENS_OF_ROOT < MAX_TASKS - 50

    crowded(scenario)


def test_the_users_of_one_device_leave_room_for_those_of_others():
    async def scenario(crowd):
        device = Device()
        users = range(1, 2 + AT_ONE_DEVICE // PER_USER)
        refused = [await crowd.come(uid, PER_USER, device=device) for uid in users]
        assert refused == [0] * (len(users) - 1) + [PER_USER]
        assert await crowd.come(0, PER_USER, device=device) == 0
        assert await crowd.come(99, PER_USER) == 0
        opening = [await crowd.come(uid, 9, device=device, opening=True) for uid in range(200, 204)]
        assert sum(opening) == 4 * 9 - OPENS_AT_ONE_DEVICE
        assert await crowd.come(204, OPENS_PER_USER, opening=True) == 0
        crowd.go_on.set()
        await until(lambda: len(crowd.outcomes[1]) == PER_USER)
        await crowd.come(98, 1, device=device)
        await until(lambda: crowd.outcomes[98])
        assert crowd.outcomes[98] == ["done"], "as others have gone"

    crowded(scenario)


def test_roots_requests_have_threads_of_their_own():
    async def scenario(crowd):
        for uid in range(1, 5):
            for _ in range(PER_USER // PER_DEVICE):
                await crowd.come(uid, PER_DEVICE)
        done = []
        await outcome(crowd.workers, lambda: 42, Place(range(0), Device()), done)
        assert done == [42]

    crowded(scenario)


def test_users_of_one_device_take_turns():
    """Nobody waits for all that somebody else has asked for."""

    async def scenario(crowd):
        device = Device()
        await crowd.come(1000, PER_USER, device=device)
        done = []
        await outcome(crowd.workers, lambda: 42, Place(range(0), device, 1001), done)
        assert done == [42]

    crowded(scenario)


def test_what_writes_keep_waiting_is_bounded():
    async def scenario(crowd):
        many = DATA_PER_USER >> 20
        assert await crowd.come(1000, many + 2, data=1 << 20) == 2
        assert await crowd.come(1000, 1) == 2, "a read keeps nothing"
        assert await crowd.come(1001, 1, data=1 << 20) == 0
        users = range(1001, 1001 + (DATA_OF_USERS >> 20))
        refused = [await crowd.come(uid, many, data=1 << 20) for uid in users]
        assert sum(many + (uid == 1001) for uid in users) - sum(refused) == (
            (DATA_OF_USERS >> 20) - many
        )
        assert await crowd.come(0, many, data=1 << 20) == 0

    crowded(scenario)


def test_a_thread_that_cannot_be_started_is_an_error_of_the_request(monkeypatch):
    async def main():
        workers, outcomes = Workers(), []
        place = Place(range(4), Device())

        def fail(*_, **__):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as broken:
            broken.setattr("trio._threads.start_thread_soon", fail)
            await outcome(workers, lambda: 42, place, outcomes, alone=True)
        await outcome(workers, lambda: 42, place, outcomes, alone=True)
        assert outcomes == [NoThreads, 42]
        with pytest.raises(RuntimeError, match="its own"):
            await workers.run(lambda: (_ for _ in ()).throw(RuntimeError("its own")), place)

    trio.run(main)
