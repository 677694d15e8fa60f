"""Lines that are written in pieces, and files that are truncated."""

import itertools

import pytest

from barfs.access.contract import Numbers
from barfs.errors import BadRequest
from barfs.requests.pieces import LONGEST, Fresh, Line, Typed


def type_all(typed, pieces, start=0):
    """Write pieces one after the other; the offset stays where one is refused. What came of it."""
    found, refused, offset = [], 0, start
    for piece in pieces:
        try:
            line = typed.take(offset, piece)
        except BadRequest:
            refused += 1
            continue
        offset += len(piece)
        found += [] if line is None else [line.text]
    return found, refused


def cuts(text):
    """All the ways to cut a text into pieces."""
    for marks in itertools.product([False, True], repeat=len(text) - 1):
        ends = [at for at, mark in enumerate(marks, 1) if mark] + [len(text)]
        yield [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("width", "text"),
    [
        *(
            (1, b"42\n"),
            (1, b"0xff\n"),
            (4, b"0x1f:0xff\n"),
            (2, b" 0b10:0x2 \n"),
            (8, b"0X0:0B1\t\n"),
        ),
        *((4, b"0\n"), (1, b"\t255\n"), (4, b"0:0b0\n")),
    ],
)
def test_a_line_in_any_pieces_is_one_line(width, text):
    for pieces in cuts(text):
        typed = Typed(Numbers(width))
        assert type_all(typed, pieces) == ([text], 0)
        assert not typed.pending
        assert typed.end() is None
        # A second line in the same open.
        assert type_all(typed, pieces, len(text)) == ([text], 0)


@pytest.mark.parametrize(
    ("width", "text"),
    [
        *(
            (1, b"256\n"),
            (1, b"0x1ff\n"),
            (1, b"1:0x100\n"),
            (1, b"1:1\n"),
            (4, b"1:0\n"),
            (4, b"1:0 \n"),
            (2, b"0x10000:1\n"),
            (4, b"zz12\n"),
        ),
        *((4, b"0x12zz\n"), (4, b"010\n"), (4, b"1 2\n"), (4, b"1:2:3\n"), (4, b"-1\n")),
        *((4, b"0x\n"), (4, b"\n"), (4, b" \n"), (4, b"1:\n"), (4, b":1\n"), (4, b"0b2\n")),
    ],
)
def test_no_part_of_a_line_that_is_no_value_is_carried_out(width, text):
    for pieces in cuts(text):
        typed = Typed(Numbers(width))
        found, refused = type_all(typed, pieces)
        assert found == []
        assert refused > 0
        assert typed.end() is None
        # The next line is a line again.
        assert type_all(typed, [b"1\n"], typed._next) == ([b"1\n"], 0)


def test_what_has_a_newline_inside_is_refused_whole():
    for pieces in ([b"1\n2"], [b"1\n2\n"], [b"1", b"\n2"], [b"0x1", b"2\n0", b"x3\n"]):
        typed = Typed(Numbers(4))
        assert type_all(typed, pieces)[0] == []
        assert typed.end() is None


def test_a_beginning_that_none_can_be_is_refused_at_once():
    for piece in (b"z", b"00", b"x", b":", b"0x1g", b"1::", b"1:2:", b"1 2", b"1\r", b"0b12", b"+"):
        with pytest.raises(BadRequest, match="is no number"):
            Typed(Numbers(8)).take(0, piece)
    for width, piece in (
        (1, b"0x1ff"),
        (1, b"300"),
        (4, b"1:0x100000000"),
        (8, b"0x1" + b"0" * 16),
    ):
        with pytest.raises(BadRequest, match="too big"):
            Typed(Numbers(width)).take(0, piece)
    for piece in (
        b"0",
        b"0x",
        b"0b",
        b" ",
        b"4",
        b"42 ",
        b"42:",
        b"42:0x",
        b"42:0",
        b"42:0x1\t",
        b"18446744",
    ):
        assert Typed(Numbers(8)).take(0, piece) is None


def test_a_line_without_a_newline_is_carried_out_at_the_end_and_once():
    typed = Typed(Numbers(4))
    assert type_all(typed, [b"4", b"2"], 8) == ([], 0)
    assert typed.pending
    assert typed.end() == Line(8, b"42")
    assert not typed.pending
    assert typed.end() is None


def test_what_may_follow_then_is_its_newline():
    for newline in (b"\n", b" \n"):
        typed = Typed(Numbers(4))
        typed.take(0, b"42")
        typed.end()
        assert typed.take(2, newline) is None
        assert typed.take(2 + len(newline), b"7\n") == Line(2 + len(newline), b"7\n")
    typed = Typed(Numbers(4))
    typed.take(0, b"42")
    typed.end()
    # Else 42 and 1 would have been carried out of a line that says 421.
    for _ in range(2):
        with pytest.raises(BadRequest, match="open the file again"):
            typed.take(2, b"1")
    with pytest.raises(BadRequest):
        typed.take(2, b"1\n")
    assert typed.take(2, b"1\n") == Line(2, b"1\n")


def test_a_piece_elsewhere_begins_a_line():
    typed = Typed(Numbers(4))
    typed.take(0, b"42")
    assert not typed.goes_on(0)
    assert typed.end() == Line(0, b"42")
    assert typed.take(0, b"0x") is None
    assert not typed.goes_on(0)
    assert typed.end() == Line(0, b"0x")  # which the view then refuses
    assert typed.take(100, b"7\n") == Line(100, b"7\n")


def test_a_line_has_an_end():
    typed = Typed(Numbers(8))
    piece = b"0" * 1024
    offset = 2
    typed.take(0, b"0x")
    while offset + len(piece) <= LONGEST:
        typed.take(offset, piece)
        offset += len(piece)
    with pytest.raises(BadRequest, match="at the most"):
        typed.take(offset, piece)
    with pytest.raises(BadRequest, match="refused"):
        typed.take(offset, piece)


def test_a_truncated_file_is_written_without_a_gap():
    fresh = Fresh(0)
    fresh.check_write(0)
    fresh.wrote(8)
    for offset in (0, 4, 8):
        fresh.check_write(offset)
    fresh.wrote(4)  # once more, further in front
    fresh.check_write(8)
    with pytest.raises(BadRequest, match=r"0x1 bytes at 0x8 would have to be zeros.*cp --sparse"):
        fresh.check_write(9)
    fresh.check_write(8)


def test_it_is_truncated_again_but_made_no_longer():
    fresh = Fresh(0)
    fresh.wrote(16)
    fresh.truncate(16)
    fresh.truncate(8)
    with pytest.raises(BadRequest, match="0x8 bytes at 0x8 would"):
        fresh.truncate(16)
    with pytest.raises(BadRequest):
        fresh.check_write(12)
    fresh.check_write(8)


def test_what_follows_a_write_that_failed_is_refused():
    fresh = Fresh(0)
    fresh.failed()
    with pytest.raises(BadRequest, match="may be its rest"):
        fresh.check_write(0)
