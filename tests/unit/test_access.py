"""The access contract, checked against every small request."""

import errno
import itertools

import pytest

from barfs.access import clip_read, clip_write, plan
from barfs.errors import PastEnd


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
