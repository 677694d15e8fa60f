"""Lists of capabilities in config spaces made by hand."""

import struct
from itertools import zip_longest

from hypothesis import given
from hypothesis import strategies as st

from barfs.registers.capabilities import (
    Capability,
    header_type,
    place_in_config,
    place_of_virtio,
    walk,
)
from barfs.registers.maps import Condition, Part, Place, Space


def reader(config):
    def read(offset, width):
        data = config[offset : offset + width]
        return int.from_bytes(data, "little") if len(data) == width else None

    return read


def config(*capabilities, size=256, header=0, extended=()):
    """Config space with capabilities of (offset, contents), and extended ones."""
    space = bytearray(size)
    space[0x0E] = header
    space[0x06] = 0x10 if capabilities else 0
    pointer = 0x34
    for offset, contents in capabilities:
        space[pointer] = offset
        pointer = offset + 1
        space[offset : offset + len(contents)] = contents
    for (offset, number), following in zip_longest(extended, [at for at, _ in extended[1:]]):
        struct.pack_into("<I", space, offset, number | 1 << 16 | (following or 0) << 20)
    return space


PM = bytes([0x01, 0, 3, 0, 0, 0, 0, 0])
MSI64 = bytes([0x05, 0, 0x80, 0])


def test_walking():
    space = config((0x40, PM), (0x50, MSI64), size=4096, extended=[(0x100, 1), (0x140, 0x10)])
    assert list(walk(reader(space), 4096)) == [
        Capability(1, 0x40, extended=False),
        Capability(5, 0x50, extended=False),
        Capability(1, 0x100, extended=True),
        Capability(0x10, 0x140, extended=True),
    ]
    assert [c.extended for c in walk(reader(space), 256)] == [False, False]
    assert list(walk(reader(bytes(64)), 256)) == []
    assert list(walk(reader(b"\xff" * 4096), 4096)) == []
    assert header_type(reader(config(header=0x81))) == 1


def test_a_list_without_an_end_ends():
    space = config((0x40, PM), (0x50, MSI64), size=4096, extended=[(0x100, 1), (0x140, 0x10)])
    space[0x51] = 0x40
    struct.pack_into("<I", space, 0x140, 0x10 | 0x100 << 20)
    assert len(list(walk(reader(space), 4096))) == 4


@given(st.binary(min_size=0, max_size=4096), st.sampled_from([64, 256, 4096]))
def test_of_any_config_space_the_lists_end_inside(content, size):
    found = list(walk(reader(content), size))
    assert len(found) <= 48 + 960
    assert all(0x40 <= c.offset < size or not c.extended for c in found)


def part(place, when=None):
    return Part(place, 0, 0x10, "", when, ())


def test_places_in_config():
    space = config((0x40, PM), (0x50, MSI64), size=4096, extended=[(0x100, 1)])
    read, found = reader(space), list(walk(reader(space), 4096))

    def start(place, when=None):
        where = place_in_config(part(place, when), read, 4096, found)
        return where and where.start

    assert start("config") == 0
    assert start("config header 0") == 0
    assert start("config header 1") is None
    assert start("config cap 05") == 0x50
    assert start("config cap 01") == 0x40
    assert start("config cap 10") is None
    assert start("config ecap 0001") == 0x100
    assert start("config ecap 0005") is None
    assert start("config cap 05", Condition(2, 2, 0x80, [0x80])) == 0x50
    assert start("config cap 05", Condition(2, 2, 0x80, [0])) is None


def test_a_structure_of_virtio():
    common = struct.pack("<BBBBBBHII", 9, 0, 16, 1, 4, 0, 0, 0x1000, 0x38)
    notify = struct.pack("<BBBBBBHII", 9, 0, 20, 2, 4, 0, 0, 0x3000, 0x1000)
    space = config((0x40, notify), (0x60, common))
    read, found = reader(space), list(walk(reader(space), 256))
    assert place_of_virtio(part("virtio 1"), read, found) == Place(Space.BAR, 4, 0x1000, 0x1038)
    assert place_of_virtio(part("virtio 2"), read, found) == Place(Space.BAR, 4, 0x3000, 0x4000)
    assert place_of_virtio(part("virtio 3"), read, found) is None
    assert place_of_virtio(part("bar0"), read, found) is None
