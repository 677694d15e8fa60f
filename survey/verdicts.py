"""What a tool's requests come to, in a word. All pure."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

EXACT: Final = "exact"
PIECES: Final = "in pieces"
READS_AROUND: Final = "reads around"
READS_ALL: Final = "reads everything"
WRITES_AROUND: Final = "**writes around**"
WRITES_ALL: Final = "**writes everything back**"
REFUSED: Final = "refused"
NOTHING: Final = "nothing"


class Request(NamedTuple):
    """A read or a write as it reached the mount, in bytes."""

    offset: int
    length: int

    @property
    def touched(self) -> range:
        """The offsets that it covers."""
        return range(self.offset, self.offset + self.length)


def _touched(requests: Sequence[Request]) -> set[int]:
    return set().union(*(request.touched for request in requests))


def shown(reads: Sequence[Request], wanted: range, size: int) -> str:
    """The verdict on a tool that was asked to show `wanted` of a file of `size` bytes."""
    touched = _touched(reads)
    if not touched:
        return REFUSED
    if touched == set(wanted):
        return EXACT if len(reads) == 1 else PIECES
    return READS_ALL if touched == set(range(size)) else READS_AROUND


def changed(
    reads: Sequence[Request], writes: Sequence[Request], wanted: range, size: int, *, done: bool
) -> str:
    """The verdict on a tool that was asked to change `wanted`; `done` if that has changed.

    Writing too much is worse than reading too much, so that is said where both are so.
    """
    if not done:
        return REFUSED
    written = _touched(writes)
    if written != set(wanted):
        return WRITES_ALL if written == set(range(size)) else WRITES_AROUND
    if len(writes) > 1:
        return PIECES
    touched = _touched(reads)
    if not touched:
        return EXACT
    return READS_ALL if touched == set(range(size)) else READS_AROUND


def _amount(length: int) -> str:
    if length >= 1024 and length % 1024 == 0:
        return f"{length // 1024} KiB"
    return f"{length} byte" + ("s" if length != 1 else "")


def _runs(requests: Sequence[Request]) -> Iterator[str]:
    """Requests that follow one another without a gap, as one."""
    rest = list(requests)
    while rest:
        end = 1
        while end < len(rest) and rest[end].offset == rest[end - 1].touched.stop:
            end += 1
        run, rest = rest[:end], rest[end:]
        text = f"{_amount(sum(request.length for request in run))} at {run[0].offset}"
        if len(run) > 1:
            *lengths, last = (request.length for request in run)
            even = len(set(lengths)) == 1 and last <= lengths[0]
            text += f", {_amount(lengths[0])} at a time" if even else f", in {len(run)} requests"
        yield text


def described(requests: Sequence[Request]) -> str:
    """Requests in words, for a cell of the table; the first three runs of them."""
    texts = []
    for text, same in groupby(_runs(requests)):
        times = len(list(same))
        texts.append(f"{times} times {text}" if times > 1 else text)
    if len(texts) > 3:
        texts[2:] = [f"{len(texts) - 2} more"]
    return "; ".join(texts) or NOTHING
