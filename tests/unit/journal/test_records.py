"""The lines of `log`, the memory that they take, and what a reader is given."""

import json

import pytest

from barfs.errors import ReadOnly
from barfs.journal import records
from barfs.journal.records import (
    RECORDS,
    STREAM_BYTES,
    Caller,
    Change,
    Journal,
    LogView,
    Lost,
    Open,
    Opened,
    Refusal,
    Stream,
    Subject,
    Transfer,
    line,
)

WHEN = 1_790_000_000_123_456_789  # ns
WHO = Caller(1000, 731, "bash")
BAR = Subject("pci/0000:00:04.0/bar0@40+10", "0000:00:04.0", 0, 0x40)
PHYS = Subject("phys/fea00000-fea000ff", start=0xFEA00000, unit="address")
TEXT = Subject("pci/0000:00:04.0/x32/bar0@8+4", "0000:00:04.0", 0, 8, is_text=True)
CONFIG = Subject("pci/0000:00:04.0/config", "0000:00:04.0")


def opened(subject, width=None):
    return Opened(WHO, subject, lambda offset, length: width)


def said(record):
    """The line of a record without its time and who asked."""
    text = line(WHEN, record)
    assert text.endswith(b"}\n")
    assert text.count(b"\n") == 1
    fields = json.loads(text)
    assert fields.pop("time") == "2026-09-21T14:13:20.123456Z"
    for name in ("uid", "pid", "process"):
        if name in fields:
            assert fields.pop(name) == getattr(WHO, name)
    return fields


def test_a_line_exactly():
    record = Transfer("write", opened(TEXT, 4), 0, 5, b"0x2a\n")
    assert line(WHEN, record) == (
        b'{"time": "2026-09-21T14:13:20.123456Z", "event": "write", "uid": 1000, "pid": 731,'
        b' "process": "bash", "path": "pci/0000:00:04.0/x32/bar0@8+4", "device": "0000:00:04.0",'
        b' "bar": 0, "offset": "0x8", "width": 4, "length": 5, "value": "0x2a"}\n'
    )
    assert line(0, Change("add", "0000:00:04.0")) == (
        b'{"time": "1970-01-01T00:00:00.000000Z", "event": "add", "device": "0000:00:04.0"}\n'
    )
    assert line(WHEN, Lost(42)) == (
        b'{"time": "2026-09-21T14:13:20.123456Z", "event": "lost", "lines": 42}\n'
    )


@pytest.mark.parametrize(
    ("subject", "fields"),
    [
        (BAR, {"path": BAR.path, "device": "0000:00:04.0", "bar": 0}),
        (PHYS, {"path": PHYS.path}),
        (CONFIG, {"path": CONFIG.path, "device": "0000:00:04.0"}),
    ],
)
def test_an_open(subject, fields):
    assert said(Open(opened(subject), "rw")) == {"event": "open", **fields, "mode": "rw"}


@pytest.mark.parametrize(
    ("subject", "width", "offset", "data", "fields"),
    [
        (BAR, 1, 3, b"\x2a", {"offset": "0x43", "width": 1, "length": 1, "value": "0x2a"}),
        (BAR, 2, 2, b"\x2a\0", {"offset": "0x42", "width": 2, "length": 2, "value": "0x002a"}),
        (
            BAR,
            4,
            0,
            b"\x2a\0\0\0",
            {"offset": "0x40", "width": 4, "length": 4, "value": "0x0000002a"},
        ),
        (
            BAR,
            8,
            0,
            b"\x2a\0\0\0\0\0\0\x80",
            {"offset": "0x40", "width": 8, "length": 8, "value": "0x800000000000002a"},
        ),
        # Made of more than one access: no value, but the bytes in their order.
        (
            BAR,
            4,
            0,
            b"\1\2\3\4\5\6\7\x08",
            {"offset": "0x40", "width": 4, "length": 8, "bytes": "01 02 03 04 05 06 07 08"},
        ),
        (BAR, None, 1, b"\1\2\3", {"offset": "0x41", "length": 3, "bytes": "01 02 03"}),
        (BAR, 4, 0, None, {"offset": "0x40", "width": 4, "length": 12}),
        (PHYS, 1, 0x10, b"\0", {"address": "0xfea00010", "width": 1, "length": 1, "value": "0x00"}),
        (CONFIG, None, 4, b"\7\0", {"offset": "0x4", "length": 2, "bytes": "07 00"}),
        # A text view is one register, wherever in its line the request begins.
        (TEXT, 4, 0, b" 1:0xff \n", {"offset": "0x8", "width": 4, "length": 9, "value": "1:0xff"}),
        (TEXT, 4, 6, b"00002a\n", {"offset": "0x8", "width": 4, "length": 7, "value": "00002a"}),
    ],
)
@pytest.mark.parametrize("event", ["read", "write"])
def test_a_transfer(subject, width, offset, data, fields, event, monkeypatch):
    monkeypatch.setattr(records.sys, "byteorder", "little")
    length = fields["length"]
    shown = said(Transfer(event, opened(subject, width), offset, length, data))
    shown = {name: shown[name] for name in shown if name not in {"path", "device", "bar"}}
    assert shown == {"event": event, **fields}


