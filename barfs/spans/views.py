"""What reads and writes of an open file do to what is behind it: raw, fixed-width, text views."""

import sys
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from barfs.access import contract
from barfs.access.apertures import Aperture
from barfs.access.files import Buffer, ReadFile, WriteFile
from barfs.errors import DeviceGone, KernelRefused, Request
from barfs.nodes import Allocate, Lines, View
from barfs.spans.interruptible import whole


def _reach(base: int, size: int, offset: int, length: int) -> range:
    """What of a request lies before the end."""
    return range(base + offset, base + min(offset + length, size))


class RawView:
    """The raw files' contract: a request is one access of its own width where it can be one.

    A request that was cut can't: its parts are never wider than contract.RUN_WIDTH. Memory-like
    apertures are copied instead, in any widths.
    """

    raw: int | None = None
    lines: Lines | None = None
    text_size: int | None = None
    width = 1  # what every request is made of

    def __init__(self, aperture: Aperture, max_width: int | None = None) -> None:
        self.base, self.size = aperture.base, aperture.size
        self.way = aperture.way
        self._aperture = aperture
        self._load, self._store = whole(aperture).load_run, whole(aperture).store_run
        self._max_width = max_width or aperture.max_width
        self._part_width = min(self._max_width, contract.RUN_WIDTH)
        self._requests = contract.Wholeness()

    def for_parts(self) -> "RawView":
        """The same for what is only a part of a request, which is not one access by itself."""
        return RawView(self._aperture, self._part_width)

    def _widest(self, offset: int, asked: int, length: int) -> int:
        """The widest access of a request for `asked` bytes, of which the file has `length`."""
        is_whole = self._requests.is_whole(offset, asked, length)
        return self._max_width if is_whole else self._part_width

    def read(self, offset: int, length: int, allocate: Allocate = bytearray, /) -> Buffer:
        """See View."""
        asked, length = length, contract.clip_read(offset, length, self.size)
        data = allocate(length)
        if length == 0:
            return data
        aperture = self._aperture
        if aperture.memory_like:
            aperture.copy_out(offset, data)
            return data
        widest = self._widest(offset, asked, length)
        # Most requests are one access, and need no plan.
        if contract.is_single(offset, length, self.base, widest):
            self._load(offset, length, data)
            return data
        runs = contract.plan(offset, length, self.base, widest)
        if len(runs) == 1:
            aperture.load_run(offset, runs[0].width, data)
            return data
        with memoryview(data) as rest:
            for at, width, extent in runs:
                aperture.load_run(at, width, rest[at - offset : at - offset + extent])
        return data

    def write(self, offset: int, data: bytes) -> int:
        """See View."""
        length = contract.clip_write(offset, len(data), self.size)
        if length == 0:
            return 0
        aperture = self._aperture
        widest = self._widest(offset, len(data), length)
        if not aperture.memory_like and contract.is_single(offset, length, self.base, widest):
            self._store(offset, length, data if length == len(data) else data[:length])
            return length
        with memoryview(data) as rest:
            if aperture.memory_like:
                aperture.copy_in(offset, rest[:length])
                return length
            for at, width, extent in contract.plan(offset, length, self.base, widest):
                aperture.store_run(at, width, rest[at - offset : at - offset + extent])
        return length

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        """See View."""
        del writing
        return _reach(self.base, self.size, offset, length)

    def width_at(self, offset: int, length: int) -> int | None:
        """See View."""
        if self._aperture.memory_like:
            return None
        asked, length = length, contract.clip_read(offset, length, self.size)
        widest = self._widest(offset, asked, length)
        if contract.is_single(offset, length, self.base, widest):
            return length
        widths = {run.width for run in contract.plan(offset, length, self.base, widest)}
        return widths.pop() if len(widths) == 1 else None

    def close(self) -> None:
        """See View."""
        self._aperture.close()


