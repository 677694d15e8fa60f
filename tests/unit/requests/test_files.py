"""Open files: their requests at once or later, what is recorded, and when views are closed."""

import os
import threading

import pytest
import trio
import trio.testing
from machines import LOG, find, machine_of, tree_of
from tasks import until

from barfs.access.contract import Numbers
from barfs.errors import BadRequest, BarfsError, DeviceGone, PastEnd
from barfs.journal.records import Caller, Journal, Open
from barfs.machine import simulated
from barfs.names import PciAddress
from barfs.requests import files, workers
from barfs.requests.files import OpenFiles
from barfs.requests.workers import AT_ONCE, AWAKE, FIRST_TRY, Workers
from barfs.spans.views import GoneView

WHO = Caller(0, 1, "test")


class Clock:
    """Time that passes only when a view says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FakeView:
    """Takes its time by the clock; a request in a thread waits until it is told to go on."""

    way = ""
    raw = lines = text_size = None

    def __init__(self, clock, base):
        self.clock, self.base = clock, base
        self.cost = 0.0
        self.log = []
        self.closed = 0
        self.error = None
        self.size = 1 << 30
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.loop = threading.get_ident()

    def _request(self, what):
        assert not self.closed
        here = threading.get_ident() == self.loop
        self.log.append(f"{what} {'at once' if here else 'later'}")
        self.clock.now += self.cost
        if not here:
            self.begun.set()
            assert self.go_on.wait(20)
        assert not self.closed
        if self.error:
            raise self.error

    def read(self, offset, length, allocate=bytearray):
        self._request(f"read {offset}+{length}")
        data = allocate(min(length, 256))
        data[:] = bytes(range(len(data)))
        return data

    def write(self, offset, data):
        self._request(f"write {offset}+{len(data)}")
        return min(len(data), self.size - offset)

    def reach(self, offset, length, *, writing):
        return range(self.base + offset, self.base + offset + length)

    def width_at(self, offset, length):
        length = min(length, self.size - offset)
        return length if length in {1, 2, 4, 8} else None

    def close(self):
        self.closed += 1


class Bench:
    def __init__(self, directory, monkeypatch, *, reads=False):
        self.journal = Journal(reads=reads)
        self.tree = tree_of(machine_of(simulated.build(directory)), self.journal)
        self.clock = Clock()
        self.files = OpenFiles(self.tree, self.journal, Workers())
        self.views = []
        self.open_cost = 0.0
        self.opened_in = []
        self.loop = threading.get_ident()
        self.open_error = None
        self.real_open = self.tree.open
        monkeypatch.setattr(files, "perf_counter", self.clock)
        monkeypatch.setattr(workers, "perf_counter", self.clock)
        monkeypatch.setattr(self.tree, "open", self._open_view)

    def _open_view(self, node, *, writable):
        if node == LOG:
            return self.real_open(node, writable=writable)
        self.opened_in.append(threading.get_ident())
        self.clock.now += self.open_cost
        if self.open_error:
            raise self.open_error
        view = FakeView(self.clock, node.start)
        view.lines = Numbers(node.view.width) if node.view.is_text else None
        view.loop = self.loop
        self.views.append(view)
        return view

    async def open(self, path, mode=os.O_RDWR):
        handle = await self.files.open(find(self.tree, path), mode, WHO)
        return handle, self.views[-1] if self.views else None

    async def read(self, handle, offset, length):
        """As fs.py does."""
        data = self.files.read(handle, offset, length)
        return await self.files.read_later(handle, offset, length) if data is None else data

    async def write(self, handle, offset, data):
        """As fs.py does."""
        done = self.files.write(handle, offset, data)
        return await self.files.write_later(handle, offset, data) if done is None else done

    @property
    def records(self):
        """What the journal has but the opening of files."""
        return [
            dict(entry.record.fields())
            for entry in self.journal.after(0)
            if not isinstance(entry.record, Open)
        ]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


BAR = "pci/0000:00:04.0/bar0"


def test_opening_is_recorded_and_that_of_the_log_is_not(bench):
    async def main():
        for mode, shown in ((os.O_RDONLY, "r"), (os.O_WRONLY, "w"), (os.O_RDWR, "rw")):
            handle, _ = await bench.open(BAR + "@40+4", mode)
            entry = bench.journal.after(0)[-1]
            assert dict(entry.record.fields()) == {
                "event": "open",
                **WHO._asdict(),
                "path": BAR + "@40+4",
                "device": "0000:00:04.0",
                "bar": 0,
                "mode": shown,
            }
            bench.files.close(handle)
        count = bench.journal.count
        log = await bench.files.open(LOG, os.O_RDONLY, WHO)
        assert bench.journal.count == count
        assert (await bench.read(log, 0, 1 << 17)).count(b"\n") == 3

    trio.run(main)


def test_the_log_is_read_in_the_loop_itself_whatever_its_length(bench, monkeypatch):
    """In a thread it would be read while it changes."""
    made = []
    monkeypatch.setattr(
        "barfs.journal.records.Stream.refresh", lambda self: made.append(threading.get_ident())
    )

    async def main():
        log = await bench.files.open(LOG, os.O_RDONLY, WHO)
        for _ in range(3):
            await bench.read(log, 0, 1 << 20)
        assert made == [threading.get_ident()] * 4  # the open takes what there is

    trio.run(main)


def test_small_requests_are_made_at_once_and_large_ones_later(bench):
    async def main():
        handle, view = await bench.open(BAR)
        view.go_on.set()
        assert await bench.read(handle, 0, 4) == bytes(range(4))
        assert await bench.write(handle, 4, b"abcd") == 4
        view.cost = AT_ONCE * 0.9  # neither slow nor so fast that more is tried
        await bench.read(handle, 0, FIRST_TRY)
        await bench.read(handle, 0, FIRST_TRY + 1)
        await bench.write(handle, 0, bytes(FIRST_TRY + 1))
        assert view.log == [
            "read 0+4 at once",
            "write 4+4 at once",
            f"read 0+{FIRST_TRY} at once",
            f"read 0+{FIRST_TRY + 1} later",
            f"write 0+{FIRST_TRY + 1} later",
        ]

    trio.run(main)


def test_reads_at_once_take_the_same_memory_and_each_read_in_a_thread_its_own(bench):
    async def main():
        handle, view = await bench.open(BAR)
        view.go_on.set()
        at_once = [await bench.read(handle, 0, 4) for _ in range(2)]
        view.cost = AT_ONCE * 0.9  # neither slow nor so fast that more is tried
        later = [await bench.read(handle, 0, FIRST_TRY + 1) for _ in range(2)]
        assert at_once[0] is at_once[1]
        at_once[0][0] = 99
        assert later == [bytes(range(FIRST_TRY + 1))] * 2
        assert later[0] is not later[1]

    trio.run(main)


def test_a_slow_register_goes_to_a_thread_and_comes_back_when_it_is_fast(bench):
    async def main():
        handle, view = await bench.open(BAR)
        view.go_on.set()
        view.cost = AT_ONCE * 50
        for _ in range(3):
            await bench.read(handle, 0, 4)
        other, _ = await bench.open(BAR + "@40+4")  # of the same BAR
        bench.views[-1].go_on.set()
        bench.views[-1].cost = AT_ONCE * 50
        await bench.read(other, 0, 4)
        assert view.log == ["read 0+4 at once", "read 0+4 later", "read 0+4 later"]
        assert bench.views[-1].log == ["read 0+4 later"]
        view.cost = 0
        await bench.read(handle, 0, 4)
        await bench.read(handle, 0, 4)
        assert view.log[-2:] == ["read 0+4 later", "read 0+4 at once"]

    trio.run(main)


def test_a_slow_register_that_fails_is_slow_all_the_same(bench):
    async def main():
        handle, view = await bench.open(BAR)
        view.go_on.set()
        view.cost, view.error = AT_ONCE * 50, BarfsError("faulted")
        for call in (bench.read(handle, 0, 4), bench.write(handle, 0, b"abcd")):
            with pytest.raises(BarfsError, match=r"^faulted$"):
                await call
        assert view.log == ["read 0+4 at once", "write 0+4 later"]

    trio.run(main)


@pytest.mark.parametrize("error", [BadRequest, PastEnd])
def test_what_the_rules_refuse_is_named_and_teaches_nothing(bench, error):
    async def main():
        handle, view = await bench.open(BAR)
        view.go_on.set()
        view.error = error("0x3 bytes")
        with pytest.raises(error, match=f"^{BAR}: 0x3 bytes$"):
            await bench.read(handle, 0, 1 << 20)
        view.error = None
        await bench.read(handle, 0, 1 << 20)
        assert view.log == [f"read 0+{1 << 20} later"] * 2

    trio.run(main)


def test_what_is_past_the_end_teaches_nothing(tmp_path):
    """dd reads 1 MiB at the end of a BAR too, in no time."""
    tree = tree_of(machine_of(simulated.build(tmp_path)))
    opened = OpenFiles(tree, Journal(), Workers())

    async def main():
        for name in ("bar0", "x32/bar0@8", "u32/bar0", "config", "rom"):
            node = find(tree, f"pci/0000:00:03.0/{name}")
            handle = await opened.open(node, os.O_RDONLY, WHO)
            file = opened._files[handle]
            size = tree.attributes(node).size
            assert len(file.place(size, 1 << 20, writing=False).reach) == 0
            whole = file.place(0, 1 << 20, writing=False).reach
            assert len(whole) == (4 if name.startswith("x32") else size)
            before = file._pace.at_once
            past_end = opened.read(handle, size, 1 << 20)
            if past_end is None:
                assert name == "rom", "which nothing is read from in the loop"
                past_end = await opened.read_later(handle, size, 1 << 20)
            assert past_end == b""
            assert file._pace.at_once == before
            opened.close(handle)

    trio.run(main)


def test_the_reach_of_text_is_its_register(tmp_path):
    tree = tree_of(machine_of(simulated.build(tmp_path)))
    view = tree.open(find(tree, "pci/0000:00:03.0/x32/bar0@8"), writable=True)
    register = range(0xFEB00008, 0xFEB0000C)
    assert view.reach(0, 1 << 17, writing=False) == register
    assert view.reach(4, 1 << 17, writing=False) == register, "nothing is sampled yet"
    assert len(view.reach(11, 1 << 17, writing=False)) == 0
    view.read(0, 4)
    assert len(view.reach(4, 1 << 17, writing=False)) == 0, "the line goes on"
    assert view.reach(4, 5, writing=True) == register
    assert view.reach(0, 4, writing=False) == register
    view.close()


def test_a_mask_keeps_others_off_its_register_and_no_other(bench):
    async def main():
        text, view = await bench.open("pci/0000:00:04.0/x32/bar0@40")
        raw, other = await bench.open(BAR)
        other.cost = AT_ONCE * 10
        other.go_on.set()
        await bench.read(raw, 0x50, 100)  # it is learnt that it is slow
        other.cost = AT_ONCE * 0.9
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.write, text, 0, b"1:0xff\n")
            await until(view.begun.is_set)
            await bench.read(raw, 0x50, 1)
            nursery.start_soon(bench.read, raw, 0x42, 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert other.log[1:] == ["read 80+1 at once"]
            view.go_on.set()
        assert other.log[2:] == ["read 66+1 later"]

    trio.run(main)


def test_a_view_is_closed_once_and_after_its_last_request(bench):
    async def main():
        handle, view = await bench.open(BAR)
        read = bench.read(handle, 0, FIRST_TRY + 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: read)
            await until(view.begun.is_set)
            bench.files.close(handle)
            assert view.closed == 0
            view.go_on.set()
        assert view.closed == 1
        with pytest.raises(KeyError):
            await bench.read(handle, 0, 4)

    trio.run(main)


def test_a_file_that_is_given_up_while_requests_are_under_way(bench):
    async def main():
        address = PciAddress(0, 0, 4, 0)
        handle, view = await bench.open(BAR)
        config, config_view = await bench.open("pci/0000:00:04.0/config")
        _, elsewhere = await bench.open("pci/0000:00:05.0/bar0")
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(bench.read, handle, 0, FIRST_TRY + 1)
            await until(lambda: len(view.log) >= 2)
            bench.files.give_up(address)
            assert config_view.closed == 1
            assert view.closed == 0
            assert elsewhere.closed == 0
            # From now on nothing is behind it, though it is not closed yet.
            for length in (4, 1 << 20):
                with pytest.raises(DeviceGone, match=rf"{BAR}: read of {length:#x} at 0x8: the "):
                    await bench.read(handle, 8, length)
                with pytest.raises(DeviceGone, match=rf"{BAR}: write of {length:#x} at 0x8: the "):
                    await bench.write(handle, 8, bytes(length))
            view.go_on.set()
        assert len(view.log) == 2
        assert view.closed == 1
        bench.files.give_up(address)
        bench.files.close(handle)
        bench.files.close(config)
        assert (view.closed, config_view.closed) == (1, 1)
        bench.files.close_all()
        assert elsewhere.closed == 1

    trio.run(main)


def test_a_request_that_waits_when_its_device_goes_touches_nothing(bench):
    async def main():
        handle, view = await bench.open(BAR)
        refused = []

        async def read():
            try:
                await bench.read(handle, 0, FIRST_TRY + 1)
            except DeviceGone:
                refused.append(True)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(read)
            await until(lambda: len(view.log) >= 4)
            await trio.testing.wait_all_tasks_blocked(0.01)
            bench.files.give_up(PciAddress(0, 0, 4, 0))
            view.go_on.set()
        assert len(view.log) == 4
        assert len(refused) == 6
        assert view.closed == 1

    trio.run(main)


def test_gone_views_reach_nothing():
    view = GoneView("x")
    assert len(view.reach(0, 1 << 20, writing=True)) == 0
    assert view.width_at(0, 4) is None
    view.close()


def test_opening_is_done_later_where_it_took_long(bench):
    async def main():
        loop = threading.get_ident()
        bench.open_cost = AT_ONCE * 50
        await bench.open(BAR)
        await bench.open(BAR)
        await bench.open("pci/0000:00:05.0/bar0")
        assert [ident == loop for ident in bench.opened_in] == [False] * 3
        bench.open_cost = 0
        await bench.open(BAR)
        await bench.open(BAR)
        bench.clock.now += AWAKE / 2
        await bench.open("pci/0000:00:04.0/config")
        assert [ident == loop for ident in bench.opened_in[3:]] == [False, True, True]
        bench.clock.now += AWAKE * 1.1
        await bench.open(BAR)  # it may have fallen asleep
        await bench.open(BAR)
        assert [ident == loop for ident in bench.opened_in[6:]] == [False, True]
        bench.open_cost, bench.open_error = AT_ONCE * 50, DeviceGone("x")
        for _ in range(2):
            with pytest.raises(DeviceGone):
                await bench.open(BAR)
        assert [ident == loop for ident in bench.opened_in[8:]] == [True, False]

    trio.run(main)


def test_writes_are_recorded_as_far_as_they_went_and_reads_where_asked_for(tmp_path, monkeypatch):
    for reads in (False, True):
        (tmp_path / str(reads)).mkdir()
        bench = Bench(tmp_path / str(reads), monkeypatch, reads=reads)

        async def main(bench=bench):
            handle, view = await bench.open(BAR)
            view.go_on.set()
            await bench.write(handle, 4, b"\x2a\0\0\0")
            view.size = 11
            await bench.write(handle, 8, b"\1\2\3\4")
            view.size = 1 << 30
            view.error = BadRequest("no")
            with pytest.raises(BadRequest):
                await bench.read(handle, 0, 4)
            view.error = None
            await bench.read(handle, 0, 4)
            await bench.read(handle, 0, 9)
            monkeypatch.setattr(view, "read", lambda *_: b"")
            await bench.read(handle, 0x100, 9)  # the end

        trio.run(main)
        shown = [
            {name: record[name] for name in record if name in {"event", "offset", "length",
                                                               "width", "value", "bytes"}}
            for record in bench.records
        ]  # fmt: skip
        writes = [
            {"event": "write", "offset": "0x4", "width": 4, "length": 4, "value": "0x0000002a"},
            {"event": "write", "offset": "0x8", "length": 3, "bytes": "01 02 03"},
        ]
        made = [
            {"event": "read", "offset": "0x0", "width": 4, "length": 4, "value": "0x03020100"},
            {"event": "read", "offset": "0x0", "length": 9},
        ]
        assert shown == writes + (made if reads else [])
