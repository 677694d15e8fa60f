"""The lines of `log`, the memory that they take, and what a reader is given."""

import json

import pytest

from barfs.journal import records
from barfs.journal.records import (
    RECORDS,
    STREAM_BYTES,
    Caller,
    Change,
    Entry,
    Journal,
    LogView,
    MoreRefusals,
    Open,
    Opened,
    Refusal,
    Stream,
    Subject,
    Transfer,
)

WHEN = 1_790_000_000_123_456_789  # ns
WHO = Caller(1000, 731, "bash")
BAR = Subject("pci/0000:00:04.0/bar0@40+10", "0000:00:04.0", 0, 0x40)
PHYS = Subject("phys/fea00000-fea000ff", start=0xFEA00000, unit="address")
TEXT = Subject("pci/0000:00:04.0/x32/bar0@8+4", "0000:00:04.0", 0, 8, is_text=True)
CONFIG = Subject("pci/0000:00:04.0/config", "0000:00:04.0")


def said(record):
    """The line of a record without its number, its time and who asked."""
    text = Entry(7, WHEN, record).line()
    assert text.endswith(b"}\n")
    assert text.count(b"\n") == 1
    fields = json.loads(text)
    assert fields.pop("n") == 7
    assert fields.pop("time") == "2026-09-21T14:13:20.123456Z"
    for name in ("uid", "pid", "process"):
        if name in fields:
            assert fields.pop(name) == getattr(WHO, name)
    return fields


def test_a_line_exactly():
    record = Transfer("write", Opened(WHO, TEXT), 0, 5, 4, b"0x2a\n")
    assert Entry(41, WHEN, record).line() == (
        b'{"n": 41, "time": "2026-09-21T14:13:20.123456Z", "event": "write", "uid": 1000,'
        b' "pid": 731, "process": "bash", "path": "pci/0000:00:04.0/x32/bar0@8+4",'
        b' "device": "0000:00:04.0",'
        b' "bar": 0, "offset": "0x8", "width": 4, "length": 5, "value": "0x2a"}\n'
    )
    assert Entry(1, 0, Change("add", "0000:00:04.0")).line() == (
        b'{"n": 1, "time": "1970-01-01T00:00:00.000000Z", "event": "add",'
        b' "device": "0000:00:04.0"}\n'
    )


@pytest.mark.parametrize(
    ("subject", "fields"),
    [
        (BAR, {"path": BAR.path, "device": "0000:00:04.0", "bar": 0}),
        (PHYS, {"path": PHYS.path}),
        (
            PHYS._replace(unclaimed=True),
            {"path": PHYS.path, "unclaimed": "on some machines such an access hangs the machine"},
        ),
        (CONFIG, {"path": CONFIG.path, "device": "0000:00:04.0"}),
    ],
)
def test_an_open(subject, fields):
    assert said(Open(Opened(WHO, subject), "rw")) == {"event": "open", **fields, "mode": "rw"}


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
    shown = said(Transfer(event, Opened(WHO, subject), offset, length, width, data))
    shown = {name: shown[name] for name in shown if name not in {"path", "device", "bar"}}
    assert shown == {"event": event, **fields}


def test_a_value_is_that_of_the_machines_byte_order(monkeypatch):
    monkeypatch.setattr(records.sys, "byteorder", "big")
    assert said(Transfer("write", Opened(WHO, BAR), 0, 2, 2, b"\x2a\0"))["value"] == "0x2a00"


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
    text = Entry(1, WHEN, Open(Opened(Caller(0, 0, None), PHYS), "r")).line()
    assert b'"pid": 0, "process": null' in text


def test_a_record_holds_nothing_of_what_is_open():
    """Else a closed view, and the mapping behind it, would live as long as its records."""
    record = Transfer("write", Opened(WHO, BAR), 0, 4, 4, b"abcd")

    def leaves(value):
        return (
            [leaf for part in value for leaf in leaves(part)] if type(value) in TUPLES else [value]
        )

    assert {type(leaf) for leaf in leaves(record)} <= {str, int, bytes, bool, type(None)}


TUPLES = {Transfer, Opened, Caller, Subject}


def number(n):
    """A record that can be told from others."""
    return Change(f"change{n}", "0000:00:04.0")


def filled(count, journal=None):
    """A journal with so many more records, each of which says its number."""
    journal = journal or Journal()
    for n in range(journal.count + 1, journal.count + count + 1):
        journal.add(number(n))
    return journal