class FixedView:
    """Only accesses of `width` bytes, ascending. BadRequest for what is not made of whole ones."""

    raw: int | None = None
    lines: Lines | None = None
    text_size: int | None = None

    def __init__(self, aperture: Aperture, width: int) -> None:
        self.base, self.size = aperture.base, aperture.size
        self.way = aperture.way
        self._aperture = aperture
        self._load, self._store = whole(aperture).load_run, whole(aperture).store_run
        self.width = width

    def for_parts(self) -> "FixedView":
        """The same for what is only a part of a request."""
        return self

    def read(self, offset: int, length: int, allocate: Allocate = bytearray, /) -> Buffer:
        """See View. What counts is the request as cut short at the end.

        Python's read() asks for one byte more than the file has.
        """
        length = contract.clip_read(offset, length, self.size)
        contract.check_fixed(offset, length, self.width)
        data = allocate(length)
        if length == self.width:
            self._load(offset, length, data)
        elif length:
            self._aperture.load_run(offset, self.width, data)
        return data

    def write(self, offset: int, data: bytes) -> int:
        """See View. A request that does not fit is refused whole, though its beginning would."""
        length = contract.clip_write(offset, len(data), self.size)
        contract.check_fixed(offset, len(data), self.width)
        contract.check_fixed(offset, length, self.width)
        if length == self.width == len(data):
            self._store(offset, length, data)
        elif length:
            with memoryview(data) as rest:
                self._aperture.store_run(offset, self.width, rest[:length])
        return length

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        """See View."""
        del writing
        return _reach(self.base, self.size, offset, length)

    def width_at(self, offset: int, length: int) -> int:
        """See View."""
        del offset, length
        return self.width

    def close(self) -> None:
        """See View."""
        self._aperture.close()


class TextView:
    """One register of `width` bytes, all of the aperture, as a line of text.

    A read at offset 0 is one access; a read further on continues in the line of that access, so
    that a line may be read in pieces. A write is one access, and with a mask a read and a write
    with nothing of this mount between them.
    """

    raw: int | None = None
    text_size: int | None = None

    def __init__(self, aperture: Aperture, width: int) -> None:
        self.way = aperture.way
        self._aperture = aperture
        self._width = width
        self.lines: Lines | None = contract.Numbers(width)
        self._line = b""

    def _load(self) -> int:
        data = bytearray(self._width)
        self._aperture.load_run(0, self._width, data)
        return int.from_bytes(data, sys.byteorder)

    def _samples(self, offset: int, length: int) -> bool:
        """Whether a read makes an access."""
        if offset == 0 or not self._line:
            return length > 0 and offset < contract.text_size(self._width)
        return False

    def read(self, offset: int, length: int, _: Allocate = bytearray, /) -> Buffer:
        """See View."""
        if self._samples(offset, length):
            self._line = contract.format_value(self._load(), self._width)
        return self._line[offset : offset + length]

    def write(self, offset: int, data: bytes) -> int:
        """See View. BadRequest, before any access, for what is not one value or value:mask."""
        del offset  # each line is a command of its own, as for files in sysfs
        update = contract.parse_update(data, self._width)
        old = 0 if update.mask is None else self._load()
        value = update.apply(old)
        self._aperture.store_run(0, self._width, value.to_bytes(self._width, sys.byteorder))
        return len(data)

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        """See View. The register, whatever the length of the text."""
        accesses = writing or self._samples(offset, length)
        return _reach(self._aperture.base, self._width, 0, self._width if accesses else 0)

    def width_at(self, offset: int, length: int) -> int:
        """See View."""
        del offset, length
        return self._width

    def close(self) -> None:
        """See View."""
        self._aperture.close()


