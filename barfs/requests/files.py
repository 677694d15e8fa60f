"""Open files: their requests made at once or in a worker thread, measured, and recorded."""

import os
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count
from time import perf_counter
from typing import Final, TypeVar

import trio

from barfs.access.files import Buffer, leaving_some
from barfs.errors import BadRequest, BarfsError, NoThreads, PastEnd
from barfs.journal.records import Caller, Journal, Open, Opened, Transfer
from barfs.names import PciAddress
from barfs.nodes import Allocate, Kind, Node, Tree, View
from barfs.requests.bounce import Bounce
from barfs.requests.pieces import Fresh, Line, Typed
from barfs.requests.refusals import Asked, Asking
from barfs.requests.shares import Shares
from barfs.requests.workers import AT_ONCE, Device, Never, Pace, Place, Workers
from barfs.spans.views import GoneView

_MODES: Final = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}


R = TypeVar("R")


class OpenFile:
    """What a file handle stands for. The view is closed when the last request in it has ended."""

    def __init__(
        self,
        node: Node,
        view: View,
        opened: Opened,
        device: Device,
        workers: Workers,
        *,
        fresh: Fresh | None = None,
    ) -> None:
        self.node = node
        self.address = node.address
        self.recorded = node.kind.recorded
        self.opened = opened
        self._view = view
        self._device = device
        # Config space and ROM are paced on their own, all views of a BAR as one. What belongs to no
        # function is paced by the open file: there is no end to physical ranges.
        self._pace = device.paces[node.kind, node.bar] if node.address else Pace()
        if node.kind.waits:
            self._pace = Never()
        self._workers = workers
        self.is_text = node.view.is_text
        self.typed = None if view.lines is None else Typed(view.lines)
        self._fresh = fresh
        self.width_at = view.width_at
        self.is_gone = False  # what was typed is then refused at once, whether it is a line or not
        self._users = 0
        self._former: list[View] = []

    @property
    def raw(self) -> int | None:
        """As View.raw."""
        return self._view.raw

    def place(self, offset: int, length: int, *, writing: bool) -> Place:
        """What a request is for."""
        reach = self._view.reach(offset, length, writing=writing)
        return Place(reach, self._device, self.opened.caller.uid, length if writing else 0)

    def accesses(self, offset: int, length: int) -> bool:
        """Whether a read is made of accesses. A text's line is read once, and then continued."""
        return not self.is_text or bool(self._view.reach(offset, length, writing=False))

    def is_prompt(self, offset: int, length: int, *, writing: bool, alone: bool = False) -> bool:
        """Whether a request holds nobody up, and has nobody to wait for."""
        # Nearly always; the reach of text is not its length.
        if length <= self._pace.at_once and not (self._workers.claims or self.is_text):
            return True
        if self.typed is not None and self.typed.pending:
            return False
        place = self.place(offset, length, writing=writing)
        return len(place.reach) <= self._pace.at_once and not self._workers.stand_back(
            place.reach, alone=alone
        )

    def wants_to_be_alone(self, line: Line) -> bool:
        """Whether a line reads first, and nothing of this mount may come between the two."""
        return b":" in line.text or self.opened.subject.field is not None

    # How long a request took is noted, if that tells anything. The two are alike and not one, since
    # small requests spend most of their time in calls.

    def read(self, offset: int, length: int, allocate: Allocate = bytearray) -> Buffer:
        """As View.read."""
        started = perf_counter()
        try:
            data = self._view.read(offset, length, allocate)
        except BarfsError as error:
            self._failed(error, offset, length, started, writing=False)
            raise
        if perf_counter() - started > AT_ONCE or length >= self._pace.at_once:
            self._note(offset, length, started, writing=False)
        return data

    def write(self, offset: int, data: bytes) -> int:
        """As View.write. BadRequest for what a file that was truncated would make zeros of."""
        started = perf_counter()
        length = len(data)
        try:
            if self._fresh is None:
                done = self._view.write(offset, data)
            else:
                done = self._write_fresh(offset, data)
        except BarfsError as error:
            self._failed(error, offset, length, started, writing=True)
            raise
        if perf_counter() - started > AT_ONCE or length >= self._pace.at_once:
            self._note(offset, length, started, writing=True)
        return done

    def _failed(
        self, error: BarfsError, offset: int, length: int, started: float, *, writing: bool
    ) -> None:
        if isinstance(error, (BadRequest, PastEnd)):
            error.what = self.opened.subject.path  # which the rules of requests don't know
        else:
            self._note(offset, length, started, writing=writing, done=False)

    def _write_fresh(self, offset: int, data: bytes) -> int:
        assert self._fresh is not None  # noqa: S101 - for the type checker
        self._fresh.check_write(offset)
        try:
            done = self._view.write(offset, data)
        except PastEnd:
            raise
        except BarfsError:
            self._fresh.failed()
            raise
        self._fresh.wrote(offset + done)
        return done

    def truncate(self, size: int) -> None:
        """The caller truncates the file, which does nothing. BadRequest if it had to give zeros."""
        if self.typed is not None:
            return
        if self._fresh is None:
            self._fresh = Fresh(size)
        try:
            self._fresh.truncate(size)
        except BadRequest as error:
            error.what = self.opened.subject.path
            raise

    def _note(
        self, offset: int, length: int, started: float, *, writing: bool, done: bool = True
    ) -> None:
        took = perf_counter() - started
        reach = self.place(offset, length, writing=writing).reach
        self._pace.note(len(reach), took, done=done)

    async def later(self, request: Callable[[], R], place: Place, *, alone: bool = False) -> R:
        """Make a request in a worker thread. What is behind the file is closed after it.

        Or never, if the thread is left to itself at the end of the mount.
        """
        self._users += 1
        abandoned = False
        try:
            return await self._workers.run(request, place, alone=alone)
        except trio.Cancelled:
            abandoned = True
            raise
        finally:
            if not abandoned:
                self._users -= 1
                self._close_former()

    def give_up(self) -> None:
        """Let go of what is behind it; requests from now on find that it is gone."""
        self.is_gone = True
        self._former.append(self._view)
        self._view = GoneView(self.opened.subject.path)
        self._close_former()

    def _close_former(self) -> None:
        while not self._users and self._former:
            self._former.pop().close()


