"""Names have the forms that they are listed in, and nothing near them is taken for one."""

import itertools

import pytest

from barfs.names import AddressRange, BarName, DeviceId, LinkName, PciAddress

IVSHMEM = DeviceId(0x1AF4, 0x1110)
QEMU = DeviceId(0x1AF4, 0x1100)
TOP = (1 << 64) - 1

GOOD = {
    PciAddress.parse: {
        "0000:00:04.0": PciAddress(0, 0, 4, 0),
        "10000:01:00.0": PciAddress(0x10000, 1, 0, 0),  # behind Intel's VMD
        "ffffffff:ff:1f.7": PciAddress(0xFFFFFFFF, 0xFF, 0x1F, 7),
    },
    LinkName.parse: {
        "1af4:1110": LinkName(IVSHMEM, None, 0),
        "1af4:1110.999999999": LinkName(IVSHMEM, None, 999999999),
        "1af4:1110:1af4:1100": LinkName(IVSHMEM, QEMU, 0),
        "1af4:1110:1af4:1100.10": LinkName(IVSHMEM, QEMU, 10),
        "0000:0000:0000:0000": LinkName(DeviceId(0, 0), DeviceId(0, 0), 0),
    },
    AddressRange.parse: {
        "0": AddressRange(0, None),
        "0x1E102c5": AddressRange(0x1E102C5, None),
        "0X00000000000000010": AddressRange(0x10, None),
        "ffffffffffffffff": AddressRange(TOP, None),
        "00100000-1ffdefff": AddressRange(0x100000, 0x1FFDEFFF),
        "0x10-0x10": AddressRange(0x10, 0x10),
        "10+0x4": AddressRange(0x10, 0x13),
        "0-ffffffffffffffff": AddressRange(0, TOP),
        "0+10000000000000000": AddressRange(0, TOP),
        "ffffffffffffffff+1": AddressRange(TOP, TOP),
    },
    BarName.parse: {
        **{f"bar{index}": BarName(index, None) for index in range(6)},
        "bar0@0": BarName(0, AddressRange(0, None)),
        "bar5@40": BarName(5, AddressRange(0x40, None)),
        "bar0@0x40": BarName(0, AddressRange(0x40, None)),
        "bar0@0X00000000000000040": BarName(0, AddressRange(0x40, None)),
        "bar1@aB": BarName(1, AddressRange(0xAB, None)),
        "bar1@0xAbCdEf": BarName(1, AddressRange(0xABCDEF, None)),
        "bar0@40+4": BarName(0, AddressRange(0x40, 0x43)),
        "bar0@0x40+0XA": BarName(0, AddressRange(0x40, 0x49)),
        "bar2@40-5f": BarName(2, AddressRange(0x40, 0x5F)),
        "bar2@0X40-0x5F": BarName(2, AddressRange(0x40, 0x5F)),
        "bar2@40-40": BarName(2, AddressRange(0x40, 0x40)),
        "bar2@40+1": BarName(2, AddressRange(0x40, 0x40)),
        "bar4@0-ffffffffffffffff": BarName(4, AddressRange(0, TOP)),
    },
}
NONSENSE = ["", " ", ".", "..", "/", "\0", "\n", "g" * 255, "f" * 255, "\udcff", "\U0001f600"]
BAD = {
    PciAddress.parse: [
        *("00:04.0", "000:00:04.0", "0000:0:04.0", "0000:00:4.0", "0000:00:04", "0000:00:04."),
        *("0000:00:04.8", "0000:00:20.0", "0000:00:04.00", "0000:00:04:0", "0000:00:0A.0"),
        *("00010000:01:00.0", "01000:00:00.0", "100000000:00:00.0", "FFFF:00:00.0"),
        *("0x00:00:04.0", "-000:00:04.0", "0000.00.04.0", "\u0660000:00:04.0", *NONSENSE),
    ],
    LinkName.parse: [
        *("1af4", "1af4:", ":1110", "1af4:111", "1af4:11100", "1AF4:1110", "0x1af4:1110"),
        *("1af4:1110.", "1af4:1110.0", "1af4:1110.01", "1af4:1110.-1", "1af4:1110.+1"),
        *("1af4:1110.a", "1af4:1110.1.1", "1af4:1110.1234567890", "1af4:1110.\u0661"),
        *("1af4:1110:", "1af4:1110:1af4", "1af4:1110:1af4:1100:1af4", "1af4:1110:1AF4:1100"),
        *("1af4:1110.1:1af4:1100", "1af4:1110:1af4:1100.0", "0000:00:04.0", *NONSENSE),
    ],
    AddressRange.parse: [
        *("10000000000000000", "0-10000000000000000", "ffffffffffffffff+2", "20-10", "10+0"),
        *("0+0", "-1", "+4", "-", "+", "10-", "10+", "10+-4", "10--20", "10-20-30", "10+4+4"),
        *("0x", "0x-10", "10-0x", "0x0x10", "x10", "10h", "1_0", "1 0", "10 - 20", "bar0"),
        *("\uff11\uff10", "\u0663", "10\u221220", *NONSENSE),
    ],
    BarName.parse: [
        *("bar", "bar6", "bar00", "bar-1", "BAR0", "bar 0", "0", "bar\u0660", *NONSENSE),
        *("bar0@", "bar6@0", "bar9@0", "bar@0", "bar00@0", "BAR0@0", "@40", "0@40", "rom@0"),
        *("bar0@40+0", "bar0@40-3f", "bar0@5f-40", "bar0@1-0", "bar0@0+0"),
        *("bar0@40+", "bar0@40-", "bar0@+4", "bar0@-5f", "bar0@-", "bar0@40++4", "bar0@40+-4"),
        *("bar0@40+4+4", "bar0@40-5f-6f", "bar0@@40", "bar0@40@4", "bar0@40,4", "bar0@40:4"),
        *("bar0 @40", "bar0@ 40", "bar0@40 +4", "bar0@40+ 4", "bar0@\n40", "bar0@40\n+4"),
        *("bar0@g", "bar0@40h", "bar0@x40", "bar0@0x", "bar0@0x+4", "bar0@40+0x", "bar0@4_0"),
        *("bar0@10000000000000000", "bar0@0-10000000000000000", "bar0@ffffffffffffffff+2"),
        *("bar0@\u0664\u0660", "bar0@\uff14\uff10", "bar\u0660@40", "bar0@" + "f" * 250),
    ],
}


