"""The source of a machine that was recorded. It reads no file of the machine that it runs on.

Paths begin with that of the recording. So they name nothing that is there, wherever one of them
should be opened by mistake.
"""

import errno
import gc
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Final

from barfs.access.files import NONBLOCK, PAGE_SIZE, StrPath
from barfs.errors import (
    Access,
    BadRecording,
    DeviceGone,
    FunctionPart,
    NotRecorded,
    ReadOnly,
    What,
)
from barfs.machine.archive import DirectoryArchive, TarArchive
from barfs.machine.changes import Changes
from barfs.machine.lspci import parse_lspci
from barfs.machine.presence import Presence
from barfs.machine.recording import Part, RecordedFunction, Recording, load_recording
from barfs.machine.source import BOOT, REAL_PROC, REAL_SYSFS, Source, source_of
from barfs.machine.symbols import Symbol, Symbols
from barfs.names import PciAddress

_NOWHERE: Final = " is not in this recording"  # it goes on after what is not
_DEVICES: Final = "sys/bus/pci/devices"

# How files begin that gzip, bzip2, xz, zstd and zip have made.
_COMPRESSED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\3\4")

# A text of lspci has 16 KiB for each function with 4096 bytes of config space.
_MOST_TEXT: Final = 64 << 20


def missing(function: RecordedFunction | None, part: str) -> str:
    """The sentence about a part of a function that was not read, or not there."""
    why = None if function is None else function.refused.get(part)
    found = None if function is None else function.parts.get(part)
    if why is not None:
        return f"{_NOWHERE}: {why}"
    if found is None or not found.ranges:
        return _NOWHERE
    return f"{_NOWHERE}, which has {', '.join(found.extents())} of it"


class RecordedFile:
    """`config` or `rom` of a recorded function. `part` is None if nothing of it was read."""

    def __init__(self, part: Part | None, size: int, what: What, sentence: str) -> None:
        self.size = size
        self._part = part
        self._what = what
        self._sentence = sentence

    def read(self, offset: int, length: int) -> bytes:
        """The bytes up to the first that was not read. NotRecorded if there are none."""
        if offset >= self.size or not length:
            return b""
        try:
            data = b"" if self._part is None else self._part.at(offset, length)
        except OSError:
            data = b""
        if not data:
            during = Access("read", offset, length)
            raise NotRecorded(self._sentence, what=self._what, during=during)
        return data

    def write(self, offset: int, data: bytes) -> int:
        """ReadOnly."""
        during = Access("write", offset, len(data))
        raise ReadOnly("a recording is only read", what=self._what, during=during)

    def close(self) -> None:
        """Nothing is held."""


class RecordedPresence(Presence):
    """A recorded function is always there."""

    def __init__(self, text: str) -> None:
        self._then = text.encode()

    def check(self) -> None:
        """It is there."""

    def lose(self, error: DeviceGone) -> None:
        """It can't be lost."""

    def close(self) -> None:
        """Nothing is held."""


class RecordedSymbols(Symbols):
    """The kernel's symbols, which no recording has."""

    def __init__(self, proc: Path) -> None:
        self.path = proc / "kallsyms"
        self.refusal = None
        self._fd = -1
        self._known: dict[str, Symbol] = {}

    def _text(self) -> bytes:
        raise NotRecorded(_NOWHERE, what=str(self.path))


