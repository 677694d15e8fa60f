"""Long runs in pieces: the same accesses, and a way out between them."""

import random

import pytest

from barfs.errors import DeviceGone
from barfs.spans import interruptible
from barfs.spans.interruptible import LOOK, PIECE, Interruptible


class Device:
    """An aperture that notes its accesses, by a clock that passes with them."""

    max_width, way = 8, ""

    def __init__(self, *, cost=0.0, base=0x1000, memory_like=False):
        self.size, self.base, self.memory_like = 1 << 20, base, memory_like
        self.cost, self.now = cost, 0.0
        self.pieces = []  # where and how long
        self.runs = []
        self.data = bytearray(random.Random(1).randbytes(self.size))

    def _run(self, kind, offset, width, length):
        self.pieces.append((offset, length))
        self.runs.append((kind, offset, width, length))
        self.now += self.cost * (length // width)

    @property
    def accesses(self):
        """What, where and how wide."""
        return [
            (kind, at, width)
            for kind, offset, width, length in self.runs
            for at in range(offset, offset + length, width)
        ]

    def load_run(self, offset, width, into):
        assert (self.base + offset) % width == len(into) % width == 0
        self._run("load", offset, width, len(into))
        into[:] = self.data[offset : offset + len(into)]

    def store_run(self, offset, width, data):
        assert (self.base + offset) % width == len(data) % width == 0
        self._run("store", offset, width, len(data))
        self.data[offset : offset + len(data)] = data

    def copy_out(self, offset, into):
        self._run("out", offset, 1, len(into))
        into[:] = self.data[offset : offset + len(into)]

    def copy_in(self, offset, data):
        self._run("in", offset, 1, len(data))
        self.data[offset : offset + len(data)] = data

    def close(self):
        """Nothing is behind it."""


@pytest.fixture
def cut(monkeypatch):
    """Makes an aperture over a device, whose checks are noted."""

    def make(device):
        monkeypatch.setattr(interruptible, "perf_counter", lambda: device.now)
        checks = []
        aperture = Interruptible(device, lambda offset, length: checks.append((offset, length)))
        return aperture, checks

    return make


@pytest.mark.parametrize("cost", [0.0, 1e-6, 1e-4, 0.05])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_accesses_are_the_same(cut, cost, width):
    for units in (1, 2, 3, 7, 100, 511):
        for start in (0, width, 40):
            device, plain = Device(cost=cost), Device()
            aperture, _ = cut(device)
            into, expected = bytearray(units * width), bytearray(units * width)
            aperture.load_run(start, width, into)
            plain.load_run(start, width, expected)
            aperture.store_run(start, width, bytes(expected[::-1]))
            plain.store_run(start, width, bytes(expected[::-1]))
            assert into == expected
            assert device.accesses == plain.accesses
            assert device.data == plain.data


def test_one_access_is_one_piece(cut):
    for length in (1, 2, 4, 8):
        device = Device(cost=0.05)
        aperture, checks = cut(device)
        aperture.load_run(8, length, bytearray(length))
        assert device.pieces == [(8, length)]
        assert checks == []


@pytest.mark.parametrize("offset", [0, 1, 63, 64, 4095, 5000])
@pytest.mark.parametrize("length", [1, 64, 4096, 10_000, 100_001])
def test_copies_are_cut_at_wide_multiples(cut, offset, length):
    device, plain = Device(cost=1e-6, memory_like=True), Device()
    aperture, _ = cut(device)
    into = bytearray(length)
    aperture.copy_out(offset, into)
    assert into == plain.data[offset : offset + length]
    aperture.copy_in(offset, bytes(into))
    assert device.data == plain.data
    assert all(at in {offset, 0} or at % 64 == 0 for at, _ in device.pieces)
    assert sum(size for _, size in device.pieces) == 2 * length


@pytest.mark.parametrize("cost", [1e-6, 1e-5, 1e-3, 0.05])
def test_pieces_are_short_and_looked_at_in_between(cut, cost):
    device = Device(cost=cost)
    aperture, checks = cut(device)
    length = min(1 << 20, 4 * int(max(100 * cost, 100 * LOOK) / cost))
    aperture.load_run(0, 4, bytearray(length))
    longest = max(size for _, size in device.pieces) / 4 * cost
    assert longest <= max(4 * PIECE, 2 * cost)
    assert len(checks) >= length / 4 * cost / (LOOK + 2 * max(PIECE, cost)) - 2
    assert all(at + rest == length for at, rest in checks)


def test_a_device_that_ceases_to_answer_is_left_soon(cut):
    """However fast it was, and so however long the pieces were."""
    device = Device(cost=1e-6)
    aperture, _ = cut(device)
    for _ in range(3):
        aperture.load_run(0, 4, bytearray(1 << 20))
    device.cost = 0.05
    begun = device.now

    def gone(offset, length):
        raise DeviceGone("gone")

    aperture._check = gone
    with pytest.raises(DeviceGone):
        aperture.load_run(0, 4, bytearray(1 << 20))
    assert device.now - begun < 10


def test_a_fast_device_costs_few_pieces(cut):
    device = Device(cost=1e-10)
    aperture, checks = cut(device)
    for pieces in (12, 1, 1):
        device.pieces.clear()
        aperture.load_run(0, 4, bytearray(1 << 20))
        assert len(device.pieces) <= pieces
    assert checks == []


def test_what_a_look_finds_ends_the_request(cut):
    device = Device(cost=0.05)
    aperture, _ = cut(device)

    def gone(offset, length):
        if len(device.accesses) > 20:
            raise DeviceGone("gone")

    aperture._check = gone
    with pytest.raises(DeviceGone):
        aperture.load_run(0, 4, bytearray(1 << 16))
    assert 20 < len(device.accesses) < 25


def test_it_says_what_the_aperture_says():
    device = Device(memory_like=True)
    aperture = Interruptible(device, lambda *_: None)
    for name in ("size", "base", "max_width", "memory_like", "way"):
        assert getattr(aperture, name) == getattr(device, name)
    assert aperture.close == device.close


def test_several_tell_where_they_are_in_all_of_them(monkeypatch):
    devices = [Device(cost=0.05), Device(cost=0.05)]
    monkeypatch.setattr(interruptible, "perf_counter", lambda: devices[1].now)
    checks = []
    _, second = interruptible.interruptible(devices, lambda *where: checks.append(where))
    second.load_run(8, 4, bytearray(24))
    assert checks == [(devices[0].size + 8 + at, 24 - at) for at in range(8, 24, 4)]


def test_a_single_register_is_left_as_it_is():
    device = Device()
    device.size = 8
    assert interruptible.interruptible([device], lambda *_: None) == [device]
