"""BARs and memory of a machine that was recorded: what was read then, and nothing else."""

from collections.abc import Mapping
from typing import Final

from barfs.access.apertures import Aperture, PortAperture
from barfs.access.files import Buffer
from barfs.errors import Access, NotRecorded, ReadOnly, Verb, What
from barfs.machine.recorded import missing
from barfs.machine.recording import Part, RecordedFunction
from barfs.names import PciAddress
from barfs.spans.ways import BarPart, Place, Refused

_MAX_WIDTH: Final = 8


class RecordedAperture:
    """`size` bytes from `start` of what was read of a BAR. It has no registers, only bytes.

    So they can be read in any width, whatever they were recorded in. `part` is None if nothing was
    read. `sentence` says what the recording lacks.
    """

    way = ""

    def __init__(
        self,
        part: Part | None,
        start: int,
        size: int,
        *,
        what: What,
        base: int,
        memory_like: bool,
        sentence: str,
        max_width: int = _MAX_WIDTH,
    ) -> None:
        self.size = size
        self.max_width = max_width
        self.base = base
        self.memory_like = memory_like
        self._part = part
        self._start = start
        self._what = what
        self._sentence = sentence

    def copy_out(self, offset: int, into: Buffer) -> None:
        """Fill `into`. NotRecorded if any of it was not read."""
        with memoryview(into) as room:
            try:
                data = self._part.at(self._start + offset, len(room)) if self._part else b""
            except OSError:
                data = b""
            if len(data) < len(room):
                raise NotRecorded(
                    self._sentence, what=self._what, during=_during("read", offset, len(room))
                )
            room[:] = data

    def load_run(self, offset: int, width: int, into: Buffer) -> None:
        """As copy_out."""
        del width
        self.copy_out(offset, into)

    def copy_in(self, offset: int, data: Buffer) -> None:
        """ReadOnly."""
        during = _during("write", offset, len(data))
        raise ReadOnly("a recording is only read", what=self._what, during=during)

    def store_run(self, offset: int, width: int, data: Buffer) -> None:
        """ReadOnly."""
        del width
        self.copy_in(offset, data)

    def close(self) -> None:
        """Nothing is held."""


def _during(verb: Verb, offset: int, length: int) -> Access:
    return Access(verb, offset, length)


class Recorded:
    """The one way to a recorded machine. It leads everywhere, and often to nothing."""

    name = "recording"

    def __init__(self, functions: Mapping[PciAddress, RecordedFunction]) -> None:
        self._functions = functions

    def open(self, place: Place, refused: Refused | None, *, writable: bool) -> Aperture | None:
        """See Way. Raises ReadOnly."""
        del refused
        if writable:
            what = place.what if isinstance(place, BarPart) else place.span
            raise ReadOnly("a recording is only read", what=what)
        if not isinstance(place, BarPart):
            return RecordedAperture(
                None,
                place.start,
                place.size,
                what=place.span,
                base=place.start,
                memory_like=place.is_ram or place.as_memory,
                sentence=missing(None, "phys"),
            )
        function, name = self._functions.get(place.address), f"bar{place.bar}"
        return RecordedAperture(
            None if function is None else function.parts.get(name),
            place.offset,
            place.size,
            what=place.what,
            base=place.base,
            memory_like=place.memory_like,
            sentence=missing(function, name),
            max_width=_MAX_WIDTH if place.resource.is_memory else PortAperture.max_width,
        )