def test_a_value_is_that_of_the_machines_byte_order(monkeypatch):
    monkeypatch.setattr(records.sys, "byteorder", "big")
    assert said(Transfer("write", opened(BAR, 2), 0, 2, b"\x2a\0"))["value"] == "0x2a00"


def test_a_refusal():
    assert said(Refusal("write", WHO, BAR, 4, 3, 22, "does not fit")) == {
        "event": "refused",
        "operation": "write",
        "path": BAR.path,
        "device": "0000:00:04.0",
        "bar": 0,
        "offset": "0x44",
        "length": 3,
        "errno": "EINVAL",
        "message": "does not fit",
    }
    assert said(Refusal("lookup", None, None, None, None, 2, "no such 'x\ny\udc80'")) == {
        "event": "refused",
        "operation": "lookup",
        "errno": "ENOENT",
        "message": "no such 'x\ny\udc80'",
    }
    assert said(Refusal("lookup", WHO, None, None, None, 9999, ""))["errno"] == "9999"


def test_a_process_that_is_not_known():
    text = line(WHEN, Open(Opened(Caller(0, 0, None), PHYS, lambda *_: None), "r"))
    assert b'"pid": 0, "process": null' in text


def number(n):
    """A record that can be told from others."""
    return Change(f"change{n}", "0000:00:04.0")


def filled(count, start=0, journal=None):
    journal = journal or Journal()
    for n in range(start, start + count):
        journal.add(number(n))
    return journal


def test_the_journal_keeps_the_last_records_and_says_how_many_it_has_not():
    journal = filled(3)
    assert [record for _, record in journal.since(1)] == [number(1), number(2)]
    assert journal.since(3) == []
    filled(RECORDS, 3, journal)
    assert journal.end == RECORDS + 3
    (_, lost), *kept = journal.since(0)
    assert lost == Lost(3)
    assert [record for _, record in kept] == [number(n) for n in range(3, RECORDS + 3)]
    assert journal.since(2)[0][1] == Lost(1)
    assert journal.since(3)[0][1] == number(3)
    assert len(journal.since(5)) == RECORDS - 2


def test_the_journal_tells_its_listener():
    journal, told = Journal(), []
    journal.add(number(0))
    journal.listener = lambda: told.append(journal.end)
    journal.add(number(1))
    assert told == [2]


def test_a_stream_is_made_of_the_lines_at_offsets_that_stay():
    journal = filled(10)
    stream = Stream(journal)
    assert stream.end == 0
    stream.refresh()
    text = stream.read(0, STREAM_BYTES)
    assert text.count(b"\n") == 10
    assert stream.end == len(text)
    modified = stream.modified
    stream.refresh()
    assert stream.modified == modified, "nothing is new"
    journal.add(number(10))
    stream.refresh()
    assert stream.modified > modified
    assert stream.read(len(text), STREAM_BYTES).startswith(b'{"time": ')
    # As much as was asked for, as of any file: tac takes less for an error.
    first = text.index(b"\n") + 1
    assert stream.read(0, first - 1) == text[: first - 1]
    assert stream.read(5, 500) == text[5:505]
    assert stream.rest_of_line(0) == stream.rest_of_line(first) == b""
    assert stream.rest_of_line(first - 1) == b"\n"
    assert stream.rest_of_line(first + 10) == text[first + 10 : text.index(b"\n", first) + 1]
    assert stream.rest_of_line(stream.end) == b""
    assert stream.records_before(first - 1) == 0
    assert stream.records_before(first) == 1
    assert stream.records_before(len(text)) == 10


def long_record(n):
    return Refusal("lookup", None, None, None, None, 2, f"{n} " + "x" * 1000)


def test_a_stream_is_bounded_and_its_offsets_go_on():
    journal, stream = Journal(), None
    stream = Stream(journal)
    total = 0
    for n in range(3000):
        journal.add(long_record(n))
        total += len(line(WHEN, long_record(n)))
        if n % 100 == 0:
            stream.refresh()
    stream.refresh()
    assert stream.end == total
    assert STREAM_BYTES - 2000 < stream.end - stream.first <= STREAM_BYTES
    kept = stream.read(stream.first, 2 * STREAM_BYTES).splitlines()
    assert [int(json.loads(text)["message"].split()[0]) for text in kept] == list(
        range(3000 - len(kept), 3000)
    )
    assert stream.records_before(stream.first) == 3000 - len(kept)
    assert stream.records_before(stream.end) == 3000


