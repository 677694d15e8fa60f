"""Reading what is to be saved of a BAR: through the same ways and accesses as a mount reads."""

import sys
from collections.abc import Callable
from typing import IO, Final, NamedTuple

from barfs.access.apertures import Aperture
from barfs.daemon.interruption import held
from barfs.diagnosis.causes import Machine
from barfs.errors import BarfsError, DeviceGone
from barfs.machine.resources import bar_of
from barfs.names import ViewKind
from barfs.nodes import View
from barfs.registers.maps import Register
from barfs.registers.plans import words
from barfs.saving.wishes import Reading
from barfs.spans.bars import check_answers
from barfs.spans.choosing import ways_to_bars
from barfs.spans.opening import Spans
from barfs.spans.registers import Cells, SampledText, locate
from barfs.spans.ways import Ways

# How much is asked for at once. A program such as cat asks for more than is left, too: what is not
# asked for alone is read in accesses of at most 4 bytes.
PIECE: Final = 1 << 20


# The text that registers are read for. It only says that they were.
_DONE: Final = "read\n"


class Bytes(NamedTuple):
    """Bytes that were read: they begin at `start`, in accesses of `width` bytes, or of several."""

    start: int
    length: int
    width: int | None


class Reader:
    """Reads the BARs and ROMs of one machine."""

    def __init__(self, machine: Machine, told: Callable[[int], None]) -> None:
        """`told` is called with the number of bytes whenever some were read."""
        self._pci = machine.pci
        bars = ways_to_bars(machine.pci, machine.memory, "resource", None)
        self._ways = Ways(machine.pci, machine.memory, bars)
        self._spans = Spans(self._ways, machine.memory)
        self._told = told

    def read(self, reading: Reading, into: IO[bytes]) -> list[Bytes]:
        """Append what was read to a file. Nothing is appended if this raises an error of barfs.

        NotDecoded if the BAR does not answer, before it is read or afterwards: what it gave is no
        data then. Further all that opening and reading in a mount raises.
        """
        begin = into.tell()
        try:
            if reading.registers:
                found = self._registers(reading, into)
            else:
                found = self._range(reading, into)
            self._check_afterwards(reading)
        except BaseException:
            into.seek(begin)
            into.truncate()
            raise
        return found

    def _check_afterwards(self, reading: Reading) -> None:
        """NotDecoded if the BAR has ceased to answer, and DeviceGone."""
        if reading.bar is not None:
            resource = bar_of(reading.address, self._pci.resources(reading.address), reading.bar)
            check_answers(self._ways, reading.address, reading.bar, resource)

    def _open(self, reading: Reading) -> View:
        if reading.bar is None:
            return self._spans.rom(reading.address)
        return self._spans.bar(
            reading.address,
            reading.bar,
            reading.view,
            start=reading.start,
            size=reading.size,
            writable=False,
            what=str(reading),
        )

    def _range(self, reading: Reading, into: IO[bytes]) -> list[Bytes]:
        view = self._open(reading)
        try:
            done = 0
            while done < reading.size:
                if reading.bar is None:
                    with held():  # or the ROM would stay enabled
                        data = view.read(done, PIECE)
                else:
                    data = view.read(done, PIECE)
                if not data:
                    break  # a ROM's image may end before its BAR does
                into.write(data)
                done += len(data)
                self._told(len(data))
        finally:
            view.close()
        return [Bytes(reading.start, done, _width_of(reading))] if done else []

    def _registers(self, reading: Reading, into: IO[bytes]) -> list[Bytes]:
        """Each register once; also those that tell where others are."""
        sample = _Sample(reading)
        view = self._spans.bar(
            reading.address,
            reading.bar or 0,
            ViewKind.U8,
            writable=False,
            what=str(reading),
            make=lambda aperture: SampledText(aperture, sample, range(0), None, len(_DONE)),
        )
        try:
            view.read(0, PIECE)
        finally:
            view.close()
        found: list[Bytes] = []
        end = 0
        for start, (data, width) in sorted(sample.found.items()):
            if start < end:  # two names of one place
                continue
            into.write(data)
            last = found[-1] if found else None
            if last is not None and (start, width) == (end, last.width):
                found[-1] = last._replace(length=last.length + len(data))
            else:
                found.append(Bytes(start, len(data), width))
            end = start + len(data)
            self._told(len(data))
        return found


class _Sample:
    """Reads registers through an aperture of their BAR. `found` is what was read, by offset."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.found: dict[int, tuple[bytes, int]] = {}
        self._seen: set[int] = set()  # the offsets of all bytes that were read

    def __call__(self, aperture: Aperture) -> str:
        """Read them."""

        def read(register: Register) -> int:
            """Read a register that tells where others are."""
            return self._load(aperture, register, register.offset)

        for register in self._reading.registers:
            try:
                start = locate(register, read, aperture.size)
                if self._seen.isdisjoint(range(start, start + register.size)):
                    self._load(aperture, register, start)
            except DeviceGone:
                raise
            except BarfsError:
                continue  # the device has fewer, or tells a place where none can be
        return _DONE

    def _load(self, aperture: Aperture, register: Register, start: int) -> int:
        if start not in self.found or len(self.found[start][0]) < register.size:
            value = Cells(aperture, register, start).load(words(register))
            self._seen.update(range(start, start + register.size))
            self.found[start] = value.to_bytes(register.size, sys.byteorder), register.step
        return int.from_bytes(self.found[start][0][: register.size], sys.byteorder)


def _width_of(reading: Reading) -> int | None:
    """The width of the accesses. None if they have several, or it is not known."""
    if reading.view:
        return reading.view.width
    in_words = reading.start % 4 == 0 and reading.size % 4 == 0
    return 4 if in_words and reading.bar is not None and not reading.is_memory else None
