"""What was compressed to be sent: uncompressed within bounds, into a file that has no name."""

import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from barfs.errors import BadRecording

# How large it may become, and what xz may keep in memory: `xz -9` needs 65 MiB. In bytes.
MOST: Final = 256 << 20
_MOST_IN_MEMORY: Final = 100 << 20

_PIECE: Final = 1 << 20


def _gunzipped(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as inner:
        while piece := inner.read(_PIECE):
            yield piece


def _unxzed(file: IO[bytes]) -> Iterator[bytes]:
    inner = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_IN_MEMORY)
    while not inner.eof:
        data = b""
        if inner.needs_input and not (data := file.read(_PIECE)):
            raise EOFError
        yield inner.decompress(data, _PIECE)
    if inner.unused_data or file.read(1):
        raise lzma.LZMAError


_KNOWN: Final = {b"\x1f\x8b": _gunzipped, b"\xfd7zXZ\0": _unxzed}


def uncompressed(path: Path, fd: int) -> int:
    """A descriptor of what is in a compressed file. `fd` is that of the file, and is closed.

    BadRecording, with `fd` still open, if it can't be uncompressed or is too large then.
    """
    pieces = next(
        (one for magic, one in _KNOWN.items() if os.pread(fd, 6, 0).startswith(magic)), None
    )
    if pieces is None:
        raise BadRecording(
            "it is compressed, and not by gzip or xz; uncompress it first", what=str(path)
        )
    size = 0
    try:
        with open(fd, "rb", closefd=False) as file, tempfile.TemporaryFile() as plain:
            for piece in pieces(file):
                size += len(piece)
                if size > MOST:
                    raise BadRecording(
                        f"without compression it is larger than {MOST >> 20} MiB; uncompress it"
                        " first",
                        what=str(path),
                    )
                plain.write(piece)
            plain.flush()
            found = os.dup(plain.fileno())
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise BadRecording("it is compressed, and damaged", what=str(path)) from error
    except OSError as error:
        raise BadRecording("it can't be uncompressed", what=str(path), system=error) from error
    os.close(fd)
    return found