class OpenFiles:
    """All open files by their handles."""

    def __init__(
        self,
        tree: Tree,
        journal: Journal,
        workers: Workers,
        announce: Callable[[Node, int], None] = lambda _node, _size: None,
    ) -> None:
        self._tree = tree
        self._journal = journal
        self._workers = workers
        self._announce = announce
        # The sizes of texts that were made when they were opened, by handles.
        self._texts: defaultdict[Node, dict[int, int]] = defaultdict(dict)
        self._devices: defaultdict[PciAddress | Kind, Device] = defaultdict(Device)
        self._files: dict[int, OpenFile] = {}
        self._truncated: dict[int, tuple[Node, int, Fresh]] = {}
        self._shares = Shares()
        self._handles = count(1)
        self._bounce = Bounce()

    async def open(self, node: Node, flags: int, caller: Caller) -> int:
        """Open what is behind a node; of the `flags`, the access mode and O_TRUNC count.

        In a worker thread, unless the device is known to be awake: it may have to wake up.
        """
        mode = flags & os.O_ACCMODE
        fresh = Fresh(0) if flags & os.O_TRUNC else None
        device = self._devices[node.address or node.kind]

        leaving = leaving_some if self._shares.is_limited(caller.uid) else nullcontext

        def call() -> tuple[View, float]:
            started = perf_counter()
            with leaving():
                view = self._tree.open(node, writable=mode != os.O_RDONLY)
            return view, perf_counter() - started

        is_awake = device.is_awake
        device.fall_asleep()  # unless it is opened fast again
        self._shares.take(caller.uid)
        try:
            view, took = call() if is_awake else await self._in_thread(call, device, caller)
        except BaseException:
            self._shares.give(caller.uid)
            raise
        try:
            device.note_open(took)
            opened = Opened(caller, self._tree.subject(node))
            file = OpenFile(node, view, opened, device, self._workers, fresh=fresh)
            if file.recorded:
                self._journal.add(Open(opened, _MODES[mode], view.way))
            handle = next(self._handles)
            if view.text_size:
                await self._tell_size(node, handle, view.text_size, device, caller)
        except BaseException:
            self._shares.give(caller.uid)
            view.close()
            raise
        self._files[handle] = file
        if fresh is not None:
            self._truncated[handle] = node, caller.pid, fresh
        return handle

    async def _tell_size(
        self, node: Node, handle: int, size: int, device: Device, caller: Caller
    ) -> None:
        """Announce how long a text is. In a thread, because the kernel may wait for a read of it.

        sendfile, splice and copy_file_range end at the size that the kernel knows, and ask for none
        (fs/fuse/file.c, fuse_splice_read, from Linux 6.5 on).
        """
        if not node.kind.grows:
            self._texts[node][handle] = size
        try:
            place = Place(range(0), device, caller.uid, opening=True)
            await self._workers.run(partial(self._announce, node, size), place)
        except NoThreads:
            return
        except BaseException:
            self._drop_text(node, handle)
            raise

    def _drop_text(self, node: Node, handle: int) -> None:
        sizes = self._texts.get(node)
        if sizes is not None and sizes.pop(handle, None) is not None and not sizes:
            del self._texts[node]

    def text_size(self, node: Node) -> int | None:
        """How long a text is that is open, in bytes. None if it is not open, or not yet made."""
        sizes = self._texts.get(node) if self._texts else None
        return max(sizes.values()) if sizes else None

    async def _in_thread(self, call: Callable[[], R], device: Device, caller: Caller) -> R:
        """What a call returns. Without threads others have to wait for it."""
        try:
            place = Place(range(0), device, caller.uid, opening=True)
            return await self._workers.run(call, place)
        except NoThreads:
            return call()

    def asking(self, handle: int, offset: int, what: int | bytes | None = None) -> Asking:
        """A request to an open file, for the log: of so many bytes, or to write these."""
        length = len(what) if isinstance(what, bytes) else what
        file = self._files.get(handle)
        if file is None:
            return 0, lambda: Asked(offset=offset, length=length)
        caller, subject = file.opened
        return caller.uid, lambda: Asked(caller, subject, offset, length)

    def read(self, handle: int, offset: int, length: int) -> Buffer | None:
        """As View.read; None if it could hold up others, and is to be made by `read_later`.

        The next read may overwrite what this one returns.
        """
        file = self._files[handle]
        if not file.is_prompt(offset, length, writing=False):
            return None
        accesses = self._journal.reads and file.accesses(offset, length)
        data = file.read(offset, length, self._bounce.take)
        if self._journal.reads:
            self._record_read(file, offset, length, data, accesses=accesses)
        return data

    async def read_later(self, handle: int, offset: int, length: int) -> Buffer:
        """As View.read, in a worker thread. What was written before is carried out first."""
        file = self._files[handle]
        await self._end_line(file)
        place = file.place(offset, length, writing=False)
        accesses = file.accesses(offset, length)
        data = await file.later(partial(file.read, offset, length), place)
        if self._journal.reads:
            self._record_read(file, offset, length, data, accesses=accesses)
        return data

    def _record_read(
        self, file: OpenFile, offset: int, length: int, data: Buffer, *, accesses: bool
    ) -> None:
        if len(data) and file.recorded:
            shown = bytes(data) if len(data) <= file.opened.data_limit else None
            width = file.width_at(offset, length) if accesses else None
            self._journal.add(Transfer("read", file.opened, offset, len(data), width, shown))

    def write(self, handle: int, offset: int, data: bytes) -> int | None:
        """As View.write; None if it could hold up others, and is to be made by `write_later`."""
        file = self._files[handle]
        typed = file.typed and not file.is_gone
        if typed or not file.is_prompt(offset, len(data), writing=True):
            return None
        done = file.write(offset, data)
        self._record_write(file, offset, data, done)
        return done

    async def write_later(self, handle: int, offset: int, data: bytes) -> int:
        """As View.write, in a worker thread. Text is kept until it is a line."""
        file = self._files[handle]
        if file.typed is None or file.is_gone:
            return await self._write_in_thread(file, offset, data)
        if not file.typed.goes_on(offset):
            await self._end_line(file)
        try:
            line = file.typed.take(offset, data)
        except BadRequest as error:
            error.what = file.opened.subject.path
            raise
        if line is not None:
            await self._carry_out(file, line)
        return len(data)

    async def _write_in_thread(
        self, file: OpenFile, offset: int, data: bytes, *, alone: bool = False
    ) -> int:
        place = file.place(offset, len(data), writing=True)
        done = await file.later(partial(file.write, offset, data), place, alone=alone)
        self._record_write(file, offset, data, done)
        return done

    async def _carry_out(self, file: OpenFile, line: Line) -> None:
        alone = file.wants_to_be_alone(line)
        if file.is_prompt(line.offset, len(line.text), writing=True, alone=alone):
            done = file.write(*line)
            self._record_write(file, *line, done)
        else:
            await self._write_in_thread(file, *line, alone=alone)

    async def _end_line(self, file: OpenFile) -> None:
        line = None if file.typed is None else file.typed.end()
        if line is not None:
            await self._carry_out(file, line)

    async def end_line(self, handle: int) -> None:
        """Carry out a line that has no newline, as View.write."""
        file = self._files[handle]
        if file.typed is not None:
            await self._end_line(file)

    def truncate(self, handle: int, size: int) -> None:
        """The caller truncates an open file, which does nothing; BadRequest."""
        self._files[handle].truncate(size)

    def has_open(self, address: PciAddress | None) -> bool:
        """Whether a file of a function is open."""
        return any(file.address == address for file in self._files.values())

    def is_truncated(self, node: Node) -> bool:
        """Whether a file is open that was opened with O_TRUNC."""
        return any(node == other for other, *_ in self._truncated.values())

    def size_to(self, node: Node, caller: Caller) -> int | None:
        """How long a file is to the process that has opened it with O_TRUNC; None for all others.

        dd conv=sparse asks for that to see whether the zeros at the end are there.
        """
        for other, pid, fresh in self._truncated.values():
            if (other, pid) == (node, caller.pid):
                return fresh.end
        return None

    def _record_write(self, file: OpenFile, offset: int, data: bytes, done: int) -> None:
        opened = file.opened
        shown = data[:done] if done <= opened.data_limit else None
        width = file.width_at(offset, len(data))
        self._journal.add(Transfer("write", opened, offset, done, width, shown, file.raw))

    def close(self, handle: int) -> None:
        """Close a file."""
        self._truncated.pop(handle, None)
        file = self._files.pop(handle)
        self._shares.give(file.opened.caller.uid)
        self._drop_text(file.node, handle)
        file.give_up()

    def close_all(self) -> None:
        """Close what is still open, at the end of the mount."""
        while self._files:
            self._files.popitem()[1].give_up()

    def give_up(self, address: PciAddress) -> None:
        """A function is gone: let go of its mappings, which would outlive it."""
        for file in self._files.values():
            if file.address == address:
                file.give_up()
        self._devices.pop(address, None)
