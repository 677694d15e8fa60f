"""Looking for requests before sleeping, or not: in worlds where one of the two is faster."""

import os
import random

import pytest

from barfs.daemon.spinning import MISSES, ROUND, SPIN, Spinning

# How long a request takes in each of two worlds, in seconds: asleep in between, and spinning. In
# one of them the scheduler puts the client beside the daemon, and nobody comes while that spins.
TOGETHER = 9e-6, 9e-6 + SPIN
APART = 45e-6, 20e-6


class World:
    """Requests one after the other, on a clock that stands still otherwise."""

    def __init__(self, costs, noise=0.0):
        self.costs = costs
        self.noise = noise
        self.spinning = Spinning()
        self.clock = 1.0
        self.random = random.Random(1)
        self.spinning.begin(self.clock)

    def requests(self, number):
        """The share of the requests that were waited for spinning, and how long each took."""
        spun, started = 0, self.clock
        for _ in range(number):
            if self.spinning.is_round():
                self.spinning.end_round(self.clock)
            looks = self.spinning.now
            spun += looks
            if looks and self.costs[1] > SPIN:
                self.spinning.missed(self.clock + SPIN)
            elif looks:
                self.spinning.hit()
            self.clock += self.costs[looks] * (1 + self.random.uniform(0, self.noise))
        return spun / number, (self.clock - started) / number


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.mark.parametrize("noise", [0, 0.3])
def test_it_sleeps_where_the_client_is_beside_it(noise):
    world = World(TOGETHER, noise)
    world.requests(2000)
    share, took = world.requests(100_000)
    assert share < 0.01
    assert took < 1.02 * TOGETHER[0] * (1 + noise / 2)


@pytest.mark.parametrize("noise", [0, 0.3])
def test_it_spins_where_the_client_is_elsewhere(noise):
    world = World(APART, noise)
    world.requests(2000)
    share, took = world.requests(100_000)
    assert share > 0.95
    assert took < 1.1 * APART[1] * (1 + noise / 2)


def test_it_follows_a_change_of_the_world():
    world = World(TOGETHER)
    world.requests(100_000)
    for costs, spins in ((APART, True), (TOGETHER, False), (APART, True)):
        world.costs = costs
        world.requests(MISSES + 100 * ROUND)
        assert world.spinning.now == spins


def test_it_finds_a_better_way_that_shows_in_nothing():
    """What sleeping takes stays the same, so only a trial can tell."""
    world = World((45e-6, 50e-6))
    world.requests(100_000)
    world.costs = APART
    world.requests(50_000)
    assert world.spinning.now


def test_on_a_single_cpu_it_never_spins(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert World(TOGETHER).requests(100_000)[0] == 0


def test_a_wait_between_requests_is_in_no_round():
    world = World(APART)
    for _ in range(1000):
        world.requests(ROUND - 1)
        world.clock += 1
        world.spinning.begin(world.clock)
    assert world.spinning._mean == 0
