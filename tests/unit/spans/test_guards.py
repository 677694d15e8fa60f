"""An open BAR that ceases to answer: what is doubted, how often config space is asked, and when."""

from contextlib import ExitStack

import pytest

from barfs.errors import DeviceGone, NotDecoded
from barfs.spans import guards
from barfs.spans.guards import BELIEVED, EMPTY, EMPTY_TEXT, BarView, Guard


class Behind:
    """A view, a presence and the config space of a device, and a note of what is asked of them."""

    way = "resource"
    raw = None
    lines = None
    text_size = None

    def __init__(self):
        self.made = []
        self.data = b"\x2a\0\0\0"
        self.answers, self.there = True, True

    def reach(self, *_, **__):
        return range(0)

    def width_at(self, *_):
        return None

    def read(self, offset, length, allocate=bytearray):
        self.made.append("read")
        return self.data[:length]

    def write(self, offset, data):
        self.made.append("write")
        return len(data)

    def check(self):
        if not self.there:
            raise DeviceGone("gone")

    def check_answers(self):
        self.made.append("ask")
        if not self.answers:
            raise NotDecoded("silent")

    def close(self):
        self.made.append("close")


@pytest.fixture
def behind():
    return Behind()


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(guards, "monotonic", lambda: now[0])

    def later(seconds=2 * BELIEVED):
        now[0] += seconds

    return later


def bar_view(behind, empty=EMPTY):
    watched = [Guard(0, 1 << 40, behind)]
    now = guards.monotonic()
    check = behind.check_answers
    return BarView(behind, watched, ExitStack(), check, empty=empty, asked=now)


@pytest.mark.parametrize(
    ("empty", "data", "doubted"),
    [
        *((EMPTY, b"\xff" * 4, True), (EMPTY, bytes(4), True), (EMPTY, b"\xff", True)),
        *((EMPTY, bytes(1 << 20), True), (EMPTY, b"\0\0\0\1", False), (EMPTY, b"\xfe" * 4, False)),
        *((EMPTY, b"", False), (EMPTY, memoryview(bytearray(4)), True)),
        # Only the beginning is looked at: the rest may be long.
        *((EMPTY, bytes(15) + b"\1", False), (EMPTY, bytes(16) + b"\1", True)),
        *((EMPTY_TEXT, b"0xffffffff\n", True), (EMPTY_TEXT, b"0x00000000\n", True)),
        *((EMPTY_TEXT, b"0x0000002a\n", False), (EMPTY_TEXT, bytes(4), False)),
        # What is spelled in words may always be that.
        *((None, b"\x2a\0\0\0", True), (None, b"off", True), (None, b"", False)),
    ],
)
def test_what_is_doubted(behind, clock, empty, data, doubted):
    view = bar_view(behind, empty)
    behind.data = data
    clock()
    assert view.read(0, 1 << 20) == data
    assert behind.made == (["read", "ask"] if doubted else ["read"])


def test_data_without_an_answer_is_an_error(behind, clock):
    view = bar_view(behind)
    behind.data, behind.answers = b"\xff" * 4, False
    clock()
    for _ in range(2):  # it is asked again each time
        with pytest.raises(NotDecoded):
            view.read(0, 4)
    behind.answers = True
    assert view.read(0, 4) == b"\xff" * 4, "a register may have that"


def test_nothing_is_written_to_what_does_not_answer(behind, clock):
    view = bar_view(behind)
    behind.answers = False
    clock()
    with pytest.raises(NotDecoded):
        view.write(0, b"1")
    assert behind.made == ["ask"]
    behind.answers = True
    assert view.write(0, b"1") == 1


def test_an_answer_is_believed_for_a_while(behind, clock):
    view = bar_view(behind)
    behind.data = bytes(4)
    for _ in range(3):
        view.read(0, 4)
        view.write(0, b"1")
    assert "ask" not in behind.made, "it was asked when it was opened"
    clock()
    view.read(0, 4)
    view.write(0, b"1")
    assert behind.made.count("ask") == 1
    clock(BELIEVED / 2)
    view.write(0, b"1")
    assert behind.made.count("ask") == 1


def test_what_is_gone_is_not_asked(behind, clock):
    view = bar_view(behind)
    behind.there = behind.answers = False
    clock()
    for request in (lambda: view.read(0, 4), lambda: view.write(0, b"1")):
        with pytest.raises(DeviceGone):
            request()
    assert behind.made == []
    view.close()
    assert behind.made == ["close"]