def cases(table):
    return [(parse, name) for parse, names in table.items() for name in names]


@pytest.mark.parametrize(("parse", "name"), cases(GOOD))
def test_a_good_name_parses_and_with_anything_around_it_does_not(parse, name):
    assert parse(name) == GOOD[parse][name]
    for extra in ("\n", "\r", "\t", " ", "\0", "\x7f", "\x1b[0m", "\u200b", "/"):
        assert parse(name + extra) is parse(extra + name) is None


@pytest.mark.parametrize(("parse", "name"), cases(BAD))
def test_no_name_of_this_form(parse, name):
    assert parse(name) is None


@pytest.mark.parametrize("form", [PciAddress, LinkName])
def test_names_that_are_listed_have_one_spelling(form):
    for name in GOOD[form.parse]:
        assert str(form.parse(name)) == name


def test_every_address_and_link_survives_its_spelling():
    places = itertools.product((0, 0xFFFF, 0x10000, 0xFFFFFFFF), range(256), range(32), range(8))
    for address in itertools.starmap(PciAddress, places):
        assert PciAddress.parse(str(address)) == address
    for subsystem, instance in itertools.product((None, QEMU, DeviceId(0, 0)), range(12)):
        link = LinkName(IVSHMEM, subsystem, instance)
        assert LinkName.parse(str(link)) == link
