"""What the kernel says of a region through VFIO, and where a function is opened."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barfs.access.vfio import Place, parse_region, place_of

READ, WRITE, MMAP, CAPS = 1, 2, 4, 8
SPARSE, MSIX_MAPPABLE = 1, 3


def region(flags, *capabilities, size=0x4000, offset=0x10000000000):
    """struct vfio_region_info, with (id, bytes) of each capability after it."""
    text, at = b"", 32
    for index, (number, body) in enumerate(capabilities):
        length = 8 + len(body)
        following = at + length if index + 1 < len(capabilities) else 0
        text += struct.pack("HHI", number, 1, following) + body
        at += length
    head = struct.pack("IIIIQQ", 32 + len(text), flags, 0, 32 if text else 0, size, offset)
    return head + text


def sparse(*areas):
    body = struct.pack("II", len(areas), 0)
    return SPARSE, body + b"".join(struct.pack("QQ", *area) for area in areas)


@pytest.mark.parametrize(
    ("data", "mappable"),
    [
        (region(READ | WRITE | MMAP), (range(0x4000),)),
        (region(READ | WRITE), ()),
        (
            region(READ | MMAP | CAPS, sparse((0x2000, 0x2000), (0, 0x1000))),
            (range(0x1000), range(0x2000, 0x4000)),
        ),
        # The table may be mapped as well: then all of the region may.
        (region(READ | MMAP | CAPS, (MSIX_MAPPABLE, b""), sparse((0, 0x1000))), (range(0x4000),)),
        (region(READ | MMAP | CAPS, (9, bytes(8)), sparse((0, 0x1000))), (range(0x1000),)),
    ],
)
def test_what_may_be_mapped(data, mappable):
    found = parse_region(data)
    assert found.mappable == mappable
    assert (found.size, found.offset) == (0x4000, 0x10000000000)
    assert found.readable


def test_an_access_right_is_what_the_flags_say():
    assert parse_region(region(READ)).writable is False
    assert parse_region(region(WRITE)).readable is False


@given(st.binary(min_size=32, max_size=200))
def test_no_answer_hangs_or_ends_in_anything_but_an_answer(data):
    try:
        parse_region(data)
    except struct.error:
        assert len(data) < 200


def make(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_where_a_function_is_opened(tmp_path):
    device, dev = tmp_path / "device", tmp_path / "dev"
    device.mkdir()
    assert place_of(device, dev) == Place(None, None)
    (tmp_path / "26").mkdir()
    (device / "iommu_group").symlink_to(tmp_path / "26")
    assert place_of(device, dev).group == dev / "vfio/26"
    group = make(dev / "vfio/noiommu-26")
    assert place_of(device, dev).group == group
    group = make(dev / "vfio/26")
    assert place_of(device, dev).group == group
    (device / "vfio-dev/vfio3").mkdir(parents=True)
    assert place_of(device, dev) == Place(dev / "vfio/devices/vfio3", group)
