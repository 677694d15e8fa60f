"""Where maps are, and which map a device has. A file is read when it is needed, and kept."""

import errno
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from barfs.errors import MapRefused
from barfs.registers.maps import Map

LOCAL: Final = Path("/etc/barfs/registers")
# The maps that come with barfs are code: whoever may write them may write the modules beside them.
BUILT_IN: Final = Path(__file__).parent / "maps"

DIRECTORIES: Final = (LOCAL, BUILT_IN)

# Other subjects of a map, by subject. So one file is enough for a family.
ALIASES: Final = "aliases.json"

# How many maps are kept, and how many bytes a file may have.
_KEPT: Final = 32
_MOST_BYTES: Final = 64 << 20


class Found(NamedTuple):
    """The map of a device, and its file. `refusal` says why the file is no map."""

    file: Path
    map: Map | None
    refusal: str | None = None


class MapFiles:
    """The maps in some directories. The first directories come first."""

    def __init__(self, directories: Sequence[Path] = DIRECTORIES) -> None:
        self.directories = tuple(directories)
        self._kept: OrderedDict[str, tuple[object, Any]] = OrderedDict()

    def find(self, subjects: Sequence[str], revision: int | None = None) -> Found | None:
        """The map for the first of `subjects` that has one. The most particular subject comes
        first.

        A map for other revisions is passed over. If a file is wrong, the answer says so, and no
        other file is taken instead.
        """
        for subject in subjects:
            for directory in self.directories:
                found = self._in(directory, subject, revision)
                if found is not None:
                    return found
        return None

    def _in(self, directory: Path, subject: str, revision: int | None) -> Found | None:
        for alias in (False, True):
            name = self._alias(directory, subject) if alias else subject
            file = f"{directory}/{name}.json"
            try:
                found = None if name is None else self._load(file)
            except MapRefused as error:
                return Found(Path(file), None, str(error))
            if found is None:
                continue
            if subject not in found.subjects:
                return Found(
                    Path(file), None, f"it is not for {subject}: {', '.join(found.subjects)}"
                )
            if revision is None or not found.revisions or revision in found.revisions:
                return Found(Path(file), found)
        return None

    def _alias(self, directory: Path, subject: str) -> str | None:
        """The name under which a directory has a subject. A bad list of names counts as none."""
        try:
            aliases = self._kept_content(f"{directory}/{ALIASES}", _parse_aliases)
        except MapRefused:
            return None
        name = (aliases or {}).get(subject)
        return name if type(name) is str and "/" not in name else None

    def _load(self, file: str) -> Map | None:
        found = self._kept_content(file, Map.parse)
        return found if isinstance(found, Map) else None

    def _kept_content(self, file: str, parse: Any) -> Any:
        """The contents of a file as it is now. None if there is no file. Raises MapRefused."""
        try:
            was = os.stat(file)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                return None
            raise MapRefused(system=error) from error
        stamp = (was.st_dev, was.st_ino, was.st_mtime_ns, was.st_ctime_ns, was.st_size)
        kept = self._kept.get(file)
        if kept is None or kept[0] != stamp:
            try:
                content = parse(self._read(Path(file)))
            except MapRefused as error:
                content = error
            kept = self._kept[file] = (stamp, content)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        content = kept[1]
        if isinstance(content, MapRefused):
            raise MapRefused(str(content))
        return content

    @staticmethod
    def _read(file: Path) -> bytes:
        """The contents of a file that only root and this user could have written. Raises
        MapRefused.
        """
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise MapRefused(system=error) from error
        with os.fdopen(fd, "rb") as opened:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
                raise MapRefused("it is no file, or far too big")
            if file.parent != BUILT_IN:
                _check_owner(file, status)
                _check_owner(file.parent, os.stat(file.parent))
            return opened.read(_MOST_BYTES)


def _check_owner(path: Path, status: os.stat_result) -> None:
    """MapRefused if others than root and this user could have written it."""
    if status.st_uid not in {0, os.geteuid()}:
        raise MapRefused(f"it belongs to user {status.st_uid}; chown root {path}")
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        raise MapRefused(f"others may write it; chmod go-w {path}")


def _parse_aliases(data: bytes) -> Any:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MapRefused(f"it is no JSON: {error}") from error
    if type(content) is not dict:
        raise MapRefused("it is not an object")
    return content