def test_the_journal_keeps_the_last_records_with_their_numbers():
    journal = filled(3)
    assert [entry.record for entry in journal.after(1)] == [number(2), number(3)]
    assert journal.after(3) == []
    filled(RECORDS, journal)
    assert journal.count == RECORDS + 3
    kept = journal.after(0)
    assert [entry.number for entry in kept] == list(range(4, RECORDS + 4))
    assert [entry.record for entry in kept] == [number(n) for n in range(4, RECORDS + 4)]
    assert journal.after(2) == journal.after(3) == kept
    assert len(journal.after(5)) == RECORDS - 2


def test_the_journal_tells_its_listener():
    journal, told = Journal(), []
    journal.add(number(1))
    journal.listener = lambda: told.append(journal.count)
    journal.add(number(2))
    assert told == [2]


def text_of(lines):
    return b"".join(line.text for line in lines)


def test_a_stream_is_made_of_the_lines():
    journal = filled(10)
    stream = Stream(journal)
    assert stream.size == 0
    stream.refresh()
    text = text_of(stream.after(0))
    assert numbers(text) == list(range(1, 11))
    assert stream.size == len(text)
    modified = stream.modified
    stream.refresh()
    assert stream.modified == modified, "nothing is new"
    filled(1, journal)
    stream.refresh()
    assert stream.modified > modified
    assert numbers(text_of(stream.after(10))) == [11]
    assert text_of(stream.after(0)) == text + text_of(stream.after(10))


def long_record(n):
    return Change(f"{n} " + "x" * 1000, "0000:00:04.0")


def test_a_stream_is_bounded_and_its_size_goes_on_for_those_who_have_it_open():
    journal = Journal()
    stream = Stream(journal)
    stream.enter()
    total = 0
    for n in range(1, 3001):
        journal.add(long_record(n))
        total += len(Entry(n, WHEN, long_record(n)).line())
        if n % 100 == 0:
            stream.refresh()
    assert stream.size == total
    kept = stream.after(0)
    assert STREAM_BYTES - 2000 < len(text_of(kept)) <= STREAM_BYTES
    assert [line.number for line in kept] == list(range(3001 - len(kept), 3001))
    stream.leave()
    stream.refresh()
    assert stream.size == stream.kept == len(text_of(kept))


def test_the_size_is_that_of_what_a_reader_is_given(small):
    stream = rolled(small)
    stream.leave()
    stream.refresh()
    kept = text_of(stream.after(0))
    assert stream.size == len(kept)
    view = LogView(stream)
    assert view.read(len(kept) - 1, 4096) == b"\n"
    assert view.read(0, 4096) == kept
    for _ in range(30):
        filled(1, small)
        stream.refresh()
        kept += text_of(stream.after(small.count - 1))
        assert stream.size == len(kept)
        assert view.read(len(kept) - 10, 4096) == kept[-10:]
    view.close()
    stream.refresh()
    assert stream.size == stream.kept < len(kept)


def test_a_line_longer_than_a_stream_is_not_kept():
    journal = Journal()
    stream = Stream(journal)
    journal.add(Change("x" * (STREAM_BYTES + 1), "0000:00:04.0"))
    stream.refresh()
    assert stream.size == 0
    filled(1, journal)
    assert numbers(LogView(stream).read(0, 4096)) == [2]


def refused(n, length=0):
    return Refusal("lookup", WHO, None, None, None, 2, f"refused {n} " + "x" * length)


@pytest.mark.parametrize("length", [0, 4000])
@pytest.mark.parametrize("readers", ["one that follows", "a late one"])
def test_refusals_never_take_the_place_of_what_was_done(length, readers):
    journal = filled(100)
    stream = Stream(journal)
    for n in range(50_000):
        journal.add(refused(n, length))
        if readers == "one that follows" and n % 100 == 0:
            stream.refresh()
    filled(1, journal)
    stream.refresh()
    lines = [json.loads(line.text) for line in stream.after(0)]
    assert [line["n"] for line in lines] == sorted({line["n"] for line in lines})
    kept = [line["event"] for line in lines if line["event"] != "refused"]
    assert kept == [f"change{n}" for n in (*range(1, 101), 50101)]
    messages = [line["message"].split()[1] for line in lines if line["event"] == "refused"]
    assert messages == [str(n) for n in range(50_000 - len(messages), 50_000)], "the last ones"
    assert len(messages) > 60
    view = LogView(stream)
    text = read_on(view, 0, 4096, 10**6)
    assert [json.loads(line)["n"] for line in text.splitlines()] == [line["n"] for line in lines]
    assert view.read(stream.size - 100, 4096) == text[-100:]