class RecordedSource(Source):
    """The files of a recorded machine."""

    watch = None

    def __init__(self, recording: Recording) -> None:
        self.changes = Changes()
        self.recording = recording
        self._files = recording.files
        self._root = f"{recording.path}/"
        self.sysfs = recording.path / "sys"
        self.proc = recording.path / "proc"
        self.boot = recording.path / "boot"
        self._functions = {str(address): one for address, one in recording.functions.items()}

    def _place(self, path: StrPath) -> tuple[RecordedFunction | None, str]:
        """The function that a path leads to, and the name in it, or a path in the recording."""
        name = os.fspath(path).removeprefix(self._root)
        if name.startswith(f"{_DEVICES}/"):
            address, _, rest = name.removeprefix(f"{_DEVICES}/").partition("/")
            return self._functions.get(address), rest
        return None, name

    def _absent(self, path: StrPath, number: int = errno.ENOENT) -> OSError:
        return OSError(number, os.strerror(number), os.fspath(path))

    def read(self, path: StrPath, length: int = PAGE_SIZE, offset: int = 0) -> bytes:
        """See Source. Config space ends where it was not read any more, as it does for a user."""
        function, name = self._place(path)
        if function is not None and name == "config":
            part = function.parts.get(name)
            if part is None:
                raise self._absent(path, errno.EIO)
            return part.at(offset, length)
        return self.read_all(path, offset + length)[offset:]

    def read_all(self, path: StrPath, limit: int | None = None) -> bytes:
        """See Source."""
        function, name = self._place(path)
        if function is None:
            found = self._files.get(name)
        else:
            text = function.attributes.get(name)
            found = None if text is None else text.encode()
        if found is None:
            raise self._absent(path)
        return found[:limit]

    def names(self, directory: StrPath) -> list[str]:
        """See Source."""
        function, name = self._place(directory)
        if function is not None:
            if name == "iommu_group/devices" and function.group:
                return list(function.group)
            raise self._absent(directory)
        if name == _DEVICES:
            return list(self._functions)
        inside = [one.removeprefix(f"{name}/") for one in self._files_in(name)]
        if not inside:
            raise self._absent(directory)
        return list(dict.fromkeys(one.partition("/")[0] for one in inside))

    def _files_in(self, directory: str) -> list[str]:
        return [one for one in self._files if one.startswith(f"{directory}/")]

    def target(self, link: StrPath) -> str:
        """See Source."""
        function, name = self._place(link)
        found = None if function is None else function.links.get(name)
        if found is None:
            raise self._absent(link)
        return found

    def size(self, path: StrPath) -> int:
        """See Source."""
        function, name = self._place(path)
        found = None if function is None else function.sizes.get(name)
        return len(self.read_all(path)) if found is None else found

    def exists(self, path: StrPath) -> bool:
        """See Source."""
        function, name = self._place(path)
        if function is None:
            return name in self._files or self.is_directory(path)
        known = (function.attributes, function.links, function.exists, function.sizes)
        return not name or any(name in one for one in known)

    def is_directory(self, path: StrPath) -> bool:
        """See Source."""
        function, name = self._place(path)
        if function is not None:
            return not name
        return name == _DEVICES or bool(self._files_in(name))

    def write(self, path: StrPath, data: bytes) -> None:
        """See Source."""
        del data
        raise self._absent(path, errno.EROFS)

    def stamp(self) -> Hashable | None:
        """See Source. Nothing comes or goes."""
        return 0

    def hear(self) -> None:
        """Nothing: no kernel sends messages of these functions."""

    def tells_of(self, address: PciAddress) -> bool:
        """See Source. Nothing changes."""
        del address
        return True

    def listen(self) -> None:
        """Nothing: no kernel has a log of these functions."""

    def last_said(self, address: PciAddress, words: str) -> str | None:
        """See Source."""
        del address, words
        return None

    def presence(self, path: StrPath, address: PciAddress) -> Presence:
        """See Source."""
        function, _ = self._place(path)
        if function is None:
            raise DeviceGone("there is no such function", what=FunctionPart(address))
        return RecordedPresence(function.attributes.get("resource", ""))

    def _open(self, path: StrPath, what: What) -> RecordedFile:
        function, name = self._place(path)
        if function is None or name not in function.sizes:
            raise DeviceGone(what=what, system=self._absent(path))
        sentence = missing(function, name)
        return RecordedFile(function.parts.get(name), function.sizes[name], what, sentence)

    def open_config(self, path: StrPath, what: What, *, writable: bool) -> RecordedFile:
        """See Source."""
        if writable:
            raise ReadOnly("a recording is only read", what=what)
        return self._open(path, what)

    def open_rom(self, path: StrPath, what: What) -> RecordedFile:
        """See Source."""
        return self._open(path, what)

    def bar_file(self, path: StrPath, start: int) -> tuple[StrPath, int]:
        """Never: what was read of a BAR is reached in another way."""
        del start
        raise NotRecorded(_NOWHERE, what=os.fspath(path))


def source_at(
    machine: Path | None, sysfs: Path = REAL_SYSFS, proc: Path = REAL_PROC, boot: Path = BOOT
) -> Source:
    """The source of a recorded machine. If `machine` is None, that of some paths. BadRecording."""
    return source_of(sysfs, proc, boot) if machine is None else recorded_source(machine)


def symbols_of(source: Source) -> Symbols:
    """The kernel's symbols of a machine. A recording has none."""
    return Symbols(source.proc) if source.recording is None else RecordedSymbols(source.proc)


def recorded_source(path: Path) -> RecordedSource:
    """The machine in a tar of `barfs save`, in a directory with what was in it, or as text of
    lspci. A file may be compressed. It stays open. Raises BadRecording.
    """
    path = path.absolute()
    try:
        fd = os.open(path, os.O_RDONLY | NONBLOCK)
    except OSError as error:
        raise BadRecording(what=str(path), system=error) from error
    # What is read is kept. The garbage collector would look through it again and again meanwhile.
    collecting = gc.isenabled()
    gc.disable()
    try:
        if _is_compressed(fd):
            # Others do not need this, and start faster without it.
            from barfs.machine.compressed import uncompressed  # noqa: PLC0415

            fd = uncompressed(path, fd)
        return RecordedSource(_load(path, fd))
    except BaseException:
        os.close(fd)
        raise
    finally:
        if collecting:
            gc.enable()


def _is_compressed(fd: int) -> bool:
    try:
        return os.pread(fd, 8, 0).startswith(_COMPRESSED)
    except OSError:  # a directory
        return False


def _load(path: Path, fd: int) -> Recording:
    """The recording in a file, which stays open where it is needed."""
    try:
        begin = os.pread(fd, 512, 0)
    except IsADirectoryError:
        return load_recording(DirectoryArchive(path, fd))
    except OSError as error:
        raise BadRecording(what=str(path), system=error) from error
    if begin[257:262] == b"ustar":
        return load_recording(TarArchive(path, fd))
    data = os.pread(fd, _MOST_TEXT + 1, 0)
    recording = None
    if len(data) <= _MOST_TEXT:
        recording = parse_lspci(path, data.decode(errors="replace"))
    if recording is None:
        raise BadRecording("it is neither a recording nor text of lspci", what=str(path))
    os.close(fd)
    return recording
