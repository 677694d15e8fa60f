"""The journal on disk: what is appended, what a disk that fails loses, and what is moved away."""

import errno
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing
from tasks import until

from barfs.journal import logfile
from barfs.journal.logfile import LogFile
from barfs.journal.records import RECORDS, Change, Journal


def number(n):
    return Change(f"change{n}", "0000:00:04.0")


def add(journal, *numbers):
    for n in numbers:
        journal.add(number(n))


def events(path):
    """What the lines of a file are of."""
    lines = map(json.loads, path.read_text().splitlines())
    return [int(line["event"].removeprefix("change")) for line in lines]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log"


def write(log):
    """What `follow` does when there is something new."""
    log._gather()
    return log._write()


def test_lines_are_appended_to_a_file_for_its_owner_only(path):
    journal = Journal()
    log = LogFile(path, journal)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    add(journal, 0, 1)
    assert write(log)
    add(journal, 2)
    log.close()
    assert events(path) == [0, 1, 2]
    path.chmod(0o640)
    journal = Journal()
    log = LogFile(path, journal)
    add(journal, 3)
    log.close()
    assert events(path) == [0, 1, 2, 3]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "somebody's choice"


def test_it_is_followed_until_cancelled_and_idle_in_between(path, autojump_clock):
    journal = Journal()
    log = LogFile(path, journal)

    async def run():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.follow)
            for n in range(3):
                add(journal, 2 * n, 2 * n + 1)
                await trio.sleep(10 * logfile.GATHER)
                assert events(path) == list(range(2 * n + 2))
            assert journal.listener is not None
            nursery.cancel_scope.cancel()
        assert journal.listener is None
        log.close()

    trio.run(run, clock=autojump_clock)


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0.01)


