"""What registers of config space say: tables of cases, and whatever bytes there are."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.machine.configspace import (
    CAPABILITY_POWER,
    Header,
    PowerControl,
    Windows,
    find_capability,
    parse_power_control,
)

NONE = range(0)


def header(layout=0, command=7, **registers):
    """A header, with registers by their offsets: `_10` is at 0x10, of as many bytes as it has."""
    raw = bytearray(64)
    struct.pack_into("<H", raw, 4, command)
    raw[0x0E] = layout
    for name, value in registers.items():
        at = int(name[1:], 16)
        raw[at : at + len(value)] = value
    return Header(bytes(raw))


def word(value):
    return struct.pack("<H", value)


def long(value):
    return struct.pack("<I", value)


@pytest.mark.parametrize(
    ("registers", "index", "is_memory", "is_64bit", "address"),
    [
        ({"_10": long(0xFEB20000)}, 0, True, False, 0xFEB20000),
        ({"_10": long(0xFEB20008)}, 0, True, False, 0xFEB20000),
        ({"_14": long(0xC001)}, 1, False, False, 0xC000),
        ({"_14": long(0xC005)}, 1, False, False, 0xC004),
        # The low half may be 0.
        ({"_18": long(0xC) + long(8)}, 2, True, True, 8 << 32),
        ({"_20": long(0x4) + long(0xFFFF)}, 4, True, True, 0xFFFF << 32),
        ({"_24": long(0xFEB30000)}, 5, True, False, 0xFEB30000),
        ({}, 0, True, False, 0),
        ({"_24": long(4)}, 5, True, True, None),
        ({}, 6, True, False, None),
    ],
)
def test_the_address_in_a_bar(registers, index, is_memory, is_64bit, address):
    found = header(**registers).bar(index, is_memory=is_memory, is_64bit=is_64bit)
    assert found == address


@pytest.mark.parametrize(("layout", "bars"), [(0, 6), (1, 2), (2, 1), (0x80, 6), (0x81, 2), (3, 0)])
def test_how_many_bars_a_header_has(layout, bars):
    found = [
        header(layout).bar(index, is_memory=True, is_64bit=False) is not None for index in range(7)
    ]
    assert found == [index < bars for index in range(7)]


@pytest.mark.parametrize("raw", [b"", bytes(6), bytes(63), b"\xff" * 64])
def test_a_header_that_was_not_read_has_no_bars(raw):
    assert Header(raw).bar(0, is_memory=True, is_64bit=False) is None
    assert not Header(raw).is_bridge


@pytest.mark.parametrize(
    ("registers", "windows"),
    [
        # A base above its limit: none.
        (
            {"_1c": b"\xf0\x00", "_20": word(0xFFF0) + word(0), "_24": word(0xFFF1) + word(1)},
            Windows(NONE, NONE, NONE),
        ),
        (
            {"_1c": b"\xc0\xd0", "_20": word(0xFE80) + word(0xFE90), "_24": word(0xFFF0) + word(0)},
            Windows(range(0xC000, 0xE000), range(0xFE800000, 0xFEA00000), NONE),
        ),
        # 32 bits of ports, 64 of prefetchable memory.
        (
            {
                "_1c": b"\x11\x21",
                "_30": word(1) + word(1),
                "_20": word(0xFFF0) + word(0),
                "_24": word(0x0001) + word(0xFFF1) + long(8) + long(9),
            },
            Windows(range(0x11000, 0x13000), NONE, range(8 << 32, 10 << 32)),
        ),
        # Upper halves that do not count, as the windows are of 16 and of 32 bits.
        (
            {
                "_1c": b"\x10\x10",
                "_30": word(1) + word(1),
                "_20": word(0xFFF0) + word(0),
                "_24": word(0x1000) + word(0x1000) + long(8) + long(8),
            },
            Windows(range(0x1000, 0x2000), NONE, range(0x10000000, 0x10100000)),
        ),
        # All zeros is the first MiB, and the first 4 KiB.
        ({}, Windows(range(0x1000), range(0x100000), range(0x100000))),
    ],
)
def test_the_windows_of_a_bridge(registers, windows):
    found = header(1, **registers).windows
    for one, other in zip(found, windows, strict=True):
        assert list(one[:1]) + list(one[-1:]) == list(other[:1]) + list(other[-1:])


@pytest.mark.parametrize(
    ("span", "is_memory", "held"),
    [
        *((range(0x1000, 0x1100), False, True), (range(0x1F00, 0x2000), False, True)),
        *((range(0x1F00, 0x2001), False, False), (range(0xFFF, 0x1001), False, False)),
        *((range(0x1000, 0x1100), True, False), (range(0x100000, 0x200000), True, True)),
        *((range(0x100000, 0x200001), True, False), (range(8 << 32, 9 << 32), True, True)),
        # One that begins in one window and ends in the next is in neither.
        (range(0x1FFFF0, 0x200010), True, False),
    ],
)
def test_what_a_window_holds(span, is_memory, held):
    windows = Windows(range(0x1000, 0x2000), range(0x100000, 0x200000), range(0x200000, 9 << 32))
    assert windows.holds(span, is_memory=is_memory) == held
    empty = Windows(NONE, range(5, 2), NONE)
    assert not empty.holds(span, is_memory=is_memory)


@pytest.mark.parametrize(
    ("layout", "interface", "only"), [(0, 0, False), (1, 0, True), (1, 1, False), (2, 0, False)]
)
def test_a_bridge_that_forwards_nothing_but_its_windows(layout, interface, only):
    assert header(layout, _9=bytes([interface])).forwards_windows_only == only


def test_where_capabilities_begin():
    assert header(_6=word(0x10), _34=b"\x43").first_capability == 0x40
    assert header(_6=word(0), _34=b"\x40").first_capability == 0


def reader(raw):
    return lambda offset, length: bytes(raw[offset : offset + length])


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        ({0x40: (5, 0x50), 0x50: (1, 0x60)}, 0x50),
        ({0x40: (1, 0)}, 0x40),
        ({0x40: (5, 0x53), 0x50: (1, 0)}, 0x50),  # the low bits are reserved
        ({0x40: (5, 0)}, None),
        ({0x40: (5, 0x40)}, None),  # in a circle
        ({0x40: (5, 0x50), 0x50: (9, 0x40)}, None),
        ({0x40: (5, 0x10)}, None),  # into the header
        ({0x40: (0xFF, 0xFF)}, None),
    ],
)
def test_the_list_of_capabilities(chain, found):
    raw = bytearray(256)
    for at, pair in chain.items():
        raw[at : at + 2] = bytes(pair)
    assert find_capability(reader(raw), 0x40, CAPABILITY_POWER) == found
    assert find_capability(reader(raw), 0, CAPABILITY_POWER) is None
    assert find_capability(reader(raw[:0x41]), 0x40, CAPABILITY_POWER) is None


@pytest.mark.parametrize(
    ("raw", "control"),
    [
        (b"\1\0\0\0\0\0", PowerControl(0x50, "D0", keeps_settings=False)),
        (b"\1\0\0\0\1\0", PowerControl(0x50, "D1", keeps_settings=False)),
        (b"\1\0\0\0\x0b\0", PowerControl(0x50, "D3hot", keeps_settings=True)),
        (b"\1\0\0\0\3\x81", PowerControl(0x50, "D3hot", keeps_settings=False)),
        *((b"\5\0\0\0\3\0", None), (b"\1\0\0\0\3", None), (b"", None), (b"\xff" * 6, None)),
    ],
)
def test_the_power_management_capability(raw, control):
    assert parse_power_control(0x50, raw) == control


@given(raw=st.binary(max_size=300))
def test_whatever_is_in_config_space(raw):
    found = Header(raw[:64])
    assert (found.bar(0, is_memory=True, is_64bit=True) is not None) <= found.is_whole
    for window in found.windows:
        assert 0 <= window.start < 1 << 64
        assert not window or window.stop <= 1 << 64
    at = find_capability(reader(raw), found.first_capability, CAPABILITY_POWER)
    assert at is None or (raw[at] == CAPABILITY_POWER and at % 4 == 0 and at >= 0x40)
    control = parse_power_control(0x40, raw)
    assert control is None or control.state in {"D0", "D1", "D2", "D3hot"}


@given(
    start=st.integers(0, (1 << 43) - 1).map(lambda n: n << 20),
    size=st.integers(1, 1 << 20).map(lambda n: n << 20),
)
def test_a_window_says_what_was_written_to_it(start, size):
    end = start + size - 1
    registers = {
        "_24": word(start >> 16 & 0xFFF0 | 1) + word(end >> 16 & 0xFFF0 | 1),
        "_28": long(start >> 32) + long(end >> 32),
    }
    found = header(1, **registers).windows.prefetchable
    assert (found.start, found.stop) == (start, start + size)
