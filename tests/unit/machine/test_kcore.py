"""Program headers of /proc/kcore: what lies where, in files as fs/proc/kcore.c makes them."""

import contextlib
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.machine.kcore import (
    BadCore,
    CoreFile,
    Piece,
    Segment,
    parse_headers,
    physical_pieces,
    room_after,
    to_physical,
    virtual_pieces,
)

NO_ADDRESS = (1 << 64) - 1
TEXT = (0xFFFFFFFF9A000000, 0x2C00000, 0x7FFF9A002000, 0x11A000000)
RAM = [
    (0xFFFF8BD680001000, 0x9E000, 0x8BD680003000, 0x1000),
    (0xFFFF8BD680100000, 0x1FEE0000, 0x8BD680102000, 0x100000),
]
VMALLOC = (0xFFFFA00000000000, 0x1FFFFFFFFFFF, 0x200000002000, NO_ADDRESS)


def core(segments, note=True):
    """The head of a core file; a note comes first, as the kernel writes it."""
    headers = [struct.pack("<IIQQQQQQ", 4, 0, 0x200, 0, 0, 100, 0, 0)] if note else []
    for virtual, size, offset, physical in segments:
        headers.append(struct.pack("<IIQQQQQQ", 1, 7, offset, virtual, physical, size, size, 4096))
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(4, 62, 1, 0, 64, 0, 0, 64, 56, len(headers), 0, 0, 0),
    )
    return head + b"".join(headers)


def test_ranges_are_what_the_headers_say():
    found = parse_headers(core([TEXT, VMALLOC, *RAM]))
    assert found[0] == Segment(0xFFFFFFFF9A000000, 0x2C00000, 0x7FFF9A002000, 0x11A000000)
    assert found[1].physical is None
    assert len(found) == 4


def test_the_image_is_where_the_kernel_says_whatever_kaslr_did():
    found = parse_headers(core([TEXT, VMALLOC, *RAM]))
    assert to_physical(found, 0xFFFFFFFF9A000000 + 0x1234) == 0x11A001234
    assert to_physical(found, 0xFFFF8BD680100000 + 5) == 0x100005
    assert to_physical(found, 0xFFFFA00000000010) is None  # vmalloc
    assert to_physical(found, 0x1C000) is None  # a per-CPU symbol
    assert room_after(found, 0xFFFFFFFF9A000000 + 0x2BFFFFF) == 1
    assert room_after(found, 0xFFFFFFFF9A000000 + 0x2C00000) == 0


def test_physical_memory_is_read_where_it_is_and_a_gap_is_none():
    found = parse_headers(core([TEXT, VMALLOC, *RAM]))
    assert physical_pieces(found, 0x1000, 0x9E000) == [Piece(0x8BD680003000, 0x9E000)]
    assert physical_pieces(found, 0x100010, 16) == [Piece(0x8BD680102010, 16)]
    assert physical_pieces(found, 0x9EFFF, 2) is None
    assert physical_pieces(found, 0, 1) is None
    assert virtual_pieces(found, 0xFFFFA00000000000, 8) == [Piece(0x200000002000, 8)]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.integers(0, 300),
    st.integers(1, 200),
)
def test_pieces_are_the_bytes_of_the_range(stretches, start, size):
    # Each stretch: a gap, then so many bytes; the file has them one after the other.
    memory, segments, at = {}, [], 0
    for gap, length in stretches:
        at += gap - 1  # some touch
        offset = 1000 + 7 * at
        segments.append(Segment(1 << 60 | at, length, offset, at))
        memory.update({at + n: offset + n for n in range(length)})
        at += length
    found = physical_pieces(segments, start, size)
    wanted = [memory.get(start + n) for n in range(size)]
    if None in wanted:
        assert found is None
    else:
        assert [offset + n for offset, length in found for n in range(length)] == wanted


def test_the_file_is_read_as_it_is_now(tmp_path):
    (tmp_path / "kcore").write_bytes(core([TEXT]))
    opened = CoreFile(tmp_path)
    try:
        assert len(opened.segments()) == 1
        (tmp_path / "kcore").write_bytes(core([TEXT, *RAM]))
        assert len(opened.segments()) == 3
    finally:
        opened.close()


def test_no_file_is_a_refusal_that_says_why(tmp_path):
    opened = CoreFile(tmp_path)
    with pytest.raises(FileNotFoundError):
        opened.segments()
    opened.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk" * 40,
        core([TEXT])[:70],
        core([TEXT]).replace(b"ELF\x02", b"ELF\x01"),
        core([TEXT])[:54] + struct.pack("<H", 55) + core([TEXT])[56:],
    ],
)
def test_garbage_is_no_core(data):
    with pytest.raises(BadCore):
        parse_headers(data)


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_else(data):
    with contextlib.suppress(BadCore):
        parse_headers(core([TEXT])[:40] + data)


def test_it_never_blocks_on_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "kcore")
    opened = CoreFile(tmp_path)
    with pytest.raises((BadCore, OSError)):
        opened.segments()
    opened.close()