def test_a_file_that_is_moved_away_or_removed_is_made_anew(path):
    journal = Journal()
    log = LogFile(path, journal)
    add(journal, 0)
    write(log)
    path.rename(path.with_name("log.1"))
    add(journal, 1)
    write(log)
    assert events(path) == [1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    add(journal, 2)
    log.close()
    assert events(path) == [2]
    assert events(path.with_name("log.1")) == [0]


def test_a_file_that_is_copied_and_truncated_goes_on_at_its_start(path):
    journal = Journal()
    log = LogFile(path, journal)
    add(journal, 0)
    write(log)
    os.truncate(path, 0)
    add(journal, 1)
    log.close()
    assert events(path) == [1]


class Disk:
    """os.write as of a disk that takes so many bytes more."""

    def __init__(self, room):
        self.room = room

    def __call__(self, fd, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = os.write(fd, bytes(data)[: self.room])
        self.room -= done
        return done


@pytest.fixture
def disk(monkeypatch):
    disk = Disk(10**9)

    class Os:
        write = disk

        def __getattr__(self, name):
            return getattr(os, name)

    monkeypatch.setattr(logfile, "os", Os())
    return disk


@pytest.mark.parametrize("room", [0, 1, 50, 93, 94, 95, 200])
def test_a_full_disk_loses_only_what_the_journal_forgets_meanwhile(path, disk, caplog, room):
    journal = Journal()
    log = LogFile(path, journal)
    disk.room = room
    add(journal, *range(5))
    assert not write(log)
    assert not write(log)
    add(journal, *range(5, RECORDS + 15))
    assert not write(log)
    assert [record.message for record in caplog.records] == [
        f"--log {path}: No space left on device"
    ]
    disk.room = 10**9
    assert write(log)
    assert events(path) == [0, 1, 2, 3, 4], "whole lines, from where it broke off"
    assert write(log)
    assert events(path) == [*range(5), *range(15, RECORDS + 15)]
    numbers = [json.loads(text)["n"] for text in path.read_text().splitlines()]
    assert numbers == [*range(1, 6), *range(16, RECORDS + 16)], "they tell what is missing"
    log.close()


def test_a_file_that_is_moved_when_a_line_is_half_written_begins_with_the_whole_line(path, disk):
    journal = Journal()
    log = LogFile(path, journal)
    disk.room = 130  # one line and a half
    add(journal, 0, 1, 2)
    assert not write(log)
    path.rename(path.with_name("log.1"))
    disk.room = 10**9
    log.close()
    assert events(path) == [1, 2]
    assert path.with_name("log.1").read_bytes().count(b"\n") == 1


def test_what_is_left_at_the_end_is_written_once(path, disk):
    journal = Journal()
    log = LogFile(path, journal)
    disk.room = 100
    add(journal, 0, 1)
    assert not write(log)
    add(journal, 2)
    disk.room = 10**9
    log.close()
    assert events(path) == [0, 1, 2]


def test_dev_full_holds_nobody_up(caplog):
    journal = Journal()
    log = LogFile(Path("/dev/full").resolve(), journal)
    for n in range(3):
        add(journal, n)
        assert not write(log)
    log.close()
    assert len(caplog.records) == 1


def test_without_threads_or_memory_it_tries_again(path, monkeypatch, caplog):
    """Nothing is lost, and the mount does not end for it."""
    journal = Journal()
    log = LogFile(path, journal)
    real_write, errors = log._write, [RuntimeError("can't start new thread"), MemoryError()]

    def write():
        if errors:
            raise errors.pop(0)
        return real_write()

    monkeypatch.setattr(log, "_write", write)
    monkeypatch.setattr(logfile, "RETRY", 0.001)

    async def run():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.follow)
            add(journal, 0, 1)
            await until(lambda: events(path) == [0, 1])
            nursery.cancel_scope.cancel()

    trio.run(run)
    log.close()
    assert events(path) == [0, 1]
    assert [record.message for record in caplog.records] == [
        f"--log {path}: can't start new thread"
    ]


def test_a_small_file_system(require, tmp_path):
    require(os.geteuid() == 0, "root, to mount a small tmpfs")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", tmp_path], check=False
    )
    require(mounted.returncode == 0, "a tmpfs can be mounted")
    try:
        path = tmp_path / "log"
        journal = Journal()
        log = LogFile(path, journal)
        add(journal, *range(200))
        text = b""
        while not write(log):
            text += path.read_bytes()
            assert len(path.read_bytes()) == 8192
            os.truncate(path, 0)
        text += path.read_bytes()
        log.close()
        assert [json.loads(line)["event"] for line in text.splitlines()] == [
            f"change{n}" for n in range(200)
        ]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_pipe_without_a_reader_and_one_that_is_full(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device or address"):
        LogFile(path, Journal())
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    journal = Journal()
    log = LogFile(path, journal)
    add(journal, *range(2000))
    assert not write(log), "more than a pipe holds"
    text = b""
    while not write(log):
        text += os.read(reader, 1 << 20)
    while journal.count == 2000 and text.count(b"\n") < 2000:
        text += os.read(reader, 1 << 20)
    assert [json.loads(line)["event"] for line in text.splitlines()] == [
        f"change{n}" for n in range(2000)
    ]
    os.close(reader)
    add(journal, 0)
    assert not write(log), "nobody reads"
    log.close()


@pytest.mark.parametrize("name", ["no/log", ".", "log/x"])
def test_a_file_that_cannot_be_is_an_error_at_once(tmp_path, name):
    (tmp_path / "log").touch()
    with pytest.raises(OSError):
        LogFile(tmp_path / name, Journal())


@pytest.mark.parametrize("before", [b"", b'{"event": "change7"}\n', b'{"event": "cha'])
def test_a_line_that_was_torn_is_ended_first(path, before):
    """What a machine that went down while it wrote leaves behind."""
    path.write_bytes(before)
    journal = Journal()
    log = LogFile(path, journal)
    add(journal, 0)
    log.close()
    lines = path.read_bytes().split(b"\n")
    assert lines[:-2] == before.split(b"\n")[: len(lines) - 2]
    assert json.loads(lines[-2])["event"] == "change0"
    assert lines[-1] == b""


def test_a_torn_line_of_a_file_that_can_only_be_written(path, monkeypatch):
    path.write_bytes(b"torn")
    real_open = os.open

    def open_for_writing_only(path, flags, *more, **where):
        if not flags & (os.O_WRONLY | os.O_PATH):
            raise PermissionError
        return real_open(path, flags, *more, **where)

    monkeypatch.setattr(logfile.os, "open", open_for_writing_only)
    LogFile(path, Journal()).close()
    assert path.read_bytes() == b"torn"


OTHER = 65534


@pytest.fixture
def theirs(tmp_path, require):
    """A directory of somebody who is not root."""
    require(os.geteuid() == 0, "root, to give a directory away")
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, OTHER, OTHER)
    return directory