class JoinedView:
    """Views one after the other: a physical range that is partly System RAM.

    All of one width, at whose multiples each begins and ends.
    """

    raw: int | None = None
    lines: Lines | None = None
    text_size: int | None = None

    def __init__(self, views: Sequence[RawView | FixedView]) -> None:
        self._base = views[0].base
        self.way = ", ".join(dict.fromkeys(view.way for view in views))
        self._views = views
        self._for_parts = [view.for_parts() for view in views]
        self._width = views[0].width
        self._starts = [0]
        for view in views:
            self._starts.append(self._starts[-1] + view.size)
        self._size = self._starts.pop()
        self._requests = contract.Wholeness()

    def _parts(
        self, offset: int, asked: int, length: int
    ) -> list[tuple[RawView | FixedView, int, int]]:
        """The views of a request for `asked` bytes, each with offset and length of its part.

        The file has `length` bytes of the request.
        """
        parts = []
        end = offset + length
        index = bisect_right(self._starts, offset) - 1
        is_whole = self._requests.is_whole(offset, asked, length)
        is_part = end > self._starts[index] + self._views[index].size or not is_whole
        views = self._for_parts if is_part else self._views
        while offset < end:
            view, start = views[index], self._starts[index]
            extent = min(end, start + view.size) - offset
            parts.append((view, offset - start, extent))
            offset += extent
            index += 1
        return parts

    def read(self, offset: int, length: int, _: Allocate = bytearray, /) -> Buffer:
        """See View. BadRequest before any part is accessed, if the whole does not fit the width."""
        asked, length = length, contract.clip_read(offset, length, self._size)
        contract.check_fixed(offset, length, self._width)
        parts = self._parts(offset, asked, length)
        return b"".join(view.read(at, extent) for view, at, extent in parts)

    def write(self, offset: int, data: bytes) -> int:
        """See View. BadRequest before any part is accessed, if the whole does not fit the width."""
        length = contract.clip_write(offset, len(data), self._size)
        contract.check_fixed(offset, len(data), self._width)
        contract.check_fixed(offset, length, self._width)
        done = 0
        for view, at, extent in self._parts(offset, len(data), length):
            done += view.write(at, data[done : done + extent])
        return done

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        """See View."""
        del writing
        return _reach(self._base, self._size, offset, length)

    def width_at(self, offset: int, length: int) -> int | None:
        """See View. None if the request reaches several of the views."""
        asked, length = length, contract.clip_read(offset, length, self._size)
        parts = self._parts(offset, asked, length)
        if len(parts) != 1:
            return None
        ((view, at, extent),) = parts
        return view.width_at(at, extent)

    def close(self) -> None:
        """See View."""
        for view in self._views:
            view.close()


class SysfsView(View):
    """Config space or the expansion ROM; the kernel does the accesses."""

    def __init__(self, file: ReadFile) -> None:
        self._file = file

    def reach(self, offset: int, length: int, *, writing: bool) -> range:
        """See View."""
        del writing
        return _reach(0, self._file.size, offset, length)

    def read(self, offset: int, length: int, _: Allocate = bytearray, /) -> Buffer:
        """See View. A ROM's image may end before its BAR does."""
        return self._file.read(offset, contract.clip_read(offset, length, self._file.size))

    def close(self) -> None:
        """See View."""
        self._file.close()


class ConfigView(SysfsView):
    """Config space, of which the kernel shows 64 bytes to those without CAP_SYS_ADMIN."""

    def __init__(self, file: WriteFile) -> None:
        super().__init__(file)
        self._config = file

    def write(self, offset: int, data: bytes) -> int:
        """See View."""
        length = contract.clip_write(offset, len(data), self._config.size)
        return self._config.write(offset, data[:length])

    def read(self, offset: int, length: int, _: Allocate = bytearray, /) -> Buffer:
        """See View. KernelRefused where the kernel ends config space before its end."""
        data = super().read(offset, length)
        if not data and contract.clip_read(offset, length, self._file.size):
            raise KernelRefused(f"config space at {offset:#x} is not shown without CAP_SYS_ADMIN")
        return data


class SnapshotView(View):
    """Text made when the file was opened."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()

    @property
    def text_size(self) -> int:
        """See View."""
        return len(self._text)

    def read(self, offset: int, length: int, _: Allocate = bytearray, /) -> Buffer:
        """See View."""
        return self._text[offset : offset + length]


_GONE: Final = "the device is gone"


class GoneView(View):
    """What is left of a file whose device is gone."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self, offset: int, length: int, _: Allocate = bytearray, /) -> Buffer:
        """DeviceGone."""
        raise DeviceGone(_GONE, what=self._path, during=Request("read", offset, length))

    def write(self, offset: int, data: bytes) -> int:
        """DeviceGone."""
        raise DeviceGone(_GONE, what=self._path, during=Request("write", offset, len(data)))
