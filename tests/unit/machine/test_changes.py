"""Changes in directories of ordinary files, as inotify tells of them."""

import os
import struct

import pytest
import trio
import trio.testing

from barfs.machine import changes
from barfs.machine.changes import Changes, nearest


def told_of(directory, act, matters=lambda _name: True):
    """How often a change is told of when `act` is done in a watched directory."""
    told = []

    async def main():
        watched = Changes()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.run, lambda: told.append(1), matters)
            await trio.testing.wait_all_tasks_blocked()
            assert not watched.watches(directory), "what came before was not told of"
            assert watched.watches(directory)
            act()
            watched.hear()
            nursery.cancel_scope.cancel()
        assert not watched.watches(directory)

    trio.run(main)
    return len(told)


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "watched"
    path.mkdir()
    (path / "old").write_text("old")
    return path


@pytest.mark.parametrize(
    "act",
    [
        lambda path: (path / "new").write_text("new"),
        lambda path: (path / "new").mkdir(),
        lambda path: (path / "old").write_text("changed"),
        lambda path: (path / "old").chmod(0o600),
        lambda path: (path / "old").unlink(),
        lambda path: (path / "old").rename(path / "new"),
        lambda path: (path / "old").rename(path.parent / "elsewhere"),
        lambda path: path.rename(path.parent / "elsewhere"),
        lambda path: ((path / "old").unlink(), path.rmdir()),
    ],
)
def test_a_change_is_told(directory, act):
    assert told_of(directory, lambda: act(directory)) == 1


def test_looking_is_no_change(directory):
    assert told_of(directory, lambda: ((directory / "old").read_text(), os.listdir(directory))) == 0


def test_contents_that_do_not_matter_are_not_told(directory):
    def write():
        (directory / "old").write_text("changed")

    assert told_of(directory, write, lambda name: name != b"old") == 0
    assert told_of(directory, (directory / "old").unlink, lambda name: name != b"old") == 1


def test_lost_messages_are_a_change_and_a_directory_that_is_gone_is_watched_no_more(directory):
    watched = Changes()
    watched._watches = {"a": 1, "b": 2}
    overflow = struct.pack("iIII", -1, 0x4000, 0, 0)
    ignored = struct.pack("iIII", 2, 0x8000, 0, 16) + b"name".ljust(16, b"\0")
    assert watched._has_changed(overflow)
    assert watched._has_changed(ignored + overflow)
    assert watched._watches == {"a": 1}


def test_what_is_not_there_and_what_is_too_much_is_not_watched(tmp_path, directory, monkeypatch):
    async def main():
        watched = Changes()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.run, lambda: None)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(2):
                assert not watched.watches(tmp_path / "absent")
                assert not watched.watches(directory / "old")
            watched.watches(directory)
            monkeypatch.setattr(changes, "MOST", 1)
            for _ in range(2):
                assert not watched.watches(tmp_path)
            assert watched.watches(directory)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_nearest_directory_that_is_there(directory):
    assert nearest(directory) == directory
    assert nearest(directory / "a/b") == directory
    assert nearest(directory / "old/b") == directory