@pytest.fixture
def secret(tmp_path):
    """A file that root alone may write."""
    path = tmp_path / "secret"
    path.write_text("mine\n")
    path.chmod(0o600)
    return path


def plant_link(path, secret):
    path.symlink_to(secret)


def plant_dangling_link(path, secret):
    path.symlink_to(secret.with_name("nologin"))


def plant_other_name(path, secret):
    os.link(secret, path)


def plant_somebodys(path, secret):
    path.touch()
    os.chown(path, OTHER - 1, OTHER - 1)


def plant_pipe(path, secret):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (plant_link, "is a symbolic link"),
        (plant_dangling_link, "is a symbolic link"),
        (plant_other_name, "another name"),
        (plant_somebodys, "belongs to somebody else"),
        (plant_pipe, "no regular file"),
    ],
)
def test_the_owner_of_its_directory_gains_nothing(theirs, secret, caplog, plant, words):
    """Neither what is there at the start is written to, nor what comes to its place."""
    path = theirs / "log"
    plant(path, secret)
    if plant is not plant_pipe:
        with pytest.raises(OSError, match=words):
            LogFile(path, Journal())
    path.unlink()
    journal = Journal()
    log = LogFile(path, journal)
    add(journal, 0)
    assert write(log)
    path.rename(theirs / "moved")
    plant(path, secret)
    before = path.lstat()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if plant is plant_pipe else None
    add(journal, 1)
    assert not write(log)
    assert words in caplog.text
    assert path.lstat().st_size == before.st_size
    path.unlink()
    assert write(log)
    log.close()
    assert events(path) == [1]
    assert secret.read_text() == "mine\n"
    assert sorted(os.listdir(theirs.parent)) == ["secret", "theirs"]
    if reader is not None:
        os.close(reader)


def test_a_directory_is_the_one_that_it_was(theirs, secret):
    """Even if a link to another takes its place."""
    inner = theirs / "inner"
    inner.mkdir()
    os.chown(inner, OTHER, OTHER)
    journal = Journal()
    log = LogFile(inner / "secret", journal)
    inner.rename(theirs / "moved")
    inner.symlink_to(secret.parent)
    (theirs / "moved/secret").unlink()
    add(journal, 0)
    log.close()
    assert secret.read_text() == "mine\n"
    assert events(theirs / "moved/secret") == [0]


def test_on_the_way_to_it_only_roots_links_are_followed(theirs, tmp_path):
    (tmp_path / "here").mkdir()
    for number, target in enumerate((tmp_path / "here", "../here", "../theirs/../here/./", "1")):
        link = theirs / str(number)
        link.symlink_to(target)
        LogFile(link / "log", Journal()).close()
        assert (tmp_path / "here/log").exists()
        (tmp_path / "here/log").unlink()
        os.lchown(link, OTHER, OTHER)
        with pytest.raises(OSError, match="somebody else has made"):
            LogFile(link / "log", Journal())
        os.lchown(link, 0, 0)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        LogFile(tmp_path / "loop/log", Journal())


def test_a_log_with_another_name_is_roots_own_business(path):
    path.touch()
    os.link(path, path.with_name("other"))
    LogFile(path, Journal()).close()


def test_no_descriptor_is_left(theirs, secret):
    before = os.listdir("/proc/self/fd")
    LogFile(theirs / "log", Journal()).close()
    (theirs / "link").symlink_to(secret)
    for name in ("link", "no/log", "."):
        with pytest.raises(OSError):
            LogFile(theirs / name, Journal())
    assert len(os.listdir("/proc/self/fd")) == len(before)
