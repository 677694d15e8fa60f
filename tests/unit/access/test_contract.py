"""The access contract, checked against every small request."""

import errno
import itertools
import time

import pytest

from barfs.access.contract import (
    Update,
    check_base,
    check_fixed,
    clip_read,
    clip_write,
    format_value,
    parse_update,
    plan,
    text_size,
)
from barfs.errors import BadRequest, PastEnd

WIDTHS = (1, 2, 4, 8)


def single_accesses(runs):
    """Offset and width of each access, in order."""
    for run in runs:
        assert run.length > 0
        assert run.length % run.width == 0
        for at in range(run.offset, run.offset + run.length, run.width):
            yield at, run.width


@pytest.mark.parametrize("max_width", [4, 8])
def test_every_small_request_keeps_the_contract(max_width):
    for offset, length, base in itertools.product(range(17), range(41), range(9)):
        made = list(single_accesses(plan(offset, length, base, max_width)))
        where = (offset, length, base, made)
        touched = [at + byte for at, width in made for byte in range(width)]
        assert touched == list(range(offset, offset + length)), where
        assert all(width in {1, 2, 4, 8} for _, width in made), where
        assert all((base + at) % width == 0 for at, width in made), where
        if length in {1, 2, 4, 8} and length <= max_width and (base + offset) % length == 0:
            assert made == [(offset, length)], where
        else:
            assert all(width <= 4 for _, width in made), where


def test_widths_of_some_requests():
    for request, widths in {
        (0, 16, 0, 8): [4, 4, 4, 4],
        (1, 7, 0, 8): [1, 2, 4],
        (3, 10, 0, 8): [1, 4, 4, 1],
        (8, 8, 0, 4): [4, 4],
        (8, 8, 4, 8): [4, 4],
    }.items():
        assert [width for _, width in single_accesses(plan(*request))] == widths
    assert len(plan(0, 1 << 20, 0, 8)) == 1  # accesses of one width are one run


@pytest.mark.parametrize("clip", [clip_read, clip_write])
@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        *((0, 0, 0), (0, 4, 4), (0, 8, 8), (4, 4, 4), (0, 9, 8), (6, 4, 2), (7, 1 << 40, 1)),
        *((8, 0, 0), (9, 0, 0), (1 << 62, 0, 0)),
    ],
)
def test_a_request_is_cut_short_at_the_end(clip, offset, length, expected):
    assert clip(offset, length, 8) == expected


@pytest.mark.parametrize("offset", [8, 9, 1 << 62])
@pytest.mark.parametrize("length", [1, 4, 1 << 20])
def test_past_the_end_reads_give_nothing_and_writes_are_refused(offset, length):
    assert clip_read(offset, length, 8) == 0
    with pytest.raises(PastEnd, match=f"{length:#x} bytes at {offset:#x}.* at 0x8") as caught:
        clip_write(offset, length, 8)
    assert caught.value.errno == errno.ENOSPC


def refused(function, *arguments):
    """Whether a check refuses; it must do so with EINVAL and a message fit for the log."""
    try:
        function(*arguments)
    except BadRequest as caught:
        error = caught
    else:
        return False
    assert error.errno == errno.EINVAL
    assert str(error)
    assert str(error).isascii()
    return True


def test_a_base_must_be_aligned_and_the_width_possible():
    for base, width, max_width in itertools.product(range(33), WIDTHS, (4, 8)):
        possible = width <= max_width and base in range(0, 33, width)
        assert refused(check_base, base, width, max_width) == (not possible), (base, width)
    assert not refused(check_base, (1 << 64) - 8, 8, 8)
    assert refused(check_base, (1 << 64) - 4, 8, 8)


def test_a_fixed_request_is_made_of_whole_accesses():
    for offset, length, width in itertools.product(range(25), range(25), WIDTHS):
        whole = offset in range(0, 25, width) and length in range(0, 25, width)
        assert refused(check_fixed, offset, length, width) == (not whole), (offset, length, width)


@pytest.mark.parametrize(
    ("text", "value", "mask"),
    [
        *((b"42", 42, None), (b"0x2a", 42, None), (b"0X2A", 42, None), (b"0x2A\n", 42, None)),
        *((b"0b101010", 42, None), (b"0B101010", 42, None), (b"42\n", 42, None)),
        *((b"0", 0, None), (b"0\n", 0, None), (b"0x0", 0, None), (b"0b0", 0, None)),
        *((b" 42", 42, None), (b"42 ", 42, None), (b"\t 42\t \n", 42, None)),
        *((b"0x0000000000000000002a", 42, None), (b"0b00000000000101010", 42, None)),
        *((b"2:0x2", 2, 2), (b"0x80:0xff\n", 0x80, 0xFF), (b" 0:0x0 ", 0, 0), (b"1:0b11", 1, 3)),
        *((b"0X8a:0XAb", 0x8A, 0xAB), (b"0b1:0xff", 1, 255), (b"0:0X0", 0, 0)),
    ],
)
def test_a_line_is_this_update_in_every_width(text, value, mask):
    for width in WIDTHS:
        assert parse_update(text, width) == Update(value, mask)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("form", ["%d", "%#x", "0b{:b}"])
