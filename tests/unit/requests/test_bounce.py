"""The memory that reads go through."""

import mmap

import pytest

from barfs.requests.bounce import SIZE, SMALL, Bounce


@pytest.mark.parametrize("length", [0, 1, 4, SMALL, SMALL + 1, 1 << 20, SIZE, SIZE + 1])
def test_there_is_room_for_every_length(length):
    room = Bounce().take(length)
    assert len(room) == length
    room[:] = bytes(range(256)) * (length // 256) + bytes(length % 256)
    assert room[: length // 256 * 256] == bytes(range(256)) * (length // 256)


@pytest.mark.parametrize("length", [8, SMALL + 8])
def test_it_is_the_same_memory_each_time(length):
    bounce = Bounce()
    bounce.take(length)[:4] = b"left"
    bounce.take(length - 1)[0:1] = b"L"
    assert bytes(bounce.take(length)[:4]) == b"Left"


def test_a_kernel_without_huge_pages(monkeypatch):
    class Plain(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    assert len(Bounce().take(SIZE)) == SIZE
