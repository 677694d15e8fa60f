"""What is refused is told, and a flood of it is counted."""

import errno
import logging
from time import perf_counter

import pytest
import trio
import trio.testing

from barfs.errors import NoSuchNode, TooManyRequests
from barfs.journal.records import Caller, Journal
from barfs.requests import refusals
from barfs.requests.refusals import Asked, Refusals

# Less than what the journal keeps.
AT_ONCE = 100
OF_ALL_AT_ONCE = 500


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(refusals, "monotonic", clock)
    monkeypatch.setattr(refusals, "AT_ONCE", AT_ONCE)
    monkeypatch.setattr(refusals, "OF_ALL_AT_ONCE", OF_ALL_AT_ONCE)
    return clock


class Told:
    """Refusals, and what they came to."""

    def __init__(self):
        self.journal = Journal()
        self.refusals = Refusals(self.journal, lambda error: f"explained: {error}")
        self.asked = 0

    def refuse(self, uid, times=1, name="x", kind=NoSuchNode):
        def ask():
            self.asked += 1
            return Asked(Caller(uid, 7, "stat"))

        for _ in range(times):
            error = kind(f"there is no {name}")
            self.refusals.note("lookup", errno.ENOENT, error, lambda: (uid, ask))

    def lines(self):
        """Whose they are, and how many requests they are of."""
        fields = [dict(entry.record.fields()) for entry in self.journal.after(0)]
        return [(line.get("uid"), line.get("times", 1)) for line in fields]

    def count(self, uid):
        """How many requests of a user's they are of, that the journal has not forgotten."""
        return sum(times for whose, times in self.lines() if whose == uid)


@pytest.fixture
def told(clock):
    return Told()


def test_a_refusal_is_told_in_both_logs(told, caplog):
    told.refuse(1000, name="such thing")
    (entry,) = told.journal.after(0)
    assert dict(entry.record.fields()) == {
        "event": "refused",
        "operation": "lookup",
        "uid": 1000,
        "pid": 7,
        "process": "stat",
        "errno": "ENOENT",
        "message": "explained: there is no such thing",
    }
    assert caplog.messages == ["lookup: explained: there is no such thing (ENOENT)"]


def test_a_flood_is_counted_and_costs_little(told, clock, caplog):
    caplog.set_level(logging.WARNING)
    told.refuse(1000, AT_ONCE)
    assert told.lines() == [(1000, 1)] * AT_ONCE
    started = perf_counter()
    told.refuse(1000, 10_000)
    assert perf_counter() - started < 1
    assert told.asked == AT_ONCE, "nothing is found out about what is only counted"
    assert len(caplog.messages) == AT_ONCE
    told.refuse(1001)
    told.refuse(0)
    assert told.lines()[-2:] == [(1001, 1), (0, 1)], "others' are told"
    told.refusals.tell()
    assert told.lines()[-1] == (1000, 10_000)
    assert caplog.messages[-1] == "10000 more requests of user 1000 were refused"
    told.refusals.tell()
    assert told.count(1000) == AT_ONCE + 10_000, "once"
    # It comes back with time.
    clock.now += 3 / refusals.A_SECOND
    told.refuse(1000, 4)
    assert told.lines()[-3:] == [(1000, 1)] * 3
    clock.now += 1000
    told.refuse(1000, AT_ONCE)
    assert told.lines()[-AT_ONCE:] == [(1000, 1)] * AT_ONCE


def test_many_users_have_an_allowance_together_and_root_his_own(told):
    """One real user may have thousands of numbers (subuid(5))."""
    for uid in range(1, 5000):
        told.refuse(uid, 10)
    assert len(told.lines()) == OF_ALL_AT_ONCE
    told.refuse(0)
    assert told.lines()[-1] == (0, 1)
    told.refusals.tell()
    assert told.lines()[-1] == (None, 4999 * 10 - OF_ALL_AT_ONCE)
    assert len(told.refusals._users) <= 1024


def test_root_and_the_owner_are_told_each_time_but_for_crowds(told):
    told.refusals._trusted.add(1000)
    for uid in (0, 1000):
        told.refuse(uid, 2 * AT_ONCE)
        assert told.count(uid) == 2 * AT_ONCE
        told.refuse(uid, 2 * AT_ONCE, kind=TooManyRequests)
        assert told.count(uid) <= 3 * AT_ONCE


def test_what_was_counted_is_told_soon(told):
    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(told.refusals.follow)
            for _ in range(3):
                told.refuse(1000, AT_ONCE + 5)
                await trio.sleep(refusals.GATHER * 1.1)
                assert told.count(1000) == told.refusals_made()
            nursery.cancel_scope.cancel()

    made = iter(range(1, 4))
    told.refusals_made = lambda: next(made) * (AT_ONCE + 5)
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_what_cannot_be_told_is_no_trouble(told, caplog):
    class Unspeakable(Exception):
        def __str__(self):
            raise RuntimeError

    def fail():
        raise ValueError("nobody knows")

    told.refusals.note("read", errno.EIO, Unspeakable(), lambda: (0, Asked))
    told.refusals.note("read", errno.EIO, NoSuchNode("x"), fail)
    told.refusals.note("read", errno.EIO, NoSuchNode("x"), lambda: (0, fail))
    assert "read: not explained (EIO)" in caplog.messages
    assert "read: not recorded" in caplog.messages
