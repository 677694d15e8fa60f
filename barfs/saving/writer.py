"""The tar that is written: it is there whole, or not at all."""

import errno
import io
import json
import os
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, cast

from barfs.errors import BarfsError


class Readable(Protocol):
    """What can be read from where it stands."""

    def read(self, length: int = -1, /) -> bytes:
        """Up to `length` bytes, none at the end."""


class Writer:
    """Writes a tar in the place of a path, for its owner alone. An end by an error leaves nothing.

    Raises OSError; BarfsError if something is there that is no file.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise BarfsError("there is something that is no file", what=str(path))
        self.path = path
        self._beside = path.parent / f".{path.name}.{os.getpid()}"
        try:
            # A file without a name: it is gone with this process, however that ends.
            self._fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            self._named = False
        except OSError as error:
            # Not all file systems have such files (open(2)).
            if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                raise
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            self._fd = os.open(self._beside, flags, 0o600)
            self._named = True
        self._file = os.fdopen(self._fd, "w+b")
        self._tar = tarfile.open(  # noqa: SIM115 - it is closed in finish
            fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT
        )
        self._time = time.time()

    def __enter__(self) -> Self:
        """See finish."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Without finish nothing is left."""
        self._file.close()
        if self._named:
            self._beside.unlink(missing_ok=True)

    def add(self, name: str, data: bytes) -> None:
        """Add a file."""
        self.add_from(name, io.BytesIO(data), len(data))

    def add_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Add a file of JSON."""
        self.add(name, (json.dumps(content) + "\n").encode())

    def add_from(self, name: str, file: Readable, size: int) -> None:
        """Add a file that has the next `size` bytes of another."""
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = size, 0o600, int(self._time)
        self._tar.addfile(member, cast("IO[bytes]", file))  # it only reads

    def finish(self) -> int:
        """Have the tar at its path, and return its size in bytes."""
        self._tar.close()
        self._file.flush()
        size = os.fstat(self._fd).st_size
        if not self._named:
            # A link can't take the place of a file, and a rename can. With a descriptor Python
            # calls linkat(2), which follows the link in /proc.
            os.link(f"/proc/self/fd/{self._fd}", self._beside, src_dir_fd=self._fd)
            self._named = True
        os.rename(self._beside, self.path)
        self._named = False
        return size