def test_a_line_longer_than_a_stream_is_lost_and_counted():
    journal = Journal()
    stream = Stream(journal)
    journal.add(Refusal("lookup", None, None, None, None, 2, "x" * (STREAM_BYTES + 1)))
    stream.refresh()
    assert stream.first == stream.end > STREAM_BYTES
    journal.add(number(1))
    view = LogView(stream)
    notice = view.read(0, 4096)
    assert json.loads(notice)["lines"] == 1
    assert json.loads(view.read(len(notice), 4096))["event"] == "change1"


def account(text):
    """How many records a reader's bytes tell of, and say are lost. All are whole lines."""
    *lines, rest = text.split(b"\n")
    assert rest == b""
    told = lost = 0
    for fields in map(json.loads, lines):
        if fields["event"] == "lost":
            assert fields["lines"] > 0
            lost += fields["lines"]
        else:
            told += 1
    return told, lost


def read_on(view, offset, size, times):
    """Some pieces, as a reader that is in no hurry takes them."""
    pieces = []
    for _ in range(times):
        piece = view.read(offset, size)
        assert len(piece) <= size
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


@pytest.fixture
def small(monkeypatch):
    """A journal and a stream that are soon full."""
    monkeypatch.setattr(records, "RECORDS", 20)
    monkeypatch.setattr(records, "STREAM_BYTES", 2000)
    return Journal()


@pytest.mark.parametrize("size", [1, 2, 7, 50, 70, 74, 80, 89, 90, 91, 100, 1000, 4096, 131072])
@pytest.mark.parametrize("burst", [1, 19, 20, 21, 22, 60])
@pytest.mark.parametrize("times", [1, 3, 40])
def test_a_slow_reader_accounts_for_every_record(small, size, burst, times):
    """It reads `times` pieces of `size` bytes for every `burst` records."""
    stream = Stream(small)
    view, text, total = LogView(stream), b"", 0
    for _ in range(25):
        filled(burst, total, small)
        total += burst
        text += read_on(view, len(text), size, times)
    text += read_on(view, len(text), size, 10**6)
    assert view.read(len(text), size) == b""
    told, lost = account(text)
    assert told + lost == total
    if burst >= 19 and size * times < 80 * burst:
        assert lost
    if size >= 4096 and burst < 20:
        assert not lost


def test_another_reader_meanwhile_makes_no_difference(small):
    """The stream is taken from the journal by whoever reads, or looks at its size."""
    stream = Stream(small)
    slow, fast, text, total = LogView(stream), LogView(stream), [b"", b""], 0
    for turn in range(40):
        filled(13, total, small)
        total += 13
        text[1] += read_on(fast, len(text[1]), 4096, 10**6)
        if turn % 3 == 0:
            text[0] += read_on(slow, len(text[0]), 100, 5)
    text[0] += read_on(slow, len(text[0]), 100, 10**6)
    assert account(text[1]) == (total, 0)
    told, lost = account(text[0])
    assert told + lost == total
    assert lost


def test_a_late_reader_and_one_that_seeks(small):
    stream = Stream(small)
    for total in range(0, 190, 19):
        filled(19, total, small)
        stream.refresh()
    late = LogView(stream)
    text = read_on(late, 0, 4096, 100)
    told, lost = account(text)
    assert told + lost == 190
    assert json.loads(text.splitlines()[0])["lines"] == lost
    # From the middle of what is kept, as tail and less do.
    seeking = LogView(stream)
    near_end = seeking.read(stream.end - 200, 4096)
    assert near_end == text[-200:]
    assert seeking.read(stream.end, 4096) == b""
    # Back to where nothing is left: all that is lost, and then what is kept.
    again = read_on(seeking, 0, 4096, 100)
    assert account(again) == (told, lost)
    # A piece of the notice once more.
    assert seeking.read(0, 10) == again[:10]


def test_readers_at_the_end_wait_for_what_comes():
    journal = filled(1)
    view = LogView(Stream(journal))
    text = view.read(0, 4096)
    assert view.read(len(text), 4096) == b""
    journal.add(number(1))
    assert json.loads(view.read(len(text), 4096))["event"] == "change1"


def test_the_log_is_not_written_and_makes_no_accesses():
    view = LogView(Stream(Journal()))
    with pytest.raises(ReadOnly, match="log: write of 0x3 bytes at 0x10"):
        view.write(16, b"abc")
    assert len(view.reach(0, 131072, writing=False)) == 0
    assert view.width_at(0, 4) is None
    view.close()
