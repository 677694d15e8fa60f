"""What reads and writes of an open file do to the aperture behind it."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from barfs import access
from barfs.aperture import Aperture, Buffer, SysfsFile
from barfs.errors import BadRequest
from barfs.nodes import Kind, Node, Tree


class View(Protocol):
    """An open file. Offsets and lengths are bytes; `read` gives a buffer that the caller owns."""

    def read(self, offset: int, length: int) -> Buffer:
        """Up to `length` bytes, fewer only at the end."""

    def write(self, offset: int, data: bytes) -> int:
        """How many bytes were written, fewer than asked only at the end; PastEnd at and past it."""

    def close(self) -> None:
        """Give up what is behind it."""


class RawView:
    """The raw files' contract: a request is one access of its own width where it can be one.

    Memory-like apertures are copied instead, in any widths.
    """

    def __init__(self, aperture: Aperture) -> None:
        self.size = aperture.size
        self._aperture = aperture

    def read(self, offset: int, length: int) -> Buffer:
        """See View."""
        length = access.clip_read(offset, length, self.size)
        data = bytearray(length)
        if length == 0:
            return data
        aperture = self._aperture
        if aperture.memory_like:
            aperture.copy_out(offset, data)
            return data
        runs = access.plan(offset, length, aperture.base, aperture.max_width)
        if len(runs) == 1:
            aperture.load_run(offset, runs[0].width, data)
            return data
        with memoryview(data) as rest:
            for at, width, extent in runs:
                aperture.load_run(at, width, rest[at - offset : at - offset + extent])
        return data

    def write(self, offset: int, data: bytes) -> int:
        """See View."""
        length = access.clip_write(offset, len(data), self.size)
        if length == 0:
            return 0
        aperture = self._aperture
        with memoryview(data) as rest:
            if aperture.memory_like:
                aperture.copy_in(offset, rest[:length])
                return length
            for at, width, extent in access.plan(offset, length, aperture.base, aperture.max_width):
                aperture.store_run(at, width, rest[at - offset : at - offset + extent])
        return length

    def close(self) -> None:
        """See View."""
        self._aperture.close()


class JoinedView:
    """Raw views one after the other: a physical range that is partly System RAM."""

    def __init__(self, views: Sequence[RawView]) -> None:
        self._views = views
        self._starts = [0]
        for view in views:
            self._starts.append(self._starts[-1] + view.size)
        self._size = self._starts.pop()

    def _parts(self, offset: int, length: int) -> list[tuple[RawView, int, int]]:
        """The views of a request inside the size, each with offset and length of its part."""
        parts = []
        end = offset + length
        index = bisect_right(self._starts, offset) - 1
        while offset < end:
            view, start = self._views[index], self._starts[index]
            extent = min(end, start + view.size) - offset
            parts.append((view, offset - start, extent))
            offset += extent
            index += 1
        return parts

    def read(self, offset: int, length: int) -> Buffer:
        """See View."""
        length = access.clip_read(offset, length, self._size)
        return b"".join(view.read(at, extent) for view, at, extent in self._parts(offset, length))

    def write(self, offset: int, data: bytes) -> int:
        """See View."""
        length = access.clip_write(offset, len(data), self._size)
        done = 0
        for view, at, extent in self._parts(offset, length):
            done += view.write(at, data[done : done + extent])
        return done

    def close(self) -> None:
        """See View."""
        for view in self._views:
            view.close()


class ConfigView:
    """Config space; the kernel does the accesses."""

    def __init__(self, file: SysfsFile) -> None:
        self._file = file

    def read(self, offset: int, length: int) -> Buffer:
        """See View. Without CAP_SYS_ADMIN the kernel ends it after 64 bytes."""
        return self._file.read(offset, access.clip_read(offset, length, self._file.size))

    def write(self, offset: int, data: bytes) -> int:
        """See View."""
        length = access.clip_write(offset, len(data), self._file.size)
        return self._file.write(offset, data[:length])

    def close(self) -> None:
        """See View."""
        self._file.close()


def open_view(tree: Tree, node: Node, *, writable: bool) -> View:
    """Open what is behind a file; NoSuchNode and all that opening an aperture raises."""
    match node.kind:
        case Kind.CONFIG:
            return ConfigView(tree.pci.open_config(node.function, writable=writable))
        case Kind.PHYS_FILE:
            apertures = tree.memory.open(node.start, node.size, writable=writable)
            views = [RawView(aperture) for aperture in apertures]
            return views[0] if len(views) == 1 else JoinedView(views)
        case _ if node.kind >= Kind.BAR0:
            return RawView(tree.pci.open_bar(node.function, node.bar, writable=writable))
        case _:
            raise BadRequest(f"{node.path} is not a file")