def test_refusals_that_were_only_counted():
    assert said(MoreRefusals(1000, 42, "42 more")) == {
        "event": "refused",
        "times": 42,
        "message": "42 more",
    }
    assert "uid" not in json.loads(Entry(1, WHEN, MoreRefusals(None, 42, "")).line())


def numbers(text):
    """The numbers of a reader's lines. All are whole lines, in their order, none twice."""
    *lines, rest = text.split(b"\n")
    assert rest == b""
    found = [json.loads(line)["n"] for line in lines]
    assert found == sorted(set(found))
    assert all(
        json.loads(line)["event"] == f"change{n}" for line, n in zip(lines, found, strict=True)
    )
    return found


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
def test_a_slow_reader_sees_by_the_numbers_what_it_missed(small, size, burst, times):
    """It reads `times` pieces of `size` bytes for every `burst` records."""
    view, text = LogView(Stream(small)), b""
    for _ in range(25):
        filled(burst, small)
        text += read_on(view, len(text), size, times)
    text += read_on(view, len(text), size, 10**6)
    assert view.read(len(text), size) == b""
    assert len(view._text) < 2 * 2000 + size
    told = numbers(text)
    assert told[-1] == 25 * burst, "it comes to the end"
    if burst >= 19 and size * times < 80 * burst:
        assert len(told) < 25 * burst
    if size >= 4096 and burst < 20:
        assert len(told) == 25 * burst


def test_another_reader_meanwhile_makes_no_difference(small):
    """The stream is taken from the journal by whoever reads, or looks at its size."""
    stream = Stream(small)
    slow, fast, text = LogView(stream), LogView(stream), [b"", b""]
    for turn in range(40):
        filled(13, small)
        text[1] += read_on(fast, len(text[1]), 4096, 10**6)
        if turn % 3 == 0:
            text[0] += read_on(slow, len(text[0]), 100, 5)
    text[0] += read_on(slow, len(text[0]), 100, 10**6)
    assert numbers(text[1]) == list(range(1, 40 * 13 + 1))
    assert numbers(text[0])[-1] == 40 * 13
    assert len(numbers(text[0])) < 40 * 13


def rolled(small):
    """A stream that somebody follows, and that has dropped most of its lines."""
    stream = Stream(small)
    stream.enter()
    for _ in range(10):
        filled(19, small)
        stream.refresh()
    return stream


def test_a_late_reader_is_given_what_is_kept_wherever_it_begins(small):
    stream = rolled(small)
    kept = text_of(stream.after(0))
    assert numbers(kept)[0] > 100
    for offset in (0, 1, stream.size - len(kept)):
        view = LogView(stream)
        assert view.read(offset, 4096) == kept
        assert view.read(offset + len(kept), 4096) == b""
        filled(1, small)
        news = view.read(offset + len(kept), 4096)
        assert numbers(news) == [small.count]
        stream = rolled(small)
        kept = text_of(stream.after(0))


def test_offsets_near_the_end_are_those_of_its_size(small):
    """What tail and less do: they look at the size, and read before it."""
    stream = rolled(small)
    kept, size = text_of(stream.after(0)), stream.size
    view = LogView(stream)
    for length in (200, 1, len(kept), 90):
        assert view.read(size - length, 4096) == kept[-length:]
    assert view.read(size, 4096) == view.read(size + 5000, 4096) == b""
    assert view.read(size - 200, 50) == kept[-200:-150]
    # First from the start and then from the end, and the other way round.
    assert view.read(0, 4096) == kept
    assert view.read(size - 200, 4096) == kept[-200:]
    assert view.read(size, 4096) == b""
    filled(1, small)
    assert numbers(view.read(size, 4096)) == [small.count]
    assert view.read(0, 4096) == text_of(stream.after(0)), "from the oldest line on"


def test_a_read_takes_as_much_as_there_is():
    """As of any file: tac takes less for an error."""
    journal = filled(5)
    stream = Stream(journal)
    view = LogView(stream)
    text = view.read(0, 4096)
    assert view.read(5, 50) == text[5:55]
    filled(3, journal)
    assert numbers(view.read(0, 1 << 17)) == list(range(1, 9))


def test_readers_at_the_end_wait_for_what_comes():
    journal = filled(1)
    view = LogView(Stream(journal))
    text = view.read(0, 4096)
    assert view.read(len(text), 4096) == b""
    filled(1, journal)
    assert numbers(view.read(len(text), 4096)) == [2]