def test_a_value_or_mask_of_more_bits_than_the_width_is_refused(width, form):
    def text(number, form=form):
        return (form % number if "%" in form else form.format(number)).encode()

    def mask(number):
        return text(number, "%#x" if form == "%d" else form)

    for most in ((1 << 8 * width) - 1, 1 << 8 * width - 1):
        assert parse_update(text(most), width) == Update(most, None)
        assert parse_update(text(most) + b":" + mask(most), width) == Update(most, most)
    for more in (1 << 8 * width, (1 << 8 * width) + 1, 1 << 8 * width + 8, 1 << 128):
        assert refused(parse_update, text(more), width)
        assert refused(parse_update, text(more) + b":0x1", width)
        assert refused(parse_update, b"1:" + mask(more), width)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b" ", b"\t", b"\n", b" \n", b"\n\n"),  # nothing
        *(b"1 2", b"1\t2", b"1,2", b"1;2", b"0x1 0x2\n"),  # two numbers
        *(b"1\n2", b"1\n2\n", b"1\n\n", b"\n1", b"1\n ", b"1\r\n", b"1\r", b"1\x0b", b"1\x0c"),
        *(b"on", b"true", b"ff", b"a", b"x", b"0xg", b"0b2", b"12h", b"42 ok", b"#1", b"'1'"),
        *(b"-1", b"+1", b"- 1", b"-0", b"0x-1", b"-0x1", b"1:-1", b"1:+1", b"~0", b"!1"),
        *(b"010", b"00", b"007", b"1:010", b"0o17", b"0O17"),
        *(b"1_0", b"0x1_0", b"0x_1", b"0b_1", b"_1", b"1_"),
        *(b"1.0", b"1.", b".1", b"1e3", b"0x1p3", b"0x1.8"),
        *(b"0x", b"0X", b"0b", b"0x\n", b"x2a", b"$2a", b"\\x2a", b"0x0x1", b"0x 1"),
        *(b":", b"1:", b":1", b"1::1", b"1:2:3", b"1:x", b"1 : 2", b"1: 2", b"1 :2", b"1:\n2"),
        *("\u0664\u0662".encode(), "\uff14\uff12".encode(), "1\u0660".encode()),
        *("\u00b2".encode(), b"\xb2", b"\xa01", b"1\xa0", b"1\x85", b"\xef\xbb\xbf1", b"\xff"),
        *(b"\0", b"1\0", b"\x001", b"1\x002", b"1\n\0", b"0\0x1"),
    ],
)
def test_no_line_of_this_form(text):
    for width in WIDTHS:
        assert refused(parse_update, text, width)


@pytest.mark.parametrize("text", [b"1:1", b"0x1:1", b"10:10\n", b"1:0", b"0x0:255", b" 1:9 "])
def test_a_mask_says_its_base(text):
    """For setpci it is hex, and so is the value."""
    with pytest.raises(BadRequest, match="a mask takes 0x or 0b in front, since setpci's is hex"):
        parse_update(text, 4)


@pytest.mark.parametrize(
    ("start", "again", "end"),
    [
        *((b"", b"1", b""), (b"0x", b"f", b""), (b"0b", b"1", b""), (b"", b"0", b"")),
        *((b"1:", b"9", b""), (b"1:0x", b"f", b""), (b"", b"9", b":1"), (b"", b"9", b"x")),
        *((b"", b" ", b""), (b"", b" ", b"x"), (b"1", b" ", b"x"), (b"1", b"\n", b"")),
        *((b"", b"1:", b"1"), (b"", b"1 ", b""), (b"", b"\0", b""), (b"0x", b"0", b"x")),
    ],
)
def test_the_longest_nonsense_is_refused_and_at_once(start, again, end):
    for times in (5_000, 10_000, 100_000):
        before = time.process_time()
        assert refused(parse_update, start + again * times + end, 8)
        assert time.process_time() - before < 1


def by_the_bit(value, mask, old, bits):
    """What a register of so many bits holds after an update, bit by bit."""
    picked = ((value if mask >> bit & 1 else old) >> bit & 1 for bit in range(bits))
    return sum(one << bit for bit, one in enumerate(picked))


def test_an_update_changes_the_bits_of_its_mask_and_no_other():
    samples = (0, 1, 1 << 63, 0x0123456789ABCDEF, (1 << 64) - 1)
    for bits, numbers in {4: range(16), 64: samples}.items():
        for value, mask, old in itertools.product(numbers, numbers, numbers):
            expected = by_the_bit(value, mask, old, bits)
            assert Update(value, mask).apply(old) == expected, (value, mask, old)


def test_an_update_without_a_mask_changes_all_bits():
    for value, old in itertools.product(range(16), range(16)):
        assert Update(value, None).apply(old) == value, (value, old)


@pytest.mark.parametrize(
    ("width", "line"),
    [(1, b"0x2a\n"), (2, b"0x002a\n"), (4, b"0x0000002a\n"), (8, b"0x000000000000002a\n")],
)
def test_a_value_is_a_line_of_its_width_that_parses_to_it(width, line):
    assert format_value(42, width) == line
    top = (1 << 8 * width) - 1
    assert format_value(top, width) == b"0x" + b"ff" * width + b"\n"
    for value in (0, 1, 42, 0xA5, top >> 1, top):
        assert len(format_value(value, width)) == text_size(width) == len(line)
        assert parse_update(format_value(value, width), width) == Update(value, None)


def test_a_message_shows_only_the_beginning_of_a_long_text():
    """It goes to the log, whose memory is bounded in lines."""
    for text in (b"x" * 4096, b"\0" * 4096, b"9" + b" " * 4094 + b"9"):
        with pytest.raises(BadRequest, match=r"\.\.\. is no number") as caught:
            parse_update(text, 4)
        assert len(str(caught.value)) < 500
    for text in (b"5" + b" " * 4096, b"5" + b" " * (1 << 20), b"x" * 4097):
        with pytest.raises(BadRequest, match="are no number: a text has 4096 at the most"):
            parse_update(text, 4)
    assert parse_update(b"5" + b" " * 4095, 4).value == 5
    with pytest.raises(BadRequest, match=r"^0x100 is too big for 8 bits$"):
        parse_update(b"0x100", 1)
